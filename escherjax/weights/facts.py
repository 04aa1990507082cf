"""What weights expect of cameras and views: `escherjax.json`, beside a folder's `model_index.json`.

Files that diffusers and transformers write do not say which cameras a network was trained with.
This one does, and a folder without it is read as the published EscherNet checkpoints are:
world-to-camera matrices with OpenGL axes, right-handed, z up (arXiv 2402.03908, section 3.2).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from escherjax import cape as cape_lib
from escherjax.cameras import PUBLISHED_FOV_DEG
from escherjax.errors import UserError

FILE_NAME = "escherjax.json"
FORMAT = 1

DEFAULT_RESOLUTION = 256  # pixels; EscherNet, section 4
_PUBLISHED_UNIT = "longest side of the object = 1; trained with cameras 1.5 to 2.2 from the origin"

# The one value of each field that our networks compute.
_FIXED = {
    "format": FORMAT,
    "camera_matrix": "world_to_camera",
    "camera_axes": "opengl",
    "camera_handedness": "right",
    "world_up": "z",
}

log = logging.getLogger("escherjax.weights")


@dataclasses.dataclass(frozen=True)
class Facts:
    """Camera facts of a set of weights.

    cape: camera encoding, one of `escherjax.cape.VARIANTS`. resolution: side of a view in pixels.
    translation_unit: what one unit of a camera's translation is, in words.
    num_references: (least, most) reference views of a scene in training; num_targets: target
    views; None where unknown, or where M varied. patch: side of the pixel block behind one latent
    position, None where latents come from a VAE. weights: "ema" or "raw", None where unknown.
    trained_steps: optimizer updates, None where unknown. guidance_scale: the scale samples were
    judged at. fov_deg: field of view of the square views in training; camera_radius: (least, most)
    distance of their cameras from the origin; both None where unknown or mixed.
    """

    cape: str
    resolution: int = DEFAULT_RESOLUTION
    translation_unit: str = "not recorded"
    num_references: tuple[int, int] | None = None
    num_targets: int | None = None
    patch: int | None = None
    weights: str | None = None
    trained_steps: int | None = None
    guidance_scale: float = 3.0
    fov_deg: float | None = None
    camera_radius: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of `escherjax.json`."""
        return {
            **_FIXED,
            "escherjax": package_version(),
            "cape": self.cape,
            "translation_unit": self.translation_unit,
            "resolution": self.resolution,
            "num_references": None if self.num_references is None else list(self.num_references),
            "num_targets": self.num_targets,
            "latents": (
                {"kind": "vae"} if self.patch is None else {"kind": "pixels", "patch": self.patch}
            ),
            "weights": self.weights,
            "trained_steps": self.trained_steps,
            "guidance_scale": self.guidance_scale,
            "fov_deg": self.fov_deg,
            "camera_radius": None if self.camera_radius is None else list(self.camera_radius),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: str = FILE_NAME) -> Facts:
        """Reads the content of `escherjax.json`; source: what messages call it.

        Raises one UserError that lists every field that is missing, unknown, of a wrong type, or
        asks for cameras that our networks do not compute.
        """
        known = {*_FIXED, *_CHECKS}
        content = {**_LATER, **content}
        problems = [f"{name} is missing" for name in sorted(known - content.keys())]
        problems += [f"{name} is unknown" for name in sorted(content.keys() - known)]
        problems += [
            f"{name} = {content[name]!r} is not supported; needed {value!r}"
            for name, value in _FIXED.items()
            if name in content and not _same(content[name], value)
        ]
        problems += [
            f"{name} = {content[name]!r}; needed {needed}"
            for name, (is_valid, needed) in _CHECKS.items()
            if name in content and not is_valid(content[name])
        ]
        if problems:
            raise UserError(f"{source}: {'; '.join(problems)}. Correct the file.")
        references, radius = content["num_references"], content["camera_radius"]
        fov_deg = content["fov_deg"]
        return cls(
            cape=content["cape"],
            resolution=content["resolution"],
            translation_unit=content["translation_unit"],
            num_references=None if references is None else (references[0], references[1]),
            num_targets=content["num_targets"],
            patch=content["latents"].get("patch"),
            weights=content["weights"],
            trained_steps=content["trained_steps"],
            guidance_scale=float(content["guidance_scale"]),
            fov_deg=None if fov_deg is None else float(fov_deg),
            camera_radius=None if radius is None else (float(radius[0]), float(radius[1])),
        )


def of_folder(
    folder: Path, content: Mapping[str, Any] | None, cape: str | None = None, name: str = ""
) -> Facts:
    """Facts of a pipeline folder.

    content: of its `escherjax.json`, None where it has none. cape: goes before what the file says,
    with a warning where the two differ; without the file, None reads it from a name that contains
    "6dof" or "4dof". name: the hub id, where that is not the folder's name.
    Raises UserError as `Facts.from_json` does, or if nothing says which encoding it is.
    """
    if cape is not None:
        cape_lib.check_variant(cape)
    if content is not None:
        if cape not in (None, content.get("cape")):
            said = content.get("cape")
            log.warning("%s says cape = %r; going on with %r", folder / FILE_NAME, said, cape)
            content = {**content, "cape": cape}
        return Facts.from_json(content, str(folder / FILE_NAME))
    if cape is None:
        name = (name or folder.resolve().name).lower()
        named = [variant for variant in ("6dof", "4dof") if variant in name]
        if len(named) != 1:
            raise UserError(
                f"{folder} does not say which camera encoding its weights were trained with; name "
                f"it with cape= or --cape (one of {', '.join(cape_lib.VARIANTS)})."
            )
        cape = named[0]
    return Facts(
        cape,
        translation_unit=_PUBLISHED_UNIT,
        fov_deg=PUBLISHED_FOV_DEG,
        camera_radius=(cape_lib.MIN_RADIUS, cape_lib.MAX_RADIUS),
    )


def package_version() -> str:
    """Version of this package, as files that it writes state it."""
    try:
        return importlib.metadata.version("escherjax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def _same(found: Any, needed: Any) -> bool:
    return type(found) is type(needed) and found == needed


def _is_count(value: Any, least: int = 1) -> bool:
    return type(value) is int and value >= least


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(map(_is_count, value))
        and value[0] <= value[1]
    )


def _is_latents(value: Any) -> bool:
    if value == {"kind": "vae"}:
        return True
    return (
        isinstance(value, Mapping)
        and value.keys() == {"kind", "patch"}
        and value["kind"] == "pixels"
        and _is_count(value["patch"])
    )


def _is_scale(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _is_radius(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(map(_is_scale, value))
        and 0 < value[0] <= value[1]
    )


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "escherjax": (lambda v: isinstance(v, str), "a version as text"),
    "cape": (
        lambda v: isinstance(v, str) and v in cape_lib.VARIANTS,
        f"one of {', '.join(cape_lib.VARIANTS)}",
    ),
    "translation_unit": (lambda v: isinstance(v, str) and v != "", "text"),
    "resolution": (_is_count, "a positive integer"),
    "num_references": (lambda v: v is None or _is_range(v), "[least, most] from 1 on, or null"),
    "num_targets": (lambda v: v is None or _is_count(v), "a positive integer or null"),
    "latents": (_is_latents, '{"kind": "vae"} or {"kind": "pixels", "patch": pixels}'),
    "weights": (lambda v: v is None or v in ("ema", "raw"), '"ema", "raw" or null'),
    "trained_steps": (lambda v: v is None or _is_count(v, 0), "an integer from 0 on, or null"),
    "guidance_scale": (_is_scale, "a finite number from 0 on"),
    "fov_deg": (lambda v: v is None or (_is_scale(v) and 0 < v < 180), "degrees, or null"),
    "camera_radius": (lambda v: v is None or _is_radius(v), "[least, most] above 0, or null"),
}

# Fields that files of earlier versions do not have, as those are to be read.
_LATER = {"fov_deg": None, "camera_radius": None}
