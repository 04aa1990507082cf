"""Held-out scenes while training: PSNR against the number of references, and a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from escherjax.data.batch import Batch, unit_images
from escherjax.devices import mesh as sharding
from escherjax.devices.chips import compiler_options
from escherjax.metrics.scoring import Scorer
from escherjax.models.diffusion.sampling import Sampling
from escherjax.models.eschernet import EscherNet, Params, SceneBatch
from escherjax.reports import sheets


class HeldOut:
    """Fixed scenes with fixed views and fixed noise, so that numbers compare across steps.

    batches: what the loader yields for the held-out scenes, already read, each with at least
    max(config.eval.num_references) references.
    """

    def __init__(self, model: EscherNet, config: ConfigDict, mesh: Mesh, batches: list[Batch]):
        self._config, self._mesh, self._batches = config, mesh, batches
        model = model.spread_over(sharding.spread(mesh, config.attention_gather))

        def generate(
            params: Params, batch: Batch, latents: jax.Array, num_references: jax.Array
        ) -> jax.Array:
            scenes = SceneBatch(
                unit_images(batch.ref_images),
                *batch.cameras,
                latents,
                num_references,
            )
            sampling = Sampling(config.eval.num_sampling_steps, config.guidance_scale)
            return model.generate(params, scenes, sampling)

        self._generate = jax.jit(generate, compiler_options=compiler_options(mesh))
        self._latent_shape = model.latent_shape(config.resolution)
        self._scorer = Scorer(["psnr"])

    def _sample(self, params: Params, num_references: int) -> Iterator[tuple[Batch, np.ndarray]]:
        """(batch, samples [b, M, H, W, 3]) of each batch, as host arrays."""
        for index, batch in enumerate(self._batches):
            arrays = batch.on_mesh(self._mesh)
            size, num_targets = arrays.target_images.shape[:2]
            key = jax.random.fold_in(jax.random.key(self._config.seed), index)
            latents = jax.device_put(
                jax.random.normal(key, (size, num_targets, *self._latent_shape)),
                sharding.target_sharding(self._mesh),
            )
            counts = jax.device_put(
                jnp.full((size,), num_references, jnp.int32), sharding.batch_sharding(self._mesh)
            )
            samples = self._generate(params, arrays, latents, counts)
            yield _to_host(arrays), _to_host(samples)

    def evaluate(self, params: Params) -> dict[str, float]:
        """Mean PSNR over scenes and targets for each N, beside copying the nearest reference."""
        values = {}
        for count in self._config.eval.num_references:
            scenes = [
                self._scorer.beside_nearest(
                    samples,
                    targets / np.float32(255),
                    references[:count] / np.float32(255),
                    reference_c2w[:count],
                    target_c2w,
                )
                for batch, of_batch in self._sample(params, count)
                for samples, targets, references, reference_c2w, target_c2w in zip(
                    of_batch,
                    batch.target_images,
                    batch.ref_images,
                    batch.ref_c2w,
                    batch.target_c2w,
                    strict=True,
                )
            ]
            for name, of_scenes in (
                ("psnr", [scene.samples for scene in scenes]),
                ("nearest_reference_psnr", [scene.nearest_reference for scene in scenes]),
            ):
                means = [scores["psnr"].mean() for scores in of_scenes]
                values[f"heldout/{name}_n{count}"] = float(np.mean(means))
        return values

    def write_picture(self, params: Params, path: Path, num_scenes: int = 4) -> None:
        """Writes references, targets and samples of the first scenes as one PNG."""
        count = self._config.num_references
        for batch, samples in self._sample(params, count):
            if jax.process_index() == 0:
                sheets.scene_sheet(
                    path,
                    batch.ref_images[:num_scenes, :count],
                    sheets.to_uint8(samples[:num_scenes]),
                    batch.target_images[:num_scenes],
                )
            return


def _to_host(tree: Any) -> Any:
    """Global arrays as numpy on every host."""
    return jax.tree.map(
        lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree
    )
