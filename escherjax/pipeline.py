"""The object users hold: load weights, give pictures with cameras, get new views."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from escherjax import cameras as cameras_lib
from escherjax import config as config_lib
from escherjax.cameras import Cameras
from escherjax.data import images as images_lib
from escherjax.data import procedural
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.models.eschernet import EscherNet, Params
from escherjax.models.pixels import PixelCodec
from escherjax.training import checkpoint, sharding, stored_params
from escherjax.training.optimizer import make_optimizer
from escherjax.training.state import abstract_state
from escherjax.weights import facts as facts_lib
from escherjax.weights import hub, pytorch, writing
from escherjax.weights.facts import Facts
from escherjax.weights.stored import StoredFormat

log = logging.getLogger("escherjax.weights")

_STATIC = ("num_steps", "guidance_scale", "sampler", "eta", "guidance_rescale")


def load(
    path: str | Path,
    dtype: str = "float32",
    cape: str | None = None,
    weights: str | None = None,
    view_devices: int = 1,
) -> Pipeline:
    """Loads a training work directory, one checkpoint in it, or a pipeline folder of PyTorch.

    path: a folder, or where none exists a hub id `owner/name[@revision]` of a pipeline folder.
    dtype: compute dtype, "float32" or "bfloat16". cape: camera encoding of a pipeline folder,
    before what its escherjax.json says; without that file, None reads it from a folder name that
    contains "6dof" or "4dof". weights: of a work directory, "ema" for the averaged parameters or
    "raw"; None takes the average where the run kept one. view_devices: how many local devices share
    the target views of a scene, each with a copy of the parameters.
    Raises UserError if the folder is none of these, its weights do not fit together, or the hub
    refuses.
    """
    if weights not in (None, "ema", "raw"):
        raise UserError(f"weights = {weights!r}; needed 'ema', 'raw' or None.")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype = {dtype!r}; needed 'float32' or 'bfloat16'.")
    mesh = sharding.view_mesh(view_devices)
    folder = hub.resolve(path)
    if not folder.is_dir():
        raise UserError(f"{path} is not a folder; needed a training work directory, one of its "
                        "checkpoints, a pipeline folder, or the hub id of one.")
    place = checkpoint.locate(folder)
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


class Pipeline:
    """A network with its parameters; every method is a pure function of its arguments.

    model: sizes and modules; params: {"unet", "image_encoder", "vae"}; resolution: side in pixels
    of the views it makes; facts: what the weights expect of cameras, None if nothing but the model
    is known; stored: how the folder was written that they were read from, None for no folder.
    mesh: devices that share target views, from `sharding.view_mesh`, on all of which params lie;
    None for one device.
    """

    def __init__(
        self,
        model: EscherNet,
        params: Params,
        resolution: int,
        facts: Facts | None = None,
        stored: StoredFormat | None = None,
        mesh: Mesh | None = None,
    ):
        self.model, self.params, self.resolution = model, params, resolution
        self._mesh = mesh or sharding.single_device_mesh()
        spread_model = model.spread_over(sharding.spread(self._mesh))
        self.facts = facts or _facts_of_model(model, resolution)
        self.stored = stored
        self._encode_images = jax.jit(model.encode_images)
        self._encode_latents = jax.jit(model.encode_latents)
        self._decode_latents = jax.jit(model.decode_latents)
        self._predict = jax.jit(model.predict)
        self._generate = jax.jit(spread_model.generate, static_argnames=_STATIC)

    def generate(
        self,
        images: np.ndarray | Sequence[Any],
        reference_cameras: Cameras,
        target_cameras: Cameras,
        num_steps: int = 50,
        guidance_scale: float = 3.0,
        seed: int = 0,
        initial_latents: np.ndarray | None = None,
        sampler: str = "ddim",
        eta: float = 0.0,
        guidance_rescale: float = 0.0,
    ) -> np.ndarray:
        """New views of one scene, all targets jointly.

        images: [N, H, H, 3] float in [0, 1] of any size, or a list of PIL images or paths
        (turned as their EXIF orientation says, composited on white, cut to the central square).
        reference_cameras: c2w [N, 4, 4], of the turned pictures; target_cameras: c2w [M, 4, 4].
        initial_latents: [M, h, w, C] standard normal, drawn from `seed` if None.
        sampler: "ddim", "dpmpp_2m" or "unipc"; eta: noise that DDIM adds at each step, 0 to 1;
        guidance_rescale: 0 to 1 (see `escherjax.diffusion`).
        Returns [M, R, R, 3] float32 in [0, 1], R = `resolution`.
        Raises UserError for empty or unequal views, bad poses, values outside [0, 1], NaN, and
        settings that the sampler does not know.
        """
        pixels = self._reference_pixels(images)
        reference_c2w = _checked_poses(reference_cameras, "reference cameras")
        target_c2w = _checked_poses(target_cameras, "target cameras")
        if len(reference_c2w) != len(pixels):
            raise UserError(
                f"{len(pixels)} reference images but {len(reference_c2w)} reference cameras; "
                "needed one camera for each image."
            )
        shape = (len(target_c2w), *self.model.latent_shape(self.resolution))
        if initial_latents is None:
            latents = jax.random.normal(jax.random.key(seed), shape)
        else:
            latents = jnp.asarray(initial_latents, jnp.float32)
            if latents.ndim != 4 or latents.shape[0] != shape[0] or latents.shape[3] != shape[3]:
                raise UserError(
                    f"initial_latents have shape {latents.shape}; needed {shape} (sides may differ)"
                )
        num_views, num_targets = len(target_c2w), None
        missing = -num_views % self._mesh.shape["view"]
        if missing:  # every device has equally many views; those added are seen by no other
            target_c2w = np.concatenate([target_c2w, target_c2w[-1:].repeat(missing, axis=0)])
            latents = jnp.pad(latents, ((0, missing), (0, 0), (0, 0), (0, 0)))
            num_targets = jnp.full((1,), num_views, jnp.int32)
        views = self._generate(
            self.params,
            pixels[None] * 2 - 1,
            Cameras(reference_c2w[None]),
            Cameras(target_c2w[None]),
            jax.device_put(latents[None], sharding.target_sharding(self._mesh)),
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            num_targets=num_targets,
            sampler=sampler,
            eta=eta,
            guidance_rescale=guidance_rescale,
            key=jax.random.fold_in(jax.random.key(seed), 1),
        )
        return np.asarray(views[0, :num_views])

    def encode_images(self, images: jax.Array) -> jax.Array:
        """Reference tokens [N, L, D] of images [N, H, W, 3] in [-1, 1]."""
        return self._encode_images(self.params, jnp.asarray(images))

    def encode_latents(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean, log variance), each [N, h, w, C], of images [N, H, W, 3] in [-1, 1], unscaled."""
        return self._encode_latents(self.params, jnp.asarray(images))

    def decode_latents(self, latents: jax.Array) -> jax.Array:
        """Images [N, H, W, 3], not clipped, of latents [N, h, w, C] divided by the VAE's factor."""
        return self._decode_latents(self.params, jnp.asarray(latents))

    def predict_noise(
        self,
        latents: jax.Array,
        timesteps: jax.Array,
        tokens: jax.Array,
        reference_cameras: Cameras,
        target_cameras: Cameras,
    ) -> jax.Array:
        """The network's output [B, M, h, w, C]: the noise, or v for a network trained so.

        latents: [B, M, h, w, C]; timesteps: [B]; tokens: [B, N, L, D]; cameras of B scenes.
        """
        return self._predict(
            self.params,
            jnp.asarray(latents),
            jnp.asarray(timesteps),
            jnp.asarray(tokens),
            reference_cameras,
            target_cameras,
        )

    def save_torch(self, folder: str | Path, dtype: str | None = None) -> None:
        """Writes a PyTorch pipeline folder, whole or not at all, that `load` reads again.

        folder: empty, or not there yet. dtype: "float32", "float16" or "bfloat16"; None writes
        every tensor in the type it was read in, and in float32 a network that was trained since,
        so that no value changes. Raises UserError as `writing.save_pipeline_folder` does.
        """
        writing.save_pipeline_folder(
            folder, self.model, self.params, self.facts, self.stored, dtype
        )

    def _reference_pixels(self, images: np.ndarray | Sequence[Any]) -> np.ndarray:
        if not hasattr(images, "ndim"):
            images = np.stack([self._read(image) for image in images]) if len(images) else images
        pixels = np.asarray(images, np.float32)
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
            raise UserError(
                f"reference images have shape {pixels.shape}; needed [N, H, W, 3] with N >= 1."
            )
        if pixels.shape[1] != pixels.shape[2]:
            raise UserError(
                f"reference images are {pixels.shape[1]} x {pixels.shape[2]} pixels; needed square "
                "ones. Cut them, or pass PIL images or paths, which are cut to the central square."
            )
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise UserError(
                f"reference images span [{pixels.min():.3g}, {pixels.max():.3g}]; needed finite "
                "values in [0, 1] (divide 8-bit values by 255)."
            )
        return pixels

    def _read(self, image: Any) -> np.ndarray:
        if isinstance(image, (str, Path)):
            try:
                data = Path(image).read_bytes()
            except OSError as error:
                raise UserError(f"cannot read the image {image}: {error}") from error
            picture, orientation = images_lib.decode_tagged(data, f"the image {image}")
        else:
            mode = "RGBA" if image.has_transparency_data else "RGB"
            picture, orientation = np.asarray(image.convert(mode)), images_lib.orientation_of(image)
        picture = images_lib.turn_upright(picture, orientation)
        picture, _ = images_lib.square_crop(picture, np.eye(3))
        flat = images_lib.on_background(picture, images_lib.WHITE)
        resized = images_lib.resize_image(flat, self.resolution, self.resolution)
        return resized / np.float32(255)


def _checked_poses(cameras: Cameras, name: str) -> np.ndarray:
    if not isinstance(cameras, Cameras):
        raise UserError(f"{name} are a {type(cameras).__name__}; needed Cameras(c2w).")
    c2w = np.asarray(cameras.c2w, np.float32)
    cameras_lib.check_poses(c2w, name)
    if c2w.ndim != 3 or len(c2w) == 0:
        raise UserError(f"{name} have shape {c2w.shape}; needed [views, 4, 4] with a view at least")
    return c2w


def _load_workdir(
    workdir: Path,
    step: int | None,
    dtype: str,
    cape: str | None,
    weights: str | None,
    mesh: Mesh,
) -> Pipeline:
    config = checkpoint.read_config(workdir).copy_and_resolve_references()
    if cape not in (None, config.cape):
        raise UserError(f"cape = {cape!r}, but {workdir} was trained with {config.cape!r}.")
    with config.unlocked():
        config.dtype = dtype
        config.mesh.data = config.mesh.fsdp = 1
    model = eschernet.from_config(config)
    abstract = abstract_state(model, make_optimizer(config.optimizer), mesh, config)
    step = stored_params.find_step(workdir, step)
    weights = weights or ("ema" if config.ema.enabled else "raw")
    params = stored_params.restore_sampling_params(workdir, abstract, step, weights)
    references, targets = zip(*config_lib.view_counts(config), strict=True)
    fewest = min(references)
    is_procedural = config.data.source == "procedural" and not config.data.zoom
    facts = dataclasses.replace(
        _facts_of_model(model, config.resolution),
        translation_unit="that of the scenes it was trained on",
        num_references=(min(config.min_references or fewest, fewest), max(references)),
        num_targets=targets[0] if len(set(targets)) == 1 else None,
        weights=weights,
        trained_steps=step,
        guidance_scale=config.guidance_scale,
        fov_deg=procedural.FOV_DEG if is_procedural else None,
        camera_radius=procedural.RADIUS_RANGE if is_procedural else None,
    )
    return Pipeline(model, params, config.resolution, facts, mesh=mesh)


def _load_pipeline_folder(
    folder: Path, name: str, dtype: str, cape: str | None, mesh: Mesh
) -> Pipeline:
    if not (folder / facts_lib.FILE_NAME).exists():
        facts_lib.of_folder(folder, None, cape, name)  # refuses before gigabytes are read
    everywhere = NamedSharding(mesh, PartitionSpec())
    read = pytorch.read_pipeline_folder(
        folder, functools.partial(jax.device_put, device=everywhere)
    )
    for report in read.reports:
        if report.ignored:
            log.info("%s: ignored %s, which this network has no place for",
                     report.source, ", ".join(report.ignored))  # fmt: skip
    facts = facts_lib.of_folder(folder, read.facts, cape, name)
    latents = read.vae if facts.patch is None else PixelCodec(facts.patch)
    assert latents is not None  # only a folder on pixels is read without vae/
    model = eschernet.from_parts(
        read.unet, read.image_encoder, latents, read.scheduler, facts.cape, jnp.dtype(dtype)
    )
    if facts.resolution % model.reduction:
        raise UserError(
            f"{folder / facts_lib.FILE_NAME}: resolution = {facts.resolution}; needed a multiple "
            f"of {model.reduction}, by which latents shrink an image."
        )
    return Pipeline(model, read.params, facts.resolution, facts, read.stored, mesh)


def _facts_of_model(model: EscherNet, resolution: int) -> Facts:
    patch = model.codec.patch if isinstance(model.codec, PixelCodec) else None
    return Facts(model.cape, resolution, patch=patch)
