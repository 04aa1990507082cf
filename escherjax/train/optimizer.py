"""AdamW with the paper's learning rate, and the average of the trained parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def learning_rate(optimizer: ConfigDict) -> optax.Schedule:
    """Linear warm-up, then a cosine counted from step 0 (arXiv 2402.03908, section 4).

    The update numbered s (from 0) uses
      s <= warmup: initial + (peak - initial) * s / warmup
      s >  warmup: final + (peak - final) * (1 + cos(pi * s / decay)) / 2, and final from decay on.
    With `first_update_at_peak`, update 0 runs at peak and update s > 0 at the value of s - 1, which
    is what the released training does.
    """
    o = optimizer

    def schedule(count: jax.Array) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        step = jnp.maximum(count - 1, 0) if o.first_update_at_peak else count
        warm = o.initial_lr + (o.peak_lr - o.initial_lr) * step / max(o.warmup_steps, 1)
        phase = jnp.minimum(step / o.decay_steps, 1.0)
        cosine = o.final_lr + (o.peak_lr - o.final_lr) * (1 + jnp.cos(jnp.pi * phase)) / 2
        lr = jnp.where(step <= o.warmup_steps, warm, cosine)
        if o.first_update_at_peak:
            lr = jnp.where(count == 0, o.peak_lr, lr)
        return lr

    return schedule


def make_optimizer(optimizer: ConfigDict) -> optax.GradientTransformation:
    """Clips the joint gradient norm, then AdamW with decay on every parameter."""
    return optax.chain(
        optax.clip_by_global_norm(optimizer.max_grad_norm),
        optax.adamw(
            learning_rate(optimizer),
            b1=optimizer.b1,
            b2=optimizer.b2,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
        ),
    )


def update_ema(ema: dict, params: dict, step: jax.Array, decay: float) -> dict:
    """Exponential moving average after the update numbered `step` (from 0).

    The decay is min(decay, (1 + step) / (10 + step)), so that early averages forget the
    initialisation.
    """
    step = step.astype(jnp.float32)
    weight = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: e + weight.astype(e.dtype) * (p - e), ema, params)
