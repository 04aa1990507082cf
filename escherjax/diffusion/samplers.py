"""From noise to latents: deterministic DDIM (arXiv 2010.02502) and classifier-free guidance.

Nothing here knows what the latents are: axis 0 is the batch, any axes may follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from escherjax.diffusion.schedule import (
    NoiseSchedule,
    noise_from_prediction,
    sample_from_prediction,
)
from escherjax.errors import UserError

Predict = Callable[[jax.Array, jax.Array], jax.Array]
"""(latents [B, ...], timesteps int32 [B]) -> prediction [B, ...]."""


def ddim_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Timesteps of a run, noisiest first: k * (T // num_steps) + steps_offset, k = num_steps-1..0.

    This is diffusers' "leading" spacing, with T training timesteps; the offset may not lead beyond
    T - 1 (only num_steps = T would). Returns int32 [num_steps]. Raises UserError unless
    1 <= num_steps <= T.
    """
    num_train = schedule.num_train_timesteps
    if not 1 <= num_steps <= num_train:
        raise UserError(
            f"The number of sampling steps is {num_steps}; it must be in 1..{num_train}. "
            f"50 is usual."
        )
    steps = np.arange(num_steps)[::-1] * (num_train // num_steps) + schedule.steps_offset
    return np.minimum(steps, num_train - 1).astype(np.int32)


def ddim_step(
    schedule: NoiseSchedule,
    prediction: jax.Array,
    t: jax.Array,
    t_prev: jax.Array,
    x_t: jax.Array,
) -> jax.Array:
    """One DDIM step from timestep t to the less noisy t_prev (arXiv 2010.02502, eq. 12, eta 0).

    t, t_prev: int, scalar or [B]. A negative t_prev is the end of the run: abar_0, or 1 where the
    schedule says `set_alpha_to_one`. x_t: [B, ...]; the result is float32 of the same shape.
    """
    noise = noise_from_prediction(schedule, prediction, t, x_t)
    clean = sample_from_prediction(schedule, prediction, t, x_t)
    t_prev = jnp.asarray(t_prev)
    abar = jnp.asarray(schedule.alphas_cumprod)
    final = 1.0 if schedule.set_alpha_to_one else abar[0]
    abar_prev = jnp.where(t_prev >= 0, abar[jnp.maximum(t_prev, 0)], final)
    abar_prev = abar_prev.reshape(t_prev.shape + (1,) * (x_t.ndim - t_prev.ndim))
    return jnp.sqrt(abar_prev) * clean + jnp.sqrt(1 - abar_prev) * noise


def sample_ddim(
    schedule: NoiseSchedule,
    predict: Predict,
    latents: jax.Array,
    num_steps: int,
    trace: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Runs DDIM from noise to latents as one `lax.scan`, which compiles `predict` once.

    predict: (latents [B, ...], timesteps int32 [B]) -> prediction [B, ...].
    latents: [B, ...] standard normal noise. Returns float32 latents; with `trace` also those after
    every step, [num_steps, B, ...]. Call it under `jax.jit` with the network's parameters as an
    argument: outside, each call compiles anew.
    """
    timesteps = ddim_timesteps(schedule, num_steps)
    stride = schedule.num_train_timesteps // num_steps
    previous = np.append(timesteps[1:], timesteps[-1] - stride).astype(np.int32)

    def step(x_t: jax.Array, times: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
        t, t_prev = times
        prediction = predict(x_t, jnp.full(x_t.shape[:1], t))
        x_prev = ddim_step(schedule, prediction, t, t_prev, x_t)
        return x_prev, x_prev if trace else None

    final, every = jax.lax.scan(step, latents.astype(jnp.float32), (timesteps, previous))
    return (final, every) if trace else final


def guide(
    predict: Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array],
    tokens: jax.Array,
    views: Any,
    guidance_scale: float,
) -> Predict:
    """Closes a conditional network over its condition, with classifier-free guidance.

    prediction = uncond + guidance_scale (cond - uncond)   (arXiv 2207.12598, eq. 6, scale = w + 1)

    predict: (latents, timesteps, tokens, views) -> prediction.
    tokens: [B, ...] reference tokens; the unconditional half has zeros in their place and comes
    first in the doubled batch. views: pytree of [B, ...] arrays that both halves share (poses,
    numbers of references). guidance_scale: a Python number; 1 or less means no guidance, and the
    batch is then not doubled.
    """
    if guidance_scale <= 1:
        return lambda latents, timesteps: predict(latents, timesteps, tokens, views)

    both_tokens = jnp.concatenate([jnp.zeros_like(tokens), tokens])  # [2B, ...]
    both_views = jax.tree.map(_twice, views)

    def guided(latents: jax.Array, timesteps: jax.Array) -> jax.Array:
        both = predict(_twice(latents), _twice(timesteps), both_tokens, both_views)
        uncond, cond = jnp.split(both.astype(jnp.float32), 2)
        return uncond + guidance_scale * (cond - uncond)

    return guided


def _twice(x: jax.Array) -> jax.Array:
    return jnp.concatenate([x, x])
