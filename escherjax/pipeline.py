"""The object users hold: load weights, give pictures with cameras, get new views."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from escherjax import buckets
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
from escherjax.view_sampler import OnStep, ViewSampler
from escherjax.weights import facts as facts_lib
from escherjax.weights import hub, pytorch, writing
from escherjax.weights.facts import Facts
from escherjax.weights.stored import StoredFormat

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

    path: a folder, or where none exists a hub id `owner/name[@revision]` of a pipeline folder.
    dtype: compute dtype, "float32" or "bfloat16". cape: camera encoding of a pipeline folder,
    before what its escherjax.json says; without that file, None reads it from a folder name that
    contains "6dof" or "4dof". weights: of a work directory, "ema" for the averaged parameters or
    "raw"; None takes the average where the run kept one. view_devices: how many local devices share
    the target views of a scene; scene_devices: how many such groups share the scenes of
    `generate_batch`; each device has a copy of the parameters.
    Raises UserError if the folder is none of these, its weights do not fit together, or the hub
    refuses.
    """
    if weights not in (None, "ema", "raw"):
        raise UserError(f"weights = {weights!r}; needed 'ema', 'raw' or None.")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype = {dtype!r}; needed 'float32' or 'bfloat16'.")
    mesh = sharding.view_mesh(view_devices, scene_devices)
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
    mesh: devices that share scenes and target views, from `sharding.view_mesh`, on all of which
    params lie; None for one device.
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
        self.facts = facts or _facts_of_model(model, resolution)
        self.stored = stored
        self._encode_images = jax.jit(model.encode_images)
        self._encode_latents = jax.jit(model.encode_latents)
        self._decode_latents = jax.jit(model.decode_latents)
        self._predict = jax.jit(model.predict)
        self._sampler = ViewSampler(model, mesh or sharding.single_device_mesh())

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
        on_step: OnStep | None = None,
    ) -> np.ndarray:
        """New views of one scene, all targets jointly.

        images: [N, H, H, 3] float in [0, 1] of any size, or a list of PIL images or paths
        (turned as their EXIF orientation says, composited on white, cut to the central square).
        reference_cameras: c2w [N, 4, 4], of the turned pictures; target_cameras: c2w [M, 4, 4].
        initial_latents: [M, h, w, C] standard normal, drawn from `seed` if None.
        sampler: "ddim", "dpmpp_2m" or "unipc"; eta: noise that DDIM adds at each step, 0 to 1;
        guidance_rescale: 0 to 1 (see `escherjax.diffusion`).
        on_step: called on the host after each step with (steps done, num_steps, clean_latents),
        the current estimate of the clean latents, [M, h, w, C] as `decode_latents` wants them.
        What it raises ends the sampling and is raised here.
        One program is compiled for each bucket of (N, M): see `escherjax.buckets`.
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
        num_references, references = _one_bucket(len(pixels), self.reference_bucket)
        num_targets, targets = _one_bucket(len(target_c2w), self.target_bucket)
        if initial_latents is not None:
            shape = (len(target_c2w),)
            initial_latents = self._checked_latents(initial_latents, shape)[None]
        views = self._draw(
            pixels[None],
            reference_c2w[None],
            target_c2w[None],
            references,
            targets,
            (num_references, num_targets),
            [seed],
            initial_latents,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            eta=eta,
            on_step=on_step and _of_one_scene(on_step, len(target_c2w)),
            guidance_rescale=guidance_rescale,
        )
        return views[0, : len(target_c2w)]

    def generate_batch(
        self,
        images: np.ndarray,
        reference_cameras: Cameras,
        target_cameras: Cameras,
        num_references: Sequence[int] | None = None,
        num_targets: Sequence[int] | None = None,
        num_steps: int = 50,
        guidance_scale: float = 3.0,
        seeds: Sequence[int] = (0,),
        initial_latents: np.ndarray | None = None,
        sampler: str = "ddim",
        eta: float = 0.0,
        guidance_rescale: float = 0.0,
        on_step: OnStep | None = None,
    ) -> np.ndarray:
        """New views of B scenes in one call, each scene's targets jointly; as `generate` for each.

        images: [B, N, H, H, 3] float in [0, 1]; cameras: c2w [B, N, 4, 4] and [B, M, 4, 4].
        num_references, num_targets: [B], how many of the N and M are real, those in front; None for
        all. What stands behind them is ignored, whatever it is.
        seeds: one for each scene, or one for all; initial_latents: [B, M, h, w, C] or None. The
        noise of a view follows from its scene's seed and its own number, so that neither padding
        nor the rest of the batch changes it.
        Each shape (B, N, M, H) compiles a program: keep to few, such as `reference_bucket` and
        `target_bucket` give, and fill the last batch up with copies. Scenes are split over the
        devices of `load(..., scene_devices=)`, best as many as B or a divisor of it.
        on_step: as in `generate`, with latents [B, M, h, w, C], of padding too.
        Returns [B, M, R, R, 3] float32 in [0, 1], R = `resolution`; behind a scene's num_targets
        zeros. Raises UserError as `generate` does.
        """
        pixels = np.asarray(images, np.float32)
        if pixels.ndim != 5 or 0 in pixels.shape[:2]:
            raise UserError(
                f"reference images have shape {pixels.shape}; needed [B, N, H, H, 3] with B and "
                "N >= 1."
            )
        batch, most_references = pixels.shape[:2]
        reference_c2w = _posed_batch(reference_cameras, batch, "reference")
        target_c2w = _posed_batch(target_cameras, batch, "target")
        most_targets = target_c2w.shape[1]
        if reference_c2w.shape[1] != most_references:
            raise UserError(
                f"{most_references} reference images a scene but {reference_c2w.shape[1]} "
                "reference cameras; needed one camera for each image."
            )
        references = _checked_counts(num_references, batch, most_references, "num_references")
        targets = _checked_counts(num_targets, batch, most_targets, "num_targets")
        for i in range(batch):
            self._reference_pixels(pixels[i, : None if references is None else references[i]])
            for c2w, counts, role in (
                (reference_c2w, references, "reference"), (target_c2w, targets, "target")
            ):  # fmt: skip
                cameras_lib.check_poses(
                    c2w[i, : None if counts is None else counts[i]], f"scene {i}: {role} cameras"
                )
        if len(seeds) not in (1, batch):
            raise UserError(f"{len(seeds)} seeds for {batch} scenes; needed one each, or one.")
        seeds = [*seeds] * (batch // len(seeds))
        if initial_latents is not None:
            initial_latents = self._checked_latents(initial_latents, (batch, most_targets))
        missing = -most_targets % self._sampler.view_devices
        if missing and targets is None:
            targets = np.full(batch, most_targets, np.int32)
        views = self._draw(
            pixels,
            reference_c2w,
            target_c2w,
            references,
            targets,
            (most_references, most_targets + missing),
            seeds,
            initial_latents,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            eta=eta,
            on_step=on_step,
            guidance_rescale=guidance_rescale,
        )[:, :most_targets]
        if targets is not None:
            behind = np.arange(most_targets) >= targets[:, None]
            views = np.where(behind[..., None, None, None], np.float32(0), views)
        return views

    def reference_bucket(self, num_references: int) -> int:
        """The number of references, as many or more, that `generate` compiles a program for."""
        return buckets.reference_bucket(num_references)

    def target_bucket(self, num_targets: int) -> int:
        """The number of targets, as many or more, that `generate` compiles a program for."""
        return buckets.target_bucket(num_targets, self._sampler.view_devices)

    def _draw(
        self,
        pixels: np.ndarray,
        reference_c2w: np.ndarray,
        target_c2w: np.ndarray,
        num_references: np.ndarray | None,
        num_targets: np.ndarray | None,
        sizes: tuple[int, int],
        seeds: Sequence[int],
        latents: np.ndarray | None,
        **settings: Any,
    ) -> np.ndarray:
        """Views [B, M, R, R, 3] of checked input, M and the number of references as in `sizes`.

        num_references, num_targets: [B], or None where the views given are as many as `sizes`.
        """
        size, most_targets = sizes
        wrong = [seed for seed in seeds if not 0 <= seed < 2**32]
        if wrong:
            raise UserError(f"seed = {wrong[0]}; needed a whole number from 0 to {2**32 - 1}.")
        if latents is None:
            shape = (most_targets, *self.model.latent_shape(self.resolution))
            latents = np.stack([jax.random.normal(jax.random.key(seed), shape) for seed in seeds])
        return self._sampler(
            self.params,
            buckets.fill(pixels, num_references, size) * 2 - 1,
            buckets.fill(reference_c2w, num_references, size),
            buckets.fill(target_c2w, num_targets, most_targets),
            buckets.fill(latents, num_targets, most_targets),
            np.array(seeds, np.uint32),
            num_references,
            num_targets,
            **settings,
        )

    def _checked_latents(self, latents: Any, leading: tuple[int, ...]) -> np.ndarray:
        latents = np.asarray(latents, np.float32)
        shape = (*leading, *self.model.latent_shape(self.resolution))
        axes = len(leading)
        if latents.ndim != len(shape) or (*latents.shape[:axes], latents.shape[-1]) != (
            *leading, shape[-1]
        ):  # fmt: skip
            raise UserError(
                f"initial_latents have shape {latents.shape}; needed {shape} (sides may differ)"
            )
        return latents

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


def _posed_batch(cameras: Cameras, batch: int, role: str) -> np.ndarray:
    if not isinstance(cameras, Cameras):
        raise UserError(f"{role} cameras are a {type(cameras).__name__}; needed Cameras(c2w).")
    c2w = np.asarray(cameras.c2w, np.float32)
    if c2w.ndim != 4 or c2w.shape[0] != batch or c2w.shape[1] == 0:
        raise UserError(
            f"{role} cameras have shape {c2w.shape}; needed [{batch}, views, 4, 4] with a view at "
            "least."
        )
    return c2w


def _checked_counts(
    counts: Sequence[int] | None, batch: int, most: int, name: str
) -> np.ndarray | None:
    if counts is None:
        return None
    found = np.asarray(counts)
    if found.shape != (batch,) or found.dtype.kind not in "iu" or not np.all(
        (found >= 1) & (found <= most)
    ):  # fmt: skip
        raise UserError(f"{name} = {counts}; needed {batch} whole numbers from 1 to {most}.")
    return found.astype(np.int32)


def _of_one_scene(on_step: OnStep, num_targets: int) -> OnStep:
    return lambda step, num_steps, latents: on_step(step, num_steps, latents[0, :num_targets])


def _one_bucket(count: int, bucket: Callable[[int], int]) -> tuple[int, np.ndarray | None]:
    """(size of the bucket, the count [1] by which it is masked if other counts share it)."""
    size = bucket(count)
    shared = size > 1 and bucket(size - 1) == size
    return size, np.array([count], np.int32) if shared else None


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
