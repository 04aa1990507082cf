"""From noise to latents: the sampling loop and classifier-free guidance.

Nothing here knows what the latents are: axis 0 is the batch, any axes may follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from escherjax.errors import UserError
from escherjax.models.diffusion import solvers
from escherjax.models.diffusion.sampling import Sampling
from escherjax.models.diffusion.schedule import NoiseSchedule, sample_from_prediction

Predict = Callable[[jax.Array, jax.Array], jax.Array]
"""(latents [B, ...], timesteps int32 [B]) -> prediction [B, ...]."""

OnStep = Callable[[jax.Array, jax.Array], jax.Array]
"""(number of steps done, predicted clean latents (x0) [B, ...]) -> whether to go on."""


def sample(
    schedule: NoiseSchedule,
    predict: Predict,
    latents: jax.Array,
    sampling: Sampling,
    noise_of_step: Callable[[jax.Array], jax.Array] | None = None,
    trace: bool = False,
    on_step: OnStep | None = None,
) -> Any:
    """Runs a sampler from noise to latents as one `lax.scan`, which compiles `predict` once.

    Call it under `jax.jit` with the network's parameters as an argument: outside, each call
    compiles anew.

    Args:
        schedule: noise levels, and what `predict` predicts.
        predict: the guided network.
        latents: [B, ...] standard normal noise.
        sampling: its solver and number of steps.
        noise_of_step: step number -> standard normal noise [B, ...]; required if eta is not 0.
        trace: whether to return the latents after every step as well.
        on_step: called after each step; where it returns False the remaining steps are left out.

    Returns:
        float32 latents [B, ...]; with `trace` also [num_steps, B, ...].
    """
    table = solvers.make_table(schedule, sampling)
    if sampling.eta and noise_of_step is None:
        raise UserError(f"noise_of_step must be given with eta = {sampling.eta}, got None.")
    steps = np.arange(sampling.num_steps)
    rows = (steps, table.timesteps, table.correct, table.advance, table.noise)

    def step(state: tuple[jax.Array, ...], row: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, corrected, x0_before, x0_earlier = state
        i, t, correct, advance, deviation = row
        prediction = predict(x, jnp.full(x.shape[:1], t)).astype(jnp.float32)
        x0 = sample_from_prediction(schedule, prediction, t, x)
        corrected = _combine(correct, (x, corrected, x0, x0_before, x0_earlier))
        x = _combine(advance, (corrected, x0, x0_before))
        if sampling.eta and noise_of_step is not None:
            x = x + deviation * noise_of_step(i)
        return x, corrected, x0, x0_before

    def watched(state: tuple[jax.Array, ...], row: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        assert on_step is not None
        state = step(state, row)
        return state, on_step(row[0] + 1, state[2])

    def body(carry: tuple[Any, Any], row: Any) -> tuple[Any, Any]:
        state, go_on = carry
        if on_step is None:
            state = step(state, row)
        else:
            state, go_on = jax.lax.cond(go_on, watched, lambda state, _: (state, go_on), state, row)
        return (state, go_on), state[0] if trace else None

    start = latents.astype(jnp.float32)
    nothing = jnp.zeros_like(start)
    carry = (start, nothing, nothing, nothing), jnp.array(True)
    ((final, *_), _), every = jax.lax.scan(body, carry, rows)
    return (final, every) if trace else final


def _combine(weights: jax.Array, arrays: tuple[jax.Array, ...]) -> Any:
    return sum(weights[k] * array for k, array in enumerate(arrays))


def guide(predict: Predict, sampling: Sampling) -> Predict:
    """Classifier-free guidance.

    prediction = uncond + guidance_scale (cond - uncond)   (arXiv 2207.12598, eq. 6, scale = w + 1)

    predict: (latents [B, ...], timesteps [B]) -> [B, 2, ...], the unconditional and the conditional
    prediction; without guidance (`Sampling.is_guided`) it gives [B, ...] and is returned as it is.
    guidance_rescale, from 0, none, to 1: how far the deviation of each view's guided prediction
    (over its last three axes) is brought back to that of the conditional one (arXiv 2305.08891,
    eq. 15 and 16).
    """
    scale, rescale = sampling.guidance_scale, sampling.guidance_rescale
    if scale is None or not sampling.is_guided:
        return predict

    def guided(latents: jax.Array, timesteps: jax.Array) -> jax.Array:
        both = predict(latents, timesteps).astype(jnp.float32)
        uncond, cond = both[:, 0], both[:, 1]
        prediction = uncond + scale * (cond - uncond)
        if rescale == 0:
            return prediction
        axes = (-3, -2, -1)
        shrink = jnp.std(cond, axes, keepdims=True) / jnp.std(prediction, axes, keepdims=True)
        return prediction * (1 - rescale + rescale * shrink)

    return guided
