"""Batches of scenes through the compiled sampling program, on one device or spread over several."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from escherjax.cameras import Cameras
from escherjax.devices import mesh as sharding
from escherjax.devices.chips import compiler_options
from escherjax.models.diffusion.sampling import Sampling
from escherjax.models.eschernet import EscherNet, Params

OnStep = Callable[[int, int, np.ndarray], None]
"""(steps done, num_steps, estimate of the clean latents, as `decode_latents` wants them)."""


class ViewSampler:
    """Draws views of batches of scenes; each new shape of a batch compiles a program.

    mesh: from `sharding.view_mesh`: scenes lie along its data axis, target views along its view
    axis, and parameters on every device.
    """

    def __init__(self, model: EscherNet, mesh: Mesh):
        self._mesh = mesh
        self._listeners: dict[int | None, Callable[[int, np.ndarray], bool]] = {}
        self._numbers = itertools.count()
        spread_model = model.spread_over(sharding.spread(mesh))

        def generate(params: Params, *views: Any, listener: Any = None, **named: Any) -> jax.Array:
            if listener is None:
                return spread_model.generate(params, *views, **named)

            def on_step(step: jax.Array, clean_latents: jax.Array) -> jax.Array:
                whole = jax.lax.with_sharding_constraint(
                    clean_latents, NamedSharding(mesh, PartitionSpec())
                )
                go_on = jax.ShapeDtypeStruct((), jnp.bool_)
                return jax.experimental.io_callback(self._tell, go_on, listener, step, whole)

            return spread_model.generate(params, *views, on_step=on_step, **named)

        self._generate = jax.jit(
            generate, static_argnames="sampling", compiler_options=compiler_options(mesh)
        )

    @property
    def view_devices(self) -> int:
        """How many devices share the target views of a scene."""
        return self._mesh.shape["view"]

    @property
    def num_programs(self) -> int:
        """How many programs have been compiled."""
        return self._generate._cache_size()

    def __call__(
        self,
        params: Params,
        images: np.ndarray,
        reference_c2w: np.ndarray,
        target_c2w: np.ndarray,
        latents: np.ndarray,
        seeds: np.ndarray,
        num_references: np.ndarray | None,
        num_targets: np.ndarray | None,
        view_numbers: np.ndarray,
        sampling: Sampling,
        on_step: OnStep | None = None,
    ) -> np.ndarray:
        """Views [B, M, R, R, 3] float32 in [0, 1]; those behind a scene's num_targets are nonsense.

        images: [B, N, H, H, 3] in [-1, 1]; c2w: [B, N, 4, 4] and [B, M, 4, 4]; latents:
        [B, M, h, w, C], M a multiple of view_devices; seeds: uint32 [B] of the noise that eta adds;
        num_references, num_targets: int32 [B], see `EscherNet.predict`, or None for all;
        view_numbers: int32 [B, M], by which views draw that noise.
        on_step: called on the host after each step, with latents [B, M, h, w, C]; programs that
        call it are others. What it raises ends the sampling and is raised here.
        sampling: its seed is not used.
        """
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(seeds)
        by_scene = sharding.batch_sharding(self._mesh)
        by_target = sharding.target_sharding(self._mesh)
        num_scenes = len(images)
        missing = -num_scenes % self._mesh.shape["data"]

        def put(array: Any, where: Any) -> jax.Array | None:
            if array is None:
                return None
            if missing:  # every device has equally many scenes
                array = jnp.concatenate([array, jnp.repeat(array[-1:], missing, axis=0)])
            return jax.device_put(array, where)

        errors: list[BaseException] = []
        listener = None if on_step is None else next(self._numbers)
        if on_step is not None:

            def tell(step: int, clean_latents: np.ndarray) -> bool:
                try:
                    on_step(step, sampling.num_steps, clean_latents[:num_scenes])
                except BaseException as error:  # not through the program: devices would hang
                    errors.append(error)
                return not errors

            self._listeners[listener] = tell
        try:
            views = self._generate(
                params,
                put(images, by_scene),
                Cameras(put(reference_c2w, by_scene)),
                Cameras(put(target_c2w, by_target)),
                put(latents, by_target),
                num_references=put(num_references, by_scene),
                num_targets=put(num_targets, by_scene),
                keys=put(keys, by_scene),
                view_numbers=put(view_numbers, by_target),
                listener=listener,
                sampling=dataclasses.replace(sampling, seed=0),  # one program for all seeds
            )
            views = np.asarray(views[:num_scenes])
        finally:
            self._listeners.pop(listener, None)
        if errors:
            raise errors[0]
        return views

    def _tell(self, listener: Any, step: Any, clean_latents: Any) -> np.ndarray:
        """What a program calls: it outlives the call that it was compiled for, so by number."""
        tell = self._listeners.get(int(listener))
        return np.array(tell is not None and tell(int(step), np.asarray(clean_latents)))
