"""Opens single networks from a PyTorch folder or a training work directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.models.eschernet import EscherNet, Params
from escherjax.models.vae import VAEConfig
from escherjax.weights import hub, reading, run_params, runs, strict_json
from escherjax.weights.run_params import ParamPath

Shapes = dict[ParamPath, tuple[int, ...]]

_FOLDERS = {"unet": ("unet", "unet_ema"), "image_encoder": ("image_encoder",), "vae": ("vae",)}
_DIFFUSION = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")


@dataclasses.dataclass(frozen=True)
class StoredPart:
    """One part as a source holds it."""

    source: str
    sizes: Any  # its config record
    shapes: Shapes  # of its tensors, in our names and layouts
    read: Callable[[Iterable[ParamPath]], dict[ParamPath, np.ndarray]]  # host arrays of some
    trained_for: dict[str, Any]  # config fields that give the U-Net's numbers their meaning
    unused: tuple[str, ...] = ()  # names of stored tensors that no network of ours has


def read_vae(weights: str) -> tuple[VAEConfig, Params]:
    """The VAE of PyTorch weights (their folder, the VAE's own, a hub name) or of a work directory.

    Returns its sizes and host arrays. Raises UserError if there is none, or it cannot be read.
    """
    in_workdir = runs.locate(Path(weights)) is not None
    stored = open_workdir(weights, "", "vae") if in_workdir else open_folder(weights, "vae")
    if stored.sizes is None or not stored.shapes:
        raise UserError(f"{weights} works on pixels and has no VAE; take weights of a VAE.")
    params = traverse_util.unflatten_dict(stored.read(stored.shapes))
    return stored.sizes, params["vae"]


def open_folder(weights: str, part: str) -> StoredPart:
    """A part from its own folder, or from the folder that holds it."""
    folder = hub.resolve(weights, part)
    if not folder.is_dir():
        raise UserError(f"{weights} is not a directory; expected a folder of PyTorch weights.")
    if runs.locate(folder) is not None:
        raise UserError(
            f"{weights} is a training work directory; expected a folder of PyTorch weights. Name "
            "it as config.init.workdir."
        )
    trained_for = _said_beside(folder.parent)
    for name in _FOLDERS[part]:
        if (folder / name).is_dir():
            trained_for, folder = _said_beside(folder), folder / name
            break
    network, params = reading.read_component(folder, part)
    arrays = {(part, *path): a for path, a in traverse_util.flatten_dict(params).items()}
    return StoredPart(
        source=weights,
        sizes=network.config,
        shapes={path: array.shape for path, array in arrays.items()},
        read=lambda paths: {path: arrays[path] for path in paths},
        trained_for=trained_for,
        unused=network.ignored,
    )


def _said_beside(folder: Path) -> dict[str, Any]:
    """Config fields that a pipeline folder states about its U-Net's training."""
    problems: list[str] = []
    scheduler = strict_json.read_optional(folder / "scheduler" / "scheduler_config.json", problems)
    facts = strict_json.read_optional(folder / "escherjax.json", problems)
    if problems:
        raise UserError("; ".join(problems) + ". Restore or remove what cannot be read.")
    said = {f"diffusion.{name}": scheduler[name] for name in _DIFFUSION if name in scheduler}
    return said | ({"cape": facts["cape"]} if "cape" in facts else {})


def open_workdir(path: str, weights: str, part: str) -> StoredPart:
    """A part from a checkpoint of an earlier run; its optimizer is left alone."""
    place = runs.locate(Path(path))
    if place is None:
        raise UserError(
            f"config.init.workdir must be a training work directory or one checkpoint in it; "
            f"{path} has no checkpoints/ beside a config.json."
        )
    workdir, step = place
    config = runs.read_config(workdir)
    earlier = eschernet.from_config(config)
    stored = run_params.open_checkpoint(workdir, step, weights)
    source = f"{workdir} step {stored.step}"
    return StoredPart(
        source=source if part == "vae" else f"{source} {stored.weights}",
        sizes=sizes_of(earlier, part),
        shapes={path: shape for path, shape in stored.shapes.items() if path[0] == part},
        read=stored.read,
        trained_for={
            "cape": config.cape,
            **{f"diffusion.{name}": config.diffusion[name] for name in _DIFFUSION},
        },
    )


def sizes_of(model: EscherNet, part: str) -> Any:
    """The config record of a part; None for a model without it."""
    module = {"unet": model.unet, "image_encoder": model.encoder, "vae": model.codec}[part]
    return getattr(module, "config", None)
