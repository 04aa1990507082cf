"""Pipelines of stored weights: work directories, their checkpoints, PyTorch folders."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from escherjax.data import training_cameras
from escherjax.data.loader_config import view_counts
from escherjax.devices import mesh as sharding
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.models.vae import PixelCodec
from escherjax.sample.pipeline import Pipeline, facts_of_model
from escherjax.weights import facts as facts_lib
from escherjax.weights import hub, reading, run_params, runs

log = logging.getLogger("escherjax.weights")


def load(
    path: str | Path,
    dtype: str = "float32",
    cape: str | None = None,
    weights: str | None = None,
    view_devices: int = 1,
    scene_devices: int = 1,
) -> Pipeline:
    """Loads a training work directory, one checkpoint in it, or a pipeline folder of PyTorch.

    Args:
        path: a folder, or where none exists a hub id `owner/name[@revision]` of a pipeline folder.
        dtype: compute dtype, "float32" or "bfloat16".
        cape: camera encoding of a pipeline folder, which overrides its escherjax.json; without that
            file, None reads it from a folder name that contains "6dof" or "4dof".
        weights: of a work directory, "ema" for the averaged parameters or "raw"; None takes the
            average where the run kept one.
        view_devices: how many local devices share the target views of a scene.
        scene_devices: how many such groups share the scenes of `generate_batch`; each device has a
            copy of the parameters.

    Returns:
        The pipeline, its parameters on these devices.

    Raises:
        UserError: if the folder is none of these, its weights do not fit together, or the hub
            refuses.
    """
    if weights not in (None, "ema", "raw"):
        raise UserError(f"weights must be 'ema', 'raw' or None, got {weights!r}.")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype must be 'float32' or 'bfloat16', got {dtype!r}.")
    mesh = sharding.view_mesh(view_devices, scene_devices)
    folder = hub.resolve(path)
    if not folder.is_dir():
        raise UserError(
            f"{path} is not a directory; expected a training work directory, one of its "
            "checkpoints, a pipeline folder, or the hub id of one."
        )
    place = runs.locate(folder)
    if place is not None:
        return _load_workdir(*place, dtype, cape, weights, mesh)
    if (folder / "unet").is_dir() or (folder / "unet_ema").is_dir():
        if weights is not None:
            raise UserError(
                f"{path} is a pipeline folder, which holds one set of weights; leave out weights= "
                "(--params)."
            )
        # In the hub's cache, folders have the names of commits.
        name = "" if folder == Path(path) else str(path)
        return _load_pipeline_folder(folder, name, dtype, cape, mesh)
    raise UserError(
        f"{path} holds neither checkpoints/ beside a config.json (a training work directory) nor "
        "unet/ (a pipeline folder); name one that does."
    )


def _load_workdir(
    workdir: Path,
    step: int | None,
    dtype: str,
    cape: str | None,
    weights: str | None,
    mesh: Mesh,
) -> Pipeline:
    config = runs.read_config(workdir).copy_and_resolve_references()
    if cape not in (None, config.cape):
        raise UserError(
            f"cape must be {config.cape!r}, with which {workdir} was trained, got {cape!r}."
        )
    with config.unlocked():
        config.dtype = dtype
        config.mesh.data = config.mesh.fsdp = 1
    model = eschernet.from_config(config)
    stored = run_params.open_checkpoint(workdir, step, weights)
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = stored.restore(
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
            model.parameter_shapes(config.resolution),
        )
    )
    references, targets = zip(*view_counts(config), strict=True)
    fewest = min(references)
    seen = training_cameras.read(workdir, config)
    facts = dataclasses.replace(
        facts_of_model(model, config.resolution),
        translation_unit="that of the scenes it was trained on",
        num_references=(min(config.min_references or fewest, fewest), max(references)),
        num_targets=targets[0] if len(set(targets)) == 1 else None,
        weights=stored.weights,
        trained_steps=stored.step,
        guidance_scale=config.guidance_scale,
        fov_deg=None if seen is None else seen.fov_deg,
        camera_radius=None if seen is None else seen.radius,
    )
    return Pipeline(model, params, config.resolution, facts, mesh=mesh)


def _load_pipeline_folder(
    folder: Path, name: str, dtype: str, cape: str | None, mesh: Mesh
) -> Pipeline:
    if not (folder / facts_lib.FILE_NAME).exists():
        facts_lib.of_folder(folder, None, cape, name)  # refuses before gigabytes are read
    everywhere = NamedSharding(mesh, PartitionSpec())
    stored, params = reading.read_pipeline_folder(
        folder, functools.partial(jax.device_put, device=everywhere)
    )
    for network in stored.networks.values():
        if network.ignored:
            log.info(
                "%s: ignored %s, which this network does not have",
                network.source,
                ", ".join(network.ignored),
            )
    facts = facts_lib.of_folder(folder, stored.card, cape, name)
    sizes = {part: network.config for part, network in stored.networks.items()}
    latents = sizes["vae"] if facts.patch is None else PixelCodec(facts.patch)
    model = eschernet.from_parts(
        sizes["unet"],
        sizes["image_encoder"],
        latents,
        stored.scheduler,
        facts.cape,
        jnp.dtype(dtype),
    )
    if facts.resolution % model.reduction:
        raise UserError(
            f"{folder / facts_lib.FILE_NAME}: resolution must be a multiple of "
            f"{model.reduction}, by which latents shrink an image, got {facts.resolution}."
        )
    return Pipeline(model, params, facts.resolution, facts, stored, mesh)
