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

from escherjax.cameras import Cameras, nearest_reference
from escherjax.devices import mesh as sharding
from escherjax.metrics import psnr
from escherjax.models.eschernet import EscherNet, Params
from escherjax.reports import sheets
from escherjax.train.step import compiler_options, unit_images


class HeldOut:
    """Fixed scenes with fixed views and fixed noise, so that numbers compare across steps.

    batches: what the loader yields for the held-out scenes, already drawn, each with at least
    max(config.eval.num_references) references.
    """

    def __init__(
        self, model: EscherNet, config: ConfigDict, mesh: Mesh, batches: list[dict[str, Any]]
    ):
        self._config, self._mesh, self._batches = config, mesh, batches
        model = model.spread_over(sharding.spread(mesh, config.attention_gather))

        def generate(params: Params, batch, latents, num_references):
            targets = unit_images(batch["target_images"]) / 2 + 0.5
            samples = model.generate(
                params,
                unit_images(batch["ref_images"]),
                Cameras(batch["ref_c2w"]),
                Cameras(batch["target_c2w"]),
                latents,
                config.eval.num_sampling_steps,
                config.guidance_scale,
                num_references,
            )
            return samples, psnr(samples, targets)

        self._generate = jax.jit(generate, compiler_options=compiler_options(mesh))
        self._latent_shape = model.latent_shape(config.resolution)

    def _sample(self, params: Params, num_references: int) -> Iterator[tuple[Any, ...]]:
        """(batch, samples [b, M, H, W, 3], PSNR [b, M]) of each batch, as host arrays."""
        for index, batch in enumerate(self._batches):
            arrays = sharding.put_batch(
                self._mesh, {k: v for k, v in batch.items() if k != "scene_ids"}
            )
            size, num_targets = arrays["target_images"].shape[:2]
            key = jax.random.fold_in(jax.random.key(self._config.seed), index)
            latents = jax.device_put(
                jax.random.normal(key, (size, num_targets, *self._latent_shape)),
                sharding.target_sharding(self._mesh),
            )
            counts = jax.device_put(
                jnp.full((size,), num_references, jnp.int32), sharding.batch_sharding(self._mesh)
            )
            made = self._generate(params, arrays, latents, counts)
            shown = {k: arrays[k] for k in ("ref_images", "target_images", "ref_c2w", "target_c2w")}
            yield tuple(_to_host(x) for x in (shown, *made))

    def evaluate(self, params: Params) -> dict[str, float]:
        """Mean PSNR over scenes and targets for each N, beside copying the nearest reference."""
        values = {}
        for count in self._config.eval.num_references:
            scores, copies = [], []
            for batch, _, score in self._sample(params, count):
                scores.append(score.mean(axis=1))
                copies.append(_nearest_reference_psnr(batch, count).mean(axis=1))
            values[f"heldout/psnr_n{count}"] = float(np.concatenate(scores).mean())
            values[f"heldout/nearest_reference_psnr_n{count}"] = float(
                np.concatenate(copies).mean()
            )
        return values

    def draw_picture(self, params: Params, path: Path, num_scenes: int = 4) -> None:
        """Writes references, targets and samples of the first scenes as one PNG."""
        count = self._config.num_references
        for batch, samples, _ in self._sample(params, count):
            if jax.process_index() == 0:
                sheets.scene_sheet(
                    path,
                    batch["ref_images"][:num_scenes, :count],
                    sheets.to_uint8(samples[:num_scenes]),
                    batch["target_images"][:num_scenes],
                )
            return


def _nearest_reference_psnr(batch: dict[str, np.ndarray], count: int) -> np.ndarray:
    """PSNR [b, M] of showing each target the reference whose camera stands nearest to it."""
    nearest = nearest_reference(batch["ref_c2w"][:, :count], batch["target_c2w"])  # [b, M]
    nearest = nearest[..., None, None, None]
    copied = np.take_along_axis(batch["ref_images"], nearest, axis=1)  # [b, M, H, W, 3]
    return np.asarray(psnr(copied / np.float32(255), batch["target_images"] / np.float32(255)))


def _to_host(tree: Any) -> Any:
    """Global arrays as numpy on every host."""
    return jax.tree.map(
        lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree
    )
