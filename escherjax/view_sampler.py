"""Batches of scenes through the compiled sampling program, on one device or spread over several."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from escherjax.cameras import Cameras
from escherjax.models.eschernet import EscherNet, Params
from escherjax.training import sharding

_STATIC = ("num_steps", "guidance_scale", "sampler", "eta", "guidance_rescale")


class ViewSampler:
    """Draws views of batches of scenes; each new shape of a batch compiles a program.

    mesh: from `sharding.view_mesh`: scenes lie along its data axis, target views along its view
    axis, and parameters on every device.
    """

    def __init__(self, model: EscherNet, mesh: Mesh):
        self._mesh = mesh
        spread_model = model.spread_over(sharding.spread(mesh))
        self._generate = jax.jit(spread_model.generate, static_argnames=_STATIC)

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
        **settings: Any,
    ) -> np.ndarray:
        """Views [B, M, R, R, 3] float32 in [0, 1]; those behind a scene's num_targets are nonsense.

        images: [B, N, H, H, 3] in [-1, 1]; c2w: [B, N, 4, 4] and [B, M, 4, 4]; latents:
        [B, M, h, w, C], M a multiple of view_devices; seeds: uint32 [B] of the noise that eta adds;
        num_references, num_targets: int32 [B], see `EscherNet.predict`, or None for all.
        settings: see `EscherNet.generate`.
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

        views = self._generate(
            params,
            put(images, by_scene),
            Cameras(put(reference_c2w, by_scene)),
            Cameras(put(target_c2w, by_target)),
            put(latents, by_target),
            num_references=put(num_references, by_scene),
            num_targets=put(num_targets, by_scene),
            keys=put(keys, by_scene),
            **settings,
        )
        return np.asarray(views[:num_scenes])
