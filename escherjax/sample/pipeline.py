"""The object users hold: load weights, give pictures with cameras, get new views."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from escherjax.cameras import Cameras
from escherjax.devices import mesh as sharding
from escherjax.errors import UserError
from escherjax.models.diffusion.sampling import Sampling
from escherjax.models.eschernet import EscherNet, Params, SceneBatch
from escherjax.models.vae import PixelCodec
from escherjax.sample import memory, plans, scene_batch
from escherjax.sample.memory import MemoryEstimate
from escherjax.sample.plans import Plan
from escherjax.sample.program import OnStep, SamplingProgram
from escherjax.weights import writing
from escherjax.weights.facts import ModelCard
from escherjax.weights.reading import PipelineFolder

_DEFAULT = Sampling()


class Pipeline:
    """A network with its parameters; every method is a pure function of its arguments.

    Args:
        model: sizes and modules.
        params: {"unet", "image_encoder", "vae"}.
        resolution: side in pixels of the views it makes.
        facts: what the weights expect of cameras; None if nothing but the model is known.
        stored: how the folder was written that they were read from; None for no folder.
        mesh: devices that share scenes and target views, from `devices.mesh.view_mesh`, on all of
            which params lie; None for one device.
    """

    def __init__(
        self,
        model: EscherNet,
        params: Params,
        resolution: int,
        facts: ModelCard | None = None,
        stored: PipelineFolder | None = None,
        mesh: Mesh | None = None,
    ):
        self.model, self.params, self.resolution = model, params, resolution
        self.facts = facts or facts_of_model(model, resolution)
        self.stored = stored
        self._encode_images = jax.jit(model.encode_images)
        self._encode_latents = jax.jit(model.encode_latents)
        self._decode_latents = jax.jit(model.decode_latents)
        self._predict = jax.jit(model.predict)
        self._program = SamplingProgram(model, mesh or sharding.single_device_mesh())

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
        """Generates new views of one scene, all targets jointly or by a plan.

        One program is compiled for each bucket of (N, M): see `escherjax.sample.scene_batch`. The
        noise of a view follows from the seed and its number alone, whatever the plan.

        Args:
            images: [N, H, H, 3] float in [0, 1] of any size, or a list of PIL images or paths
                (turned upright by their EXIF orientation, composited on white, cut to the central
                square).
            reference_cameras: c2w [N, 4, 4], of the turned pictures.
            target_cameras: c2w [M, 4, 4].
            num_steps: denoising steps, at least 1.
            guidance_scale: weight of classifier-free guidance, 1 or less for none.
            seed: of the noise, 0 to 2^32 - 1.
            initial_latents: [M, h, w, C] standard normal; None draws them from `seed`.
            sampler: "ddim", "dpmpp_2m" or "unipc".
            eta: noise that DDIM adds at each step, 0 to 1.
            guidance_rescale: 0 to 1, see `Sampling`.
            on_step: called on the host after each step with (steps done, num_steps, latents), the
                predicted clean latents, [M, h, w, C] as `decode_latents` wants them. What it raises
                ends the sampling and is raised here. With a plan of several passes the steps are
                those of all, and views whose pass has not begun are zeros.
            plan: a name or a `Plan`; see `plan_views`.
            min_targets: how many views are generated together at least: cameras beside the targets
                are added (`plans.extra_cameras`), and their views dropped.

        Returns:
            [M, R, R, 3] float32 in [0, 1], R = `resolution`.

        Raises:
            UserError: for empty or unequal views, bad poses, values outside [0, 1], NaN, and
                settings that the sampler does not know.
        """
        sampling = self._resolve(
            Sampling(num_steps, guidance_scale, guidance_rescale, sampler, eta, seed)
        )
        pixels = scene_batch.reference_pixels(images, self.resolution)
        reference_c2w = scene_batch.checked_poses(reference_cameras, "reference cameras")
        target_c2w = scene_batch.checked_poses(target_cameras, "target cameras")
        scene_batch.check_scene(pixels, reference_c2w, target_c2w)
        num_views = len(target_c2w)
        if min_targets < 0:
            raise UserError(f"min_targets must be 0 (none) or more, got {min_targets}.")
        if isinstance(plan, str):
            plan = self.plan_views(reference_cameras, target_cameras, plan, None, guidance_scale)
        plans.check_plan(plan, len(pixels), num_views)
        size_references, mask_references = scene_batch.common_bucket(
            [one.num_conditioning for one in plan.passes], self.reference_bucket
        )
        size_targets, mask_targets = scene_batch.common_bucket(
            [max(len(one.targets), min_targets) for one in plan.passes], self.target_bucket
        )
        given = self._checked_latents(initial_latents, (num_views,))
        latents = self._noise(seed, num_views + min_targets, given)

        views: dict[int, np.ndarray] = {}
        clean = np.zeros_like(latents[:num_views])
        for number, one in enumerate(plan.passes):
            targets = list(one.targets)
            shown, shown_c2w = plans.conditioning(one, pixels, reference_c2w, views, target_c2w)
            missing = max(min_targets - len(targets), 0)
            extra = plans.extra_cameras(shown_c2w, target_c2w[targets], missing)
            numbers = np.array([*targets, *range(num_views, num_views + missing)], np.int32)
            scene = SceneBatch(
                images=shown[None] * 2 - 1,
                reference_cameras=Cameras(shown_c2w[None]),
                target_cameras=Cameras(np.concatenate([target_c2w[targets], extra])[None]),
                latents=latents[None, numbers],
                num_references=np.array([len(shown)], np.int32) if mask_references else None,
                num_targets=np.array([len(numbers)], np.int32) if mask_targets else None,
                seeds=np.array([seed], np.uint32),
                view_numbers=numbers[None],
            )
            report = None
            if on_step is not None:
                done = number, len(plan.passes)
                report = functools.partial(_report_step, on_step, clean, targets, done)
            made = self._program(
                self.params,
                scene_batch.pad(scene, size_references, size_targets),
                sampling,
                report,
            )
            views.update(zip(targets, made[0], strict=False))  # extra views and padding are behind
        return np.stack([views[i] for i in range(num_views)])

    def plan_views(
        self,
        reference_cameras: Cameras,
        target_cameras: Cameras,
        name: str = "auto",
        chunk: int | None = None,
        guidance_scale: float | None = None,
        **settings: Any,
    ) -> Plan:
        """Plans which targets are generated together, and from what.

        Args:
            reference_cameras: c2w [N, 4, 4].
            target_cameras: c2w [M, 4, 4].
            name: "joint", "anchors", "autoregressive" or "auto"; see `plans`.
            chunk: most targets in a pass; None takes, for auto, as many as memory is estimated to
                hold, else `plans.DEFAULT_CHUNK`.
            guidance_scale: None for that of the weights.
            settings: see `plans.make_plan`.

        Raises:
            UserError: as `make_plan` does, for bad poses, and if memory holds no single view.
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
            self._program.view_devices,
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
        """Generates views of B scenes in one call, each scene's targets jointly; see `generate`.

        Each shape (B, N, M, H) compiles a program: keep to few, such as `reference_bucket` and
        `target_bucket` give, and fill the last batch up with copies. Scenes are split over the
        devices of `load(..., scene_devices=)`, best as many as B or a divisor of it.

        Args:
            images: [B, N, H, H, 3] float in [0, 1].
            reference_cameras: c2w [B, N, 4, 4].
            target_cameras: c2w [B, M, 4, 4].
            sampling: how views are sampled; a guidance_scale of None is that of the weights.
            num_references: [B], how many of the N are real, those in front; None for all. What
                stands behind them is ignored, whatever it is.
            num_targets: [B], likewise of the M.
            seeds: one for each scene, or one for all; None for `sampling.seed`. The noise of a view
                follows from its scene's seed and its own number, so that neither padding nor the
                rest of the batch changes it.
            initial_latents: [B, M, h, w, C] standard normal; None draws them from the seeds.
            on_step: as in `generate`, with latents [B, M, h, w, C], of padding too.

        Returns:
            [B, M, R, R, 3] float32 in [0, 1], R = `resolution`; zeros past a scene's num_targets.

        Raises:
            UserError: as `generate` does.
        """
        sampling = self._resolve(sampling)
        seeds = [sampling.seed] if seeds is None else seeds
        for seed in seeds:
            dataclasses.replace(sampling, seed=seed)  # raises for a seed that is none
        scenes = scene_batch.check_batch(
            images, reference_cameras, target_cameras, num_references, num_targets, seeds
        )
        num_scenes, num_views = scenes.target_cameras.c2w.shape[:2]
        latents = self._checked_latents(initial_latents, (num_scenes, num_views))
        if latents is None:
            latents = np.stack([self._noise(seed, num_views) for seed in scenes.seeds.tolist()])
        size = num_views + -num_views % self._program.view_devices
        targets = scenes.num_targets
        if targets is None and size > num_views:
            targets = np.full(num_scenes, num_views, np.int32)
        scenes = dataclasses.replace(
            scenes,
            num_targets=targets,
            latents=latents,
            view_numbers=np.tile(np.arange(num_views, dtype=np.int32), (num_scenes, 1)),
        )
        scenes = scene_batch.pad(scenes, scenes.images.shape[1], size)
        views = self._program(self.params, scenes, sampling, on_step)[:, :num_views]
        if targets is not None:
            behind = np.arange(num_views) >= targets[:, None]
            views = np.where(behind[..., None, None, None], np.float32(0), views)
        return views

    def reference_bucket(self, num_references: int) -> int:
        """The number of references, as many or more, that `generate` compiles a program for."""
        return scene_batch.reference_bucket(num_references)

    def target_bucket(self, num_targets: int) -> int:
        """The number of targets, as many or more, that `generate` compiles a program for."""
        return scene_batch.target_bucket(num_targets, self._program.view_devices)

    def _resolve(self, sampling: Sampling) -> Sampling:
        return sampling.resolve(self.facts.guidance_scale, self.model.schedule.num_train_timesteps)

    def _noise(self, seed: int, num_views: int, first: np.ndarray | None = None) -> np.ndarray:
        """Standard normal [V, h, w, C]; a view's does not depend on how many there are.

        first: the noise of the first views, where it is given.
        """
        if first is None:
            first = np.zeros((0, *self.model.latent_shape(self.resolution)), np.float32)
        noise = jax.random.normal(jax.random.key(seed), (num_views, *first.shape[1:]))
        return np.concatenate([first, noise[len(first) :]])

    def _checked_latents(self, latents: Any, leading: tuple[int, ...]) -> np.ndarray | None:
        """Initial latents as float32 [*leading, h, w, C], of any h and w; None stays None."""
        if latents is None:
            return None
        latents = np.asarray(latents, np.float32)
        shape = (*leading, *self.model.latent_shape(self.resolution))
        is_like = latents.ndim == len(shape) and latents.shape[-1] == shape[-1]
        if not is_like or latents.shape[: len(leading)] != leading:
            raise UserError(
                f"initial_latents must have the shape {shape} (sides may differ), got "
                f"{latents.shape}."
            )
        return latents

    def encode_images(self, images: ArrayLike) -> jax.Array:
        """Reference tokens [N, L, D] of images [N, H, W, 3] in [-1, 1]."""
        return self._encode_images(self.params, jnp.asarray(images))

    def encode_latents(self, images: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """(mean, log variance), each [N, h, w, C], of images [N, H, W, 3] in [-1, 1], unscaled."""
        return self._encode_latents(self.params, jnp.asarray(images))

    def decode_latents(self, latents: ArrayLike) -> jax.Array:
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
        """Runs the network once.

        Args:
            latents: [B, M, h, w, C], noisy.
            timesteps: [B] int.
            tokens: [B, N, L, D] of `encode_images`.
            reference_cameras: c2w [B, N, 4, 4].
            target_cameras: c2w [B, M, 4, 4].

        Returns:
            [B, M, h, w, C] float32: the noise, or v or x0 for a network trained so.
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

        Args:
            folder: empty, or not there yet.
            dtype: "float32", "float16" or "bfloat16"; None writes every tensor in the type it was
                read in, and in float32 a network that was trained since, so that no value changes.

        Raises:
            UserError: as `writing.save_pipeline_folder` does.
        """
        writing.save_pipeline_folder(
            folder, self.model, self.params, self.facts, self.stored, dtype
        )


def _report_step(
    on_step: OnStep,
    clean: np.ndarray,
    targets: Sequence[int],
    done: tuple[int, int],
    step: int,
    num_steps: int,
    latents: np.ndarray,
) -> None:
    """Counts a pass's steps with those of all passes, and its latents with those of all views.

    clean: [M, h, w, C], which is filled; done: (number of passes done, number of all).
    """
    clean[targets] = latents[0, : len(targets)]
    passes_done, num_passes = done
    on_step(passes_done * num_steps + step, num_passes * num_steps, clean.copy())


def facts_of_model(model: EscherNet, resolution: int) -> ModelCard:
    """What is known of weights from their network alone."""
    patch = model.codec.patch if isinstance(model.codec, PixelCodec) else None
    return ModelCard(model.cape, resolution, patch=patch)
