"""The compiled sampling program, on one device or several, and its progress callback."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from escherjax.devices import mesh as sharding
from escherjax.devices.chips import compiler_options
from escherjax.models.diffusion.sampling import Sampling
from escherjax.models.eschernet import EscherNet, Params, SceneBatch

OnStep = Callable[[int, int, np.ndarray], None]
"""(steps done, num_steps, predicted clean latents, as `decode_latents` wants them)."""


class SamplingProgram:
    """Generates the views of batches of scenes; each new shape of a batch compiles a program.

    mesh: from `sharding.view_mesh`: scenes lie along its data axis, target views along its view
    axis, and parameters on every device.
    """

    def __init__(self, model: EscherNet, mesh: Mesh):
        self._model, self._mesh = model.spread_over(sharding.spread(mesh)), mesh
        self._listeners: dict[int | None, _Listener] = {}
        self._numbers = itertools.count()
        self.num_programs = 0  # that have been compiled
        by_scene: Any = sharding.batch_sharding(mesh)
        by_target: Any = sharding.target_sharding(mesh)
        self._shardings = SceneBatch(
            images=by_scene,
            reference_cameras=by_scene,
            target_cameras=by_target,
            latents=by_target,
            num_references=by_scene,
            num_targets=by_scene,
            seeds=by_scene,
            view_numbers=by_target,
        )
        self._generate = jax.jit(
            self._traced, static_argnames="sampling", compiler_options=compiler_options(mesh)
        )

    @property
    def view_devices(self) -> int:
        """How many devices share the target views of a scene."""
        return self._mesh.shape["view"]

    def __call__(
        self,
        params: Params,
        scenes: SceneBatch,
        sampling: Sampling,
        on_step: OnStep | None = None,
    ) -> np.ndarray:
        """Views [B, M, R, R, 3] float32 in [0, 1]; those past a scene's num_targets are padding.

        scenes: host arrays, M a multiple of view_devices. sampling: its seed is not used.
        on_step: called on the host after each step, with latents [B, M, h, w, C]; programs that
        call it are others. What it raises ends the sampling and is raised here.
        """
        num_scenes = len(scenes.latents)
        missing = -num_scenes % self._mesh.shape["data"]
        if missing:  # every device has equally many scenes
            scenes = jax.tree.map(
                lambda array: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]),
                scenes,
            )
        number, listener = None, None
        if on_step is not None:
            number, listener = next(self._numbers), _Listener(on_step, sampling, num_scenes)
            self._listeners[number] = listener
        try:
            views = self._generate(
                params,
                jax.device_put(scenes, self._shardings),
                number,
                sampling=dataclasses.replace(sampling, seed=0),  # one program for all seeds
            )
            views = np.asarray(views[:num_scenes])
        finally:
            self._listeners.pop(number, None)
        if listener is not None and listener.error is not None:
            raise listener.error
        return views

    def _traced(
        self, params: Params, scenes: SceneBatch, number: jax.Array | None, sampling: Sampling
    ) -> jax.Array:
        self.num_programs += 1  # Python runs this once for each program, as it is traced
        on_step = None if number is None else functools.partial(self._on_step, number)
        return self._model.generate(params, scenes, sampling, on_step)

    def _on_step(self, number: jax.Array, step: jax.Array, latents: jax.Array) -> jax.Array:
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        latents = jax.lax.with_sharding_constraint(latents / self._model.latent_scale, everywhere)
        go_on = jax.ShapeDtypeStruct((), jnp.bool_)
        return jax.experimental.io_callback(self._call_back, go_on, number, step, latents)

    def _call_back(self, number: Any, step: Any, latents: Any) -> np.ndarray:
        """What a program calls: it outlives the call that it was compiled for, so by number."""
        listener = self._listeners.get(int(number))
        return np.array(listener is not None and listener(int(step), np.asarray(latents)))


@dataclasses.dataclass
class _Listener:
    """One call's `on_step`, and what it raised."""

    on_step: OnStep
    sampling: Sampling
    num_scenes: int
    error: BaseException | None = None

    def __call__(self, step: int, latents: np.ndarray) -> bool:
        try:
            self.on_step(step, self.sampling.num_steps, latents[: self.num_scenes])
        except BaseException as error:  # not through the program: devices would hang
            self.error = error
        return self.error is None
