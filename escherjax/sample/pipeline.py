"""The object users hold: load weights, give pictures with cameras, get new views."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from escherjax.cameras import Cameras
from escherjax.devices import mesh as sharding
from escherjax.errors import UserError
from escherjax.models.diffusion.sampling import Sampling
from escherjax.models.eschernet import EscherNet, Params
from escherjax.models.pixels import PixelCodec
from escherjax.sample import buckets, extra_targets, memory, plans, scene_batch
from escherjax.sample.memory import MemoryEstimate
from escherjax.sample.plans import Plan
from escherjax.sample.program import OnStep, ViewSampler
from escherjax.weights import writing
from escherjax.weights.facts import Facts
from escherjax.weights.stored import StoredFormat

_DEFAULT = Sampling()


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
        self.facts = facts or facts_of_model(model, resolution)
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
        plan: str | Plan = "joint",
        min_targets: int = 0,
    ) -> np.ndarray:
        """New views of one scene, all targets jointly or as a plan says.

        images: [N, H, H, 3] float in [0, 1] of any size, or a list of PIL images or paths
        (turned as their EXIF orientation says, composited on white, cut to the central square).
        reference_cameras: c2w [N, 4, 4], of the turned pictures; target_cameras: c2w [M, 4, 4].
        initial_latents: [M, h, w, C] standard normal, drawn from `seed` if None.
        sampler: "ddim", "dpmpp_2m" or "unipc"; eta: noise that DDIM adds at each step, 0 to 1;
        guidance_rescale: 0 to 1 (see `escherjax.models.diffusion`).
        on_step: called on the host after each step with (steps done, num_steps, clean_latents),
        the current estimate of the clean latents, [M, h, w, C] as `decode_latents` wants them.
        What it raises ends the sampling and is raised here. With a plan of several passes the
        steps are those of all, and views whose pass has not begun are zeros.
        One program is compiled for each bucket of (N, M): see `escherjax.sample.buckets`.
        plan: a name or a plan of `view_plans`; see `plan_views`. min_targets: views that are drawn
        together at least: cameras beside the targets are added, and their views dropped
        (`extra_targets`). The noise of a view follows from the seed and its number alone, whatever
        the plan.
        Returns [M, R, R, 3] float32 in [0, 1], R = `resolution`.
        Raises UserError for empty or unequal views, bad poses, values outside [0, 1], NaN, and
        settings that the sampler does not know.
        """
        pixels = scene_batch.reference_pixels(images, self.resolution)
        reference_c2w = scene_batch.checked_poses(reference_cameras, "reference cameras")
        target_c2w = scene_batch.checked_poses(target_cameras, "target cameras")
        if len(reference_c2w) != len(pixels):
            raise UserError(
                f"{len(pixels)} reference images but {len(reference_c2w)} reference cameras; "
                "needed one camera for each image."
            )
        sampling = Sampling(num_steps, guidance_scale, guidance_rescale, sampler, eta, seed)
        if min_targets < 0:
            raise UserError(f"min_targets = {min_targets}; needed 0 for none, or more.")
        if isinstance(plan, str):
            plan = self.plan_views(reference_cameras, target_cameras, plan, None, guidance_scale)
        plans.check_plan(plan, len(pixels), len(target_c2w))
        counts = [(one.num_conditioning, max(len(one.targets), min_targets)) for one in plan.passes]
        num_references, mask_references = _bucket([n for n, _ in counts], self.reference_bucket)
        num_targets, mask_targets = _bucket([m for _, m in counts], self.target_bucket)
        num_views = len(target_c2w)
        latents = np.asarray(self._noise(seed, num_views + min_targets))
        if initial_latents is not None:
            given = self._checked_latents(initial_latents, (num_views,))
            extra = jax.random.normal(jax.random.key(seed), (len(latents), *given.shape[1:]))
            latents = np.concatenate([given, extra[num_views:]])

        clean, pass_numbers = np.zeros_like(latents[:num_views]), itertools.count()

        def draw(images, reference_c2w, target_c2w, numbers):
            missing = max(min_targets - len(numbers), 0)
            extra = extra_targets.extra_cameras(reference_c2w, target_c2w, missing)
            drawn = np.concatenate([numbers, num_views + np.arange(missing)])
            passes_before = next(pass_numbers)

            def watch(step, num_steps, latents):
                clean[numbers] = latents[0, : len(numbers)]
                before = passes_before * num_steps
                on_step(before + step, len(plan.passes) * num_steps, clean.copy())

            return self._draw(
                images[None],
                reference_c2w[None],
                np.concatenate([target_c2w, extra])[None],
                np.array([len(images)], np.int32) if mask_references else None,
                np.array([len(drawn)], np.int32) if mask_targets else None,
                (num_references, num_targets),
                [seed],
                latents[drawn][None],
                drawn[None],
                sampling,
                watch if on_step else None,
            )[0, : len(numbers)]

        return plans.run_plan(plan, draw, pixels, reference_c2w, target_c2w)

    def plan_views(
        self,
        reference_cameras: Cameras,
        target_cameras: Cameras,
        name: str = "auto",
        chunk: int | None = None,
        guidance_scale: float | None = None,
        **settings: Any,
    ) -> Plan:
        """Which targets are drawn together, and from what; settings: see `view_plans.make_plan`.

        chunk: most targets in a pass; None takes, for auto, as many as memory is estimated to hold,
        else `view_plans.DEFAULT_CHUNK`. Raises UserError as `make_plan` does, for bad poses, and
        if memory holds no single view.
        """
        reference_c2w = scene_batch.checked_poses(reference_cameras, "reference cameras")
        target_c2w = scene_batch.checked_poses(target_cameras, "target cameras")
        if name == "auto" and chunk is None:
            conditioning = plans.conditioning_budget(
                len(reference_c2w), settings.get("max_conditioning")
            )
            chunk = memory.largest_chunk(
                lambda count: self.estimate_memory(conditioning, count, guidance_scale),
                len(target_c2w),
            )
        return plans.make_plan(name, reference_c2w, target_c2w, chunk=chunk, **settings)

    def estimate_memory(
        self, num_conditioning: int, num_targets: int, guidance_scale: float | None = None
    ) -> MemoryEstimate:
        """The memory of one pass, on each device, for the bucket that holds so many views.

        guidance_scale: None for that of the weights.
        """
        return memory.estimate(
            self.model,
            self.params,
            self.reference_bucket(num_conditioning),
            self.target_bucket(num_targets),
            self.resolution,
            self.facts.guidance_scale if guidance_scale is None else guidance_scale,
            self._sampler.view_devices,
        )

    def generate_batch(
        self,
        images: np.ndarray,
        reference_cameras: Cameras,
        target_cameras: Cameras,
        sampling: Sampling = _DEFAULT,
        *,
        num_references: Sequence[int] | None = None,
        num_targets: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
        initial_latents: np.ndarray | None = None,
        on_step: OnStep | None = None,
    ) -> np.ndarray:
        """New views of B scenes in one call, each scene's targets jointly; as `generate` for each.

        images: [B, N, H, H, 3] float in [0, 1]; cameras: c2w [B, N, 4, 4] and [B, M, 4, 4].
        num_references, num_targets: [B], how many of the N and M are real, those in front; None for
        all. What stands behind them is ignored, whatever it is.
        sampling: a guidance_scale of None is that of the weights. seeds: one for each scene, or one
        for all; None for `sampling.seed`; initial_latents: [B, M, h, w, C] or None. The
        noise of a view follows from its scene's seed and its own number, so that neither padding
        nor the rest of the batch changes it.
        Each shape (B, N, M, H) compiles a program: keep to few, such as `reference_bucket` and
        `target_bucket` give, and fill the last batch up with copies. Scenes are split over the
        devices of `load(..., scene_devices=)`, best as many as B or a divisor of it.
        on_step: as in `generate`, with latents [B, M, h, w, C], of padding too.
        Returns [B, M, R, R, 3] float32 in [0, 1], R = `resolution`; behind a scene's num_targets
        zeros. Raises UserError as `generate` does.
        """
        seeds = [sampling.seed] if seeds is None else seeds
        for seed in seeds:
            dataclasses.replace(sampling, seed=seed)  # checks it
        batch = scene_batch.check_batch(
            images, reference_cameras, target_cameras, num_references, num_targets, seeds
        )
        num_scenes, most_references = batch.pixels.shape[:2]
        most_targets, targets = batch.target_c2w.shape[1], batch.num_targets
        if initial_latents is not None:
            initial_latents = self._checked_latents(initial_latents, (num_scenes, most_targets))
        missing = -most_targets % self._sampler.view_devices
        if missing and targets is None:
            targets = np.full(num_scenes, most_targets, np.int32)
        views = self._draw(
            batch.pixels,
            batch.reference_c2w,
            batch.target_c2w,
            batch.num_references,
            targets,
            (most_references, most_targets + missing),
            batch.seeds,
            initial_latents,
            np.tile(np.arange(most_targets), (num_scenes, 1)),
            sampling,
            on_step,
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
        view_numbers: np.ndarray,
        sampling: Sampling,
        on_step: OnStep | None,
    ) -> np.ndarray:
        """Views [B, M, R, R, 3] of checked input, M and the number of references as in `sizes`.

        num_references, num_targets: [B], or None where the views given are as many as `sizes`.
        view_numbers: [B, targets given], by which eta's noise is drawn.
        """
        size, most_targets = sizes
        if latents is None:
            latents = np.stack([self._noise(seed, most_targets) for seed in seeds])
        return self._sampler(
            self.params,
            buckets.fill(pixels, num_references, size) * 2 - 1,
            buckets.fill(reference_c2w, num_references, size),
            buckets.fill(target_c2w, num_targets, most_targets),
            buckets.fill(latents, num_targets, most_targets),
            np.array(seeds, np.uint32),
            num_references,
            num_targets,
            buckets.fill(view_numbers, num_targets, most_targets).astype(np.int32),
            sampling.resolve(self.facts.guidance_scale),
            on_step,
        )

    def _noise(self, seed: int, num_views: int) -> jax.Array:
        """Standard normal [V, h, w, C]; a view's does not depend on how many there are."""
        shape = (num_views, *self.model.latent_shape(self.resolution))
        return jax.random.normal(jax.random.key(seed), shape)

    def _checked_latents(self, latents: Any, leading: tuple[int, ...]) -> np.ndarray:
        latents = np.asarray(latents, np.float32)
        shape = (*leading, *self.model.latent_shape(self.resolution))
        axes = len(leading)
        if latents.ndim != len(shape) or (*latents.shape[:axes], latents.shape[-1]) != (
            *leading,
            shape[-1],
        ):
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


def _bucket(counts: Sequence[int], bucket: Callable[[int], int]) -> tuple[int, bool]:
    """(size of the bucket that holds all counts, whether it is masked since others share it)."""
    size = bucket(max(counts))
    return size, min(counts) < size or (size > 1 and bucket(size - 1) == size)


def facts_of_model(model: EscherNet, resolution: int) -> Facts:
    """What is known of weights from their network alone."""
    patch = model.codec.patch if isinstance(model.codec, PixelCodec) else None
    return Facts(model.cape, resolution, patch=patch)
