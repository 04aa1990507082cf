"""How much arithmetic a step is, and how long the device waits for the host."""

from __future__ import annotations

import dataclasses
import math
import resource
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params
from ml_collections import ConfigDict

from escherjax.data.batch import Batch, abstract_batch
from escherjax.models import eschernet
from escherjax.models.eschernet import EscherNet, Params
from escherjax.train.state import TrainState
from escherjax.train.step import draw, scene_losses


def count_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of the matrix products and convolutions in one call; a multiply-add counts as two.

    Counted on the traced program, so nothing is compiled or run, and what a kernel pads or a
    compiler recomputes is not counted. arguments: arrays or ShapeDtypeStructs. The function must
    use plain attention, not a fused kernel, whose inside cannot be seen.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _jaxpr_flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (lhs_contract, _), _ = equation.params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            total += (
                2
                * math.prod(equation.outvars[0].aval.shape)
                * math.prod(lhs[axis] for axis in lhs_contract)
            )
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_feature_axis = equation.params["dimension_numbers"].rhs_spec[0]
            per_output = math.prod(kernel) / kernel[out_feature_axis]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * per_output
        repeats = equation.params["length"] if name == "scan" else 1
        for inner in jaxprs_in_params(equation.params):
            total += repeats * _jaxpr_flops(inner)
    return total


def train_step_flops(
    model: EscherNet, state: TrainState, config: ConfigDict, view_counts: tuple[int, int]
) -> float:
    """FLOPs of one training step by the usual count: forward and twice that for backward.

    The frozen latent encoder counts once, or not at all where moments are stored; recomputation
    (remat) does not count. state: arrays or their ShapeDtypeStructs. view_counts: N and M.
    """
    plain = dataclasses.replace(model, unet=model.unet.clone(attention_impl="xla", remat=False))
    moments_shape = eschernet.moments_shape(config) if config.data.latents else ()
    batch = abstract_batch(config.batch_size, view_counts, config.resolution, moments_shape)

    def losses(params: Params, frozen: Params, batch: Batch) -> jax.Array:
        draws = draw(jax.random.key(0), plain, batch, 0.0)
        return scene_losses(plain, params, frozen, batch, draws)

    forward = count_flops(losses, state.params, state.frozen, batch)
    if config.data.latents:
        return 3 * forward
    images = jax.ShapeDtypeStruct(batch.target_images.shape, jnp.float32)
    return 3 * forward - 2 * count_flops(plain.encode_latents, state.frozen, images)


def host_memory() -> dict[str, float]:
    """{"host_memory_gib": resident memory of this process}; empty where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return {}
    return {"host_memory_gib": pages * resource.getpagesize() / 2**30}


class IdleTime:
    """How long the device had nothing to do between steps: `seconds`, added up.

    A thread notes when each step ends, and the next one's hand-over is set against that. Exact to
    some milliseconds a step; what the device waits for within a hand-over is not counted.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._ended: Future[float] | None = None
        self._thread = ThreadPoolExecutor(1, "idle-time")

    def handing_over(self) -> None:
        """A step is about to be given to the device."""
        if self._ended is not None and self._ended.done() and not self._ended.exception():
            self.seconds += time.perf_counter() - self._ended.result()

    def handed_over(self, output: jax.Array) -> None:
        """The device computes `output` of the step given to it.

        To be called before the old state's arrays go, which can take longer than the step.
        """
        self._ended = self._thread.submit(_end_of, output)

    def forget(self) -> None:
        """What was given to the device so far does not count: it was left idle on purpose."""
        self._ended = None

    def close(self) -> None:
        self._thread.shutdown(wait=False)


def _end_of(output: jax.Array) -> float:
    output.block_until_ready()
    return time.perf_counter()
