"""The training state: one pytree that is initialised sharded, stepped, saved and restored."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from escherjax.devices import mesh as sharding
from escherjax.models.eschernet import EscherNet, Params

TRAINED = ("unet", "image_encoder")  # the VAE is frozen


@flax.struct.dataclass
class TrainState:
    """step: int32 updates done; params: what is trained, {"unet", "image_encoder"}; frozen: the
    rest, {"vae"}; ema: average of params, or {} where switched off; opt_state: optax's."""

    step: jax.Array
    params: dict[str, Any]
    frozen: dict[str, Any]
    ema: dict[str, Any]
    opt_state: Any

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
        """All parameters for drawing views: the average where there is one."""
        return {**self.frozen, **(self.ema or self.params)}


def init_state(
    params: Params, optimizer: optax.GradientTransformation, use_ema: bool
) -> TrainState:
    """A state at step 0 around all of a model's parameters."""
    trained = {name: params[name] for name in TRAINED}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trained,
        frozen={"vae": params["vae"]},
        ema=jax.tree.map(jnp.copy, trained) if use_ema else {},
        opt_state=optimizer.init(trained),
    )


def abstract_state(
    model: EscherNet, optimizer: optax.GradientTransformation, mesh: Mesh, config: ConfigDict
) -> TrainState:
    """The state as ShapeDtypeStructs with shardings: what a checkpoint is restored into."""
    abstract = jax.eval_shape(
        lambda params: init_state(params, optimizer, config.ema.enabled),
        model.parameter_shapes(config.resolution),
    )
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        abstract,
        sharding.state_shardings(mesh, abstract),
    )


def create_state(
    model: EscherNet,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    config: ConfigDict,
    loaded: Params | None = None,
) -> TrainState:
    """A state at step 0 whose arrays are born sharded: no device ever holds the whole of it.

    loaded: all parameters as host arrays to start from, rounded to the config's storage dtype
    where it is smaller; None draws them from config.seed.
    """
    if loaded is None:
        loaded = model.init(config.seed, config.resolution)
    abstract = abstract_state(model, optimizer, mesh, config)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    placed = jax.tree.map(_place, loaded, {**abstract.params, **abstract.frozen})
    return jax.jit(
        lambda params: init_state(params, optimizer, config.ema.enabled),
        out_shardings=shardings,
        donate_argnums=0,
    )(placed)


def _place(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.make_array_from_callback(
        like.shape, like.sharding, lambda part: array[part].astype(like.dtype, copy=False)
    )
