"""The training state and how an update changes it: AdamW, the learning rate, the average."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from escherjax.devices import mesh as mesh_lib
from escherjax.models.eschernet import EscherNet, Params

TRAINED = ("unet", "image_encoder")  # the VAE is frozen


@flax.struct.dataclass
class TrainState:
    """All arrays of a run, one pytree that is initialised sharded, stepped, saved and restored."""

    step: jax.Array  # int32, updates done
    params: Params  # what is trained, {"unet", "image_encoder"}
    frozen: Params  # the rest, {"vae"}
    ema: Params  # average of params, or {} where switched off
    opt_state: Any  # optax's

    def stored(self) -> dict[str, dict[str, Any]]:
        """The trees in which `weights.runs` saves a state; see `from_stored`."""
        return {
            "weights": {"params": self.params, "frozen": self.frozen, "ema": self.ema},
            "optimizer": {"step": self.step, "opt_state": self.opt_state},
        }

    @classmethod
    def from_stored(cls, trees: dict[str, dict[str, Any]]) -> TrainState:
        """The state of the trees that `stored` made."""
        return cls(**trees["weights"], **trees["optimizer"])

    def sampling_params(self) -> Params:
        """All parameters for sampling views: the average where there is one."""
        return {**self.frozen, **(self.ema or self.params)}


def abstract_state(model: EscherNet, mesh: Mesh, config: ConfigDict) -> TrainState:
    """The state as ShapeDtypeStructs with shardings: what a checkpoint is restored into."""
    abstract = jax.eval_shape(
        lambda params: _init_state(params, config), model.parameter_shapes(config.resolution)
    )
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        abstract,
        mesh_lib.state_shardings(mesh, abstract),
    )


def create_state(
    model: EscherNet, mesh: Mesh, config: ConfigDict, loaded: Params | None = None
) -> TrainState:
    """A state at step 0 whose arrays are born sharded: no device ever holds the whole of it.

    loaded: all parameters as host arrays to start from, rounded to the config's storage dtype
    where it is smaller; None draws them from config.seed.
    """
    if loaded is None:
        loaded = model.init(config.seed, config.resolution)
    abstract = abstract_state(model, mesh, config)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    placed = jax.tree.map(_place, loaded, {**abstract.params, **abstract.frozen})
    return jax.jit(
        lambda params: _init_state(params, config), out_shardings=shardings, donate_argnums=0
    )(placed)


def _init_state(params: Params, config: ConfigDict) -> TrainState:
    trained = {name: params[name] for name in TRAINED}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trained,
        frozen={"vae": params["vae"]},
        ema=jax.tree.map(jnp.copy, trained) if config.ema.enabled else {},
        opt_state=make_optimizer(config.optimizer).init(trained),
    )


def _place(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.make_array_from_callback(
        like.shape, like.sharding, lambda part: array[part].astype(like.dtype, copy=False)
    )


def learning_rate(optimizer: Any) -> optax.Schedule:
    """Linear warm-up, then a cosine counted from step 0 (arXiv 2402.03908, section 4).

    The update numbered s (from 0) uses
      s <= warmup: initial + (peak - initial) * s / warmup
      s >  warmup: final + (peak - final) * (1 + cos(pi * s / decay)) / 2, and final from decay on.
    With `first_update_at_peak`, update 0 runs at peak and update s > 0 at the value of s - 1, which
    is what the released training does.

    optimizer: the fields of `config.optimizer`; all but first_update_at_peak may be traced.
    """
    o = optimizer

    def schedule(count: jax.Array) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        step = jnp.maximum(count - 1, 0) if o.first_update_at_peak else count
        warm = o.initial_lr + (o.peak_lr - o.initial_lr) * step / jnp.maximum(o.warmup_steps, 1)
        phase = jnp.minimum(step / o.decay_steps, 1.0)
        cosine = o.final_lr + (o.peak_lr - o.final_lr) * (1 + jnp.cos(jnp.pi * phase)) / 2
        lr = jnp.where(step <= o.warmup_steps, warm, cosine)
        if o.first_update_at_peak:
            lr = jnp.where(count == 0, o.peak_lr, lr)
        return lr

    return schedule


def make_optimizer(optimizer: Any) -> optax.GradientTransformation:
    """Clips the joint gradient norm, then AdamW with decay on every parameter.

    optimizer: the fields of `config.optimizer`; those that `learning_rate` allows, eps,
    weight_decay and max_grad_norm may be traced.
    """
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


def update_ema(ema: Params, params: Params, step: jax.Array, decay: jax.Array | float) -> Params:
    """Exponential moving average after the update numbered `step` (from 0).

    The decay is min(decay, (1 + step) / (10 + step)), so that early averages forget the
    initialisation.
    """
    step = step.astype(jnp.float32)
    weight = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: e + weight.astype(e.dtype) * (p - e), ema, params)
