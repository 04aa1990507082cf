"""Lenses of transforms.json: which fields of nerfstudio and instant-ngp describe one, and its K.

Every field that describes a lens is applied, or refused by name where it is not zero. What a frame
states of its own lens is never completed from the top level's lens of another size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.data import images
from escherjax.errors import UserError

SIZE, CENTER = ("w", "h"), ("cx", "cy")
FOCALS, ANGLES = ("fl_x", "fl_y"), ("camera_angle_x", "camera_angle_y")
RADIAL, TANGENTIAL = ("k1", "k2", "k3", "k4", "k5", "k6"), ("p1", "p2")
PINHOLE_MODELS = (
    *("PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE"),
    *("OPENCV", "FULL_OPENCV", "RADIAL", "SIMPLE_RADIAL"),
)
FISHEYE_MODELS = ("OPENCV_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_RADIAL_FISHEYE")
# Names of fields that describe a lens, whether they are read here or not.
_LENS_MODEL = re.compile(r"camera_model|is_(fisheye|latlong|equirectangular|panorama|spherical)")
_LENS_FIELD = re.compile(
    r"[kps]\d+|b[12]|t[xy]|tau_?[xy]|xi|sk_\w+|skew\w*|ftheta_\w+|lens\w*|"
    rf"(distortion|radial|tangential)\w*|{_LENS_MODEL.pattern}"
)
_PERSPECTIVE_MODES = ("", "none", "perspective", "pinhole")
# A lens may move a ray of a picture so many times farther out or in; beyond that a coefficient is
# damaged, or stands for another lens.
_MAX_STRETCH = 10.0
_SHAPE_TOLERANCE = 0.02
_UNDISTORT = "Undistort the pictures first: COLMAP models by python -m data_prep.colmap."


def frame_fields(content: Mapping[str, Any], frame: Mapping[str, Any]) -> dict[str, Any]:
    """A frame's fields and those of the top level that hold for its lens too.

    A frame's focal length or field of view replaces all of the top's, its coefficients all of the
    top's, its model both the top's model and coefficients. A frame of another size keeps nothing in
    pixels of the top's.
    """
    top = {name: value for name, value in content.items() if name != "frames"}
    own = {name: value for name, value in frame.items() if value is not None}
    dropped: set[str] = set()
    if any(name in own for name in (*FOCALS, *ANGLES)):
        dropped |= {*FOCALS, *ANGLES}
    if any(_LENS_MODEL.fullmatch(name) for name in own):
        dropped |= {name for name in top if _LENS_FIELD.fullmatch(name)}
    elif any(name in own for name in (*RADIAL, *TANGENTIAL)):
        dropped |= {*RADIAL, *TANGENTIAL}
    if any(name in own and name in top and own[name] != top[name] for name in SIZE):
        dropped |= {*SIZE, *CENTER, *FOCALS}
        if not _same_shape(own, top):
            dropped |= {*ANGLES}
    return {**{name: value for name, value in top.items() if name not in dropped}, **own}


def _same_shape(own: Mapping[str, Any], top: Mapping[str, Any]) -> bool:
    try:
        ratio = (own["w"] / own["h"]) / (top["w"] / top["h"])
    except (KeyError, TypeError, ArithmeticError):
        return False
    return abs(ratio - 1) <= _SHAPE_TOLERANCE


def pinhole_intrinsics(fields: Mapping[str, Any], where: str) -> images.Pinhole:
    """The lens that nerfstudio's, instant-ngp's or NeRF-synthetic's fields describe.

    Where they state another size `w`, `h` than a picture has, K is scaled to the picture. The
    returned function raises UserError, starting with `where`, if fields are missing, have no
    meaning here, or shapes differ.
    """

    def pinhole(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = picture.shape[:2]
        K = _intrinsics(fields, where, height, width)
        is_fisheye, distortion = _distortion(fields, where)
        if not is_fisheye and not distortion:
            return picture, K
        stretch = images.lens_stretch(height, width, K, distortion, is_fisheye)
        if not (stretch.min() > 1 / _MAX_STRETCH and stretch.max() < _MAX_STRETCH):
            raise UserError(
                f"{where}: distortion {distortion} moves pixels {stretch.min():.3g} to "
                f"{stretch.max():.3g} times as far from the centre; it must be a real lens's. "
                "Mend the coefficients, or leave them out if the pictures are undistorted."
            )
        return images.undistort(picture, K, distortion, is_fisheye), K

    return pinhole


def _number(fields: Mapping[str, Any], name: str, default: float, where: str) -> float:
    value = fields.get(name)
    try:
        return default if value is None else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: {name} is not a number ({error}).") from error


def _intrinsics(fields: Mapping[str, Any], where: str, height: int, width: int) -> np.ndarray:
    """K [3, 3] for a picture of this size."""

    def number(name: str, default: float = np.nan) -> float:
        return _number(fields, name, default, where)

    w, h = number("w", width), number("h", height)
    if not (0 < w < np.inf and 0 < h < np.inf):
        raise UserError(
            f"{where}: w and h must be positive numbers of pixels, got {w:g} x {h:g}. Mend them, "
            f"or leave them out: the picture has {width} x {height}."
        )
    given = {name for name in (*FOCALS, *ANGLES) if fields.get(name) is not None}
    if given & set(FOCALS):
        fx = number("fl_x", number("fl_y"))
        fy = number("fl_y", fx)
    elif given:
        half = {name: 0.5 * number(name) for name in given}
        for name, angle in half.items():
            if not 0 < angle < np.pi / 2:
                raise UserError(
                    f"{where}: intrinsics must be finite with positive focal lengths, got {name} "
                    f"= {2 * angle:g}; it must be above 0 and below pi."
                )
        focals = {
            ANGLES[0]: lambda: 0.5 * w / np.tan(half[ANGLES[0]]),
            ANGLES[1]: lambda: 0.5 * h / np.tan(half[ANGLES[1]]),
        }
        fx = focals[ANGLES[0] if ANGLES[0] in given else ANGLES[1]]()
        fy = focals[ANGLES[1] if ANGLES[1] in given else ANGLES[0]]()
    else:
        raise UserError(
            f"{where}: no intrinsics; expected fl_x or camera_angle_x, in the frame itself if it "
            "states another w and h than the file."
        )
    K = np.array([[fx, 0, number("cx", w / 2)], [0, fy, number("cy", h / 2)], [0, 0, 1]])
    if not np.isfinite(K).all() or not (fx > 0 and fy > 0):
        raise UserError(
            f"{where}: intrinsics must be finite with positive focal lengths, got fl_x = {fx:g}, "
            f"fl_y = {fy:g}, cx = {K[0, 2]:g}, cy = {K[1, 2]:g}."
        )
    scale_x, scale_y = width / w, height / h
    if abs(scale_x / scale_y - 1) > _SHAPE_TOLERANCE:
        raise UserError(
            f"{where}: intrinsics are for {w:g} x {h:g} pixels, the picture has "
            f"{width} x {height}: another shape. Mend w and h."
        )
    return cameras.resize_intrinsics(K, scale_x, scale_y)


def _distortion(fields: Mapping[str, Any], where: str) -> tuple[bool, dict[str, float]]:
    """(whether the lens is a fisheye, its coefficients that are not zero)."""
    model = fields.get("camera_model") or "OPENCV"
    if model not in (*PINHOLE_MODELS, *FISHEYE_MODELS):
        raise UserError(
            f"{where}: camera_model '{model}' is unknown; known: "
            f"{', '.join((*PINHOLE_MODELS, *FISHEYE_MODELS))}. {_UNDISTORT}"
        )
    is_fisheye = bool(fields.get("is_fisheye")) or model in FISHEYE_MODELS
    if is_fisheye and model not in (*FISHEYE_MODELS, "OPENCV"):
        raise UserError(
            f"{where}: is_fisheye is true, but camera_model is '{model}'; the lens must be one of "
            "both. Mend is_fisheye or camera_model."
        )
    known = {*RADIAL[:4]} if is_fisheye else {*RADIAL, *TANGENTIAL}
    coefficients = {name: _number(fields, name, 0.0, where) for name in (*RADIAL, *TANGENTIAL)}
    distortion = {name: value for name, value in coefficients.items() if value}
    if not np.isfinite(list(distortion.values())).all():
        raise UserError(f"{where}: distortion must be finite, got {distortion}.")
    # OpenCV's k4 divides; nerfstudio's is the fourth power of r^2. k5 and k6 are OpenCV's alone.
    is_rational = model == "FULL_OPENCV" or any(fields.get(n) is not None for n in ("k5", "k6"))
    if not is_fisheye and not is_rational:
        known.discard("k4")
    refused = sorted(distortion.keys() - known)
    refused += sorted(
        name
        for name, value in fields.items()
        if _LENS_FIELD.fullmatch(name)
        and name not in (*RADIAL, *TANGENTIAL, "camera_model", "is_fisheye")
        and _is_stated(value)
    )
    if refused:
        shown = ", ".join(f"{name} = {fields[name]!r}" for name in refused)
        hint = ""
        if refused == ["k4"]:
            hint = (
                " It may be OpenCV's rational k4, which camera_model FULL_OPENCV says, or a "
                "fourth radial coefficient, which is not read."
            )
        raise UserError(
            f"{where}: a lens with {shown[:300]} is not read, and leaving that out would move "
            f"pixels.{hint} {_UNDISTORT}"
        )
    return is_fisheye, distortion


def _is_stated(value: Any) -> bool:
    """Whether a field says something: not zero, false, empty, or a plain perspective lens."""
    if isinstance(value, Mapping):
        mode = value.get("mode", value.get("type"))
        rest = [part for name, part in value.items() if name not in ("mode", "type")]
        return _is_stated(mode) or _is_stated(rest)
    if isinstance(value, (list, tuple)):
        return any(map(_is_stated, value))
    if isinstance(value, str):
        return value.lower() not in _PERSPECTIVE_MODES
    return bool(value)
