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


def sample(
    schedule: NoiseSchedule,
    predict: Predict,
    latents: jax.Array,
    sampling: Sampling,
    draw_noise: Callable[[jax.Array], jax.Array] | None = None,
    trace: bool = False,
    on_step: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Runs a sampler from noise to latents as one `lax.scan`, which compiles `predict` once.

    predict: (latents [B, ...], timesteps int32 [B]) -> prediction [B, ...].
    latents: [B, ...] standard normal noise.
    draw_noise: step number -> standard normal noise of latents' shape; required if eta is not 0.
    on_step: (number of steps done, estimate of the clean latents [B, ...]) -> whether to go on;
    after a no, the remaining steps are left out.
    Returns float32 latents; with `trace` also those after every step, [num_steps, B, ...]. Call it
    under `jax.jit` with the network's parameters as an argument: outside, each call compiles anew.
    """
    table = solvers.make_table(schedule, sampling)
    if sampling.eta and draw_noise is None:
        raise UserError(f"draw_noise must be given with eta = {sampling.eta}, got None.")
    rows = (
        np.arange(sampling.num_steps),
        table.timesteps,
        table.correct,
        table.advance,
        table.noise,
    )

    def step(state: tuple[jax.Array, ...], row: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, corrected, claim_1, claim_2 = state  # D_{i-1} and D_{i-2}
        i, t, correct, advance, deviation = row
        prediction = predict(x, jnp.full(x.shape[:1], t)).astype(jnp.float32)
        claim = sample_from_prediction(schedule, prediction, t, x)
        corrected = _combine(correct, (x, corrected, claim, claim_1, claim_2))
        x = _combine(advance, (corrected, claim, claim_1))
        if sampling.eta and draw_noise is not None:
            x = x + deviation * draw_noise(i)
        return x, corrected, claim, claim_1

    def advance_all(carry: tuple[Any, Any], row: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        state, go_on = carry
        if on_step is None:
            state = step(state, row)
        else:

            def watched(state: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
                state = step(state, row)
                return state, on_step(row[0] + 1, state[2])

            state, go_on = jax.lax.cond(go_on, watched, lambda state: (state, go_on), state)
        return (state, go_on), state[0] if trace else None

    start = latents.astype(jnp.float32)
    nothing = jnp.zeros_like(start)
    carry = (start, nothing, nothing, nothing), jnp.array(True)
    ((final, *_), _), every = jax.lax.scan(advance_all, carry, rows)
    return (final, every) if trace else final


def _combine(weights: jax.Array, arrays: tuple[jax.Array, ...]) -> jax.Array:
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
    if not sampling.is_guided:
        return predict
    scale, rescale = sampling.guidance_scale, sampling.guidance_rescale

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
