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
DEFAULT_RESOLUTION = 256  # pixels; EscherNet, section 4
_PUBLISHED_UNIT = "longest side of the object = 1; trained with cameras 1.5 to 2.2 from the origin"

# The one value of each field that our networks compute.
_FIXED = {
    "format": 1,
    "camera_matrix": "world_to_camera",
    "camera_axes": "opengl",
    "camera_handedness": "right",
    "world_up": "z",
}

log = logging.getLogger("escherjax.weights")


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What a set of weights expects of cameras and views, and how it was trained.

    None stands for what is unknown, except for `patch`.
    """

    cape: str  # camera encoding, one of `escherjax.cape.VARIANTS`
    resolution: int = DEFAULT_RESOLUTION  # side of a view in pixels
    translation_unit: str = "not recorded"  # what one unit of a camera's translation is, in words
    num_references: tuple[int, int] | None = None  # fewest and most reference views in training
    num_targets: int | None = None  # target views in training; None also where it varied
    patch: int | None = None  # side of the pixel block of one latent; None: latents of a VAE
    weights: str | None = None  # "ema" or "raw"
    trained_steps: int | None = None  # optimizer updates
    guidance_scale: float = 3.0  # the scale that samples were judged at
    fov_deg: float | None = None  # field of view of the square views in training
    camera_radius: tuple[float, float] | None = None  # least and most distance from the origin

    def to_json(self) -> dict[str, Any]:
        """The content of `escherjax.json`."""
        fields = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }
        patch = fields.pop("patch")
        latents = {"kind": "vae"} if patch is None else {"kind": "pixels", "patch": patch}
        return {**_FIXED, "escherjax": package_version(), **fields, "latents": latents}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: str = FILE_NAME) -> ModelCard:
        """Reads the content of `escherjax.json`.

        Args:
            content: its fields.
            source: the file's name in messages.

        Raises:
            UserError: lists every field that is missing, unknown, of a wrong type, or asks for
                cameras that our networks do not compute.
        """
        content = {**_LATER, **content}
        problems = [f"{name} is missing" for name in sorted(_RULES.keys() - content.keys())]
        problems += [f"{name} is unknown" for name in sorted(content.keys() - _RULES.keys())]
        problems += [
            f"{name} must be {expected}, got {content[name]!r}"
            for name, (is_valid, expected) in _RULES.items()
            if name in content and not is_valid(content[name])
        ]
        if problems:
            raise UserError(f"{source}: {'; '.join(problems)}. Correct the file.")
        names = [field.name for field in dataclasses.fields(cls)]
        fields: dict[str, Any] = {name: content.get(name) for name in names}
        references, radius = content["num_references"], content["camera_radius"]
        fields |= {
            "num_references": references and tuple(references),
            "patch": content["latents"].get("patch"),
            "guidance_scale": float(content["guidance_scale"]),
            "fov_deg": content["fov_deg"] and float(content["fov_deg"]),
            "camera_radius": radius and tuple(map(float, radius)),
        }
        return cls(**fields)


def of_folder(
    folder: Path, content: Mapping[str, Any] | None, cape: str | None = None, name: str = ""
) -> ModelCard:
    """The model card of a pipeline folder.

    Args:
        folder: local path.
        content: of its `escherjax.json`, None where it has none.
        cape: camera encoding, used before what the file says, with a warning where the two differ.
            Without the file, None reads it from a name that contains "6dof" or "4dof".
        name: the hub id, where that is not the folder's name.

    Raises:
        UserError: as `ModelCard.from_json`, or if nothing says which encoding it is.
    """
    if cape is not None:
        cape_lib.check_variant(cape)
    if content is not None:
        if cape not in (None, content.get("cape")):
            log.warning("%s has cape = %r; using %r", folder / FILE_NAME, content.get("cape"), cape)
            content = {**content, "cape": cape}
        return ModelCard.from_json(content, str(folder / FILE_NAME))
    if cape is None:
        name = (name or folder.resolve().name).lower()
        named = [variant for variant in ("6dof", "4dof") if variant in name]
        if len(named) != 1:
            raise UserError(
                f"{folder} does not say which camera encoding its weights were trained with; name "
                f"it with cape= or --cape (one of {', '.join(cape_lib.VARIANTS)})."
            )
        cape = named[0]
    return ModelCard(
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


def _is_count(value: Any, least: int = 1) -> bool:
    return type(value) is int and value >= least


def _is_scale(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _is_range(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(map(is_valid, value))
        and 0 < value[0] <= value[1]
    )


def _is_latents(value: Any) -> bool:
    if not isinstance(value, Mapping) or value.get("kind") != "pixels":
        return value == {"kind": "vae"}
    return value.keys() == {"kind", "patch"} and _is_count(value["patch"])


def _is_fixed(name: str) -> Callable[[Any], bool]:
    return lambda value: type(value) is type(_FIXED[name]) and value == _FIXED[name]


# What a field must be: a test, and the same in words.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{name: (_is_fixed(name), repr(value)) for name, value in _FIXED.items()},
    "escherjax": (lambda v: isinstance(v, str), "a version as text"),
    "cape": (
        lambda v: isinstance(v, str) and v in cape_lib.VARIANTS,
        f"one of {', '.join(cape_lib.VARIANTS)}",
    ),
    "translation_unit": (lambda v: isinstance(v, str) and v != "", "text"),
    "resolution": (_is_count, "a positive integer"),
    "num_references": (lambda v: v is None or _is_range(v, _is_count), "[least, most] or null"),
    "num_targets": (lambda v: v is None or _is_count(v), "a positive integer or null"),
    "latents": (_is_latents, '{"kind": "vae"} or {"kind": "pixels", "patch": pixels}'),
    "weights": (lambda v: v in (None, "ema", "raw"), '"ema", "raw" or null'),
    "trained_steps": (lambda v: v is None or _is_count(v, 0), "an integer from 0 on, or null"),
    "guidance_scale": (_is_scale, "a finite number from 0 on"),
    "fov_deg": (lambda v: v is None or (_is_scale(v) and 0 < v < 180), "degrees, or null"),
    "camera_radius": (lambda v: v is None or _is_range(v, _is_scale), "[least, most] or null"),
}

# Fields that files of earlier versions do not have, as those are to be read.
_LATER = {"fov_deg": None, "camera_radius": None}
