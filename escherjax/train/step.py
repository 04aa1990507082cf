"""One training step: draws, loss, gradients, update (arXiv 2402.03908, sections 3 and 4)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from escherjax.data.batch import Batch, unit_images
from escherjax.devices import mesh as mesh_lib
from escherjax.devices.chips import compiler_options
from escherjax.models.diffusion.schedule import add_noise, training_target
from escherjax.models.eschernet import EscherNet, Params
from escherjax.train.state import TrainState, learning_rate, make_optimizer, update_ema


@flax.struct.dataclass
class Draws:
    """The randomness of one step, for B scenes of M target views."""

    timesteps: jax.Array  # [B] int32, one a scene, shared by its targets
    noise: jax.Array  # [B, M, h, w, C], standard normal
    posterior_noise: jax.Array  # [B, M, h, w, C], standard normal
    drop: jax.Array  # [B] bool, scenes trained without their references


def draw(key: jax.Array, model: EscherNet, batch: Batch, drop_rate: jax.Array | float) -> Draws:
    """Draws that depend on the key and the global batch alone, not on the number of devices."""
    if batch.target_moments is not None:
        *sizes, both = batch.target_moments.shape
        shape = (*sizes, both // 2)
    else:
        *sizes, height, _, _ = batch.target_images.shape
        shape = (*sizes, *model.latent_shape(height))
    batch_size = shape[0]
    time_key, noise_key, posterior_key, drop_key = jax.random.split(key, 4)
    return Draws(
        timesteps=jax.random.randint(
            time_key, (batch_size,), 0, model.schedule.num_train_timesteps
        ),
        noise=jax.random.normal(noise_key, shape),
        posterior_noise=jax.random.normal(posterior_key, shape),
        drop=jax.random.uniform(drop_key, (batch_size,)) < drop_rate,
    )


def target_latents(model: EscherNet, frozen: Params, batch: Batch, draws: Draws) -> jax.Array:
    """A posterior sample of the targets' latents, times their scale: [B, M, h, w, C] float32.

    Targets are encoded by the frozen latent space; stored moments in the batch stand in for that.
    """
    if batch.target_moments is not None:
        mean, logvar = jnp.split(batch.target_moments.astype(jnp.float32), 2, axis=-1)
    else:
        mean, logvar = model.encode_latents(frozen, unit_images(batch.target_images))
    latents = mean + jnp.exp(0.5 * logvar) * draws.posterior_noise
    return jax.lax.stop_gradient(latents) * model.latent_scale


def scene_losses(
    model: EscherNet, trained: Params, frozen: Params, batch: Batch, draws: Draws
) -> jax.Array:
    """Mean squared error of the prediction for each scene, [B] float32.

    The loss of a batch is the mean over its valid scenes. batch: as the loader yields it, images
    uint8.
    """
    references = unit_images(batch.ref_images)
    latents = target_latents(model, frozen, batch, draws)  # [B, M, h, w, C]
    noisy = add_noise(model.schedule, latents, draws.noise, draws.timesteps)
    target = training_target(model.schedule, latents, draws.noise, draws.timesteps)

    tokens = model.encode_images(trained, references)  # [B, N, L, D]
    # `where` and not a product: no gradient reaches the encoder from dropped scenes.
    tokens = jnp.where(draws.drop[:, None, None, None], jnp.zeros_like(tokens), tokens)
    prediction = model.predict(
        trained,
        noisy,
        draws.timesteps,
        tokens,
        *batch.cameras,
        batch.num_references,
    )
    return jnp.mean(jnp.square(prediction.astype(jnp.float32) - target), axis=(1, 2, 3, 4))


@flax.struct.dataclass
class StepSettings:
    """Numbers that the step's program takes as arguments: runs that differ in them share it."""

    key: Any  # uint32 [2], of config.seed
    drop_rate: Any  # probability that a scene is trained without its references
    ema_decay: Any
    optimizer: dict[str, Any]  # those of config.optimizer by name that `make_optimizer` lets vary

    @classmethod
    def from_config(cls, config: ConfigDict) -> StepSettings:
        """The settings of a run as host numbers."""
        return cls(
            key=np.asarray(jax.random.key_data(jax.random.key(config.seed))),
            drop_rate=config.conditioning_dropout,
            ema_decay=config.ema.decay,
            optimizer={name: float(config.optimizer[name]) for name in _VARYING},
        )


_VARYING = (
    *("peak_lr", "initial_lr", "final_lr", "warmup_steps", "decay_steps"),
    *("eps", "weight_decay", "max_grad_norm"),
)


def make_train_step(
    model: EscherNet, mesh: Mesh, config: ConfigDict
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """The jitted step: (state, batch) -> (state, metrics); the old state's memory is reused.

    metrics: scalars "loss", "lr", those of `gradient_norms`, and "scene_losses" [B], by which a
    broken scene can be named, and "valid_scenes", how many of them were not left out.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    # Through a program, since only that gives numbers that take the dtype of what they meet.
    settings = jax.jit(lambda x: x, out_shardings=everywhere)(StepSettings.from_config(config))
    return functools.partial(train_program(model, mesh, config), settings=settings)


def train_program(model: EscherNet, mesh: Mesh, config: ConfigDict) -> Any:
    """The jitted program behind `make_train_step`: (state, batch, settings) -> (state, metrics)."""
    num_micro = config.accumulation_steps
    fixed = {name: config.optimizer[name] for name in config.optimizer if name not in _VARYING}
    by_scene = mesh_lib.batch_sharding(mesh)
    model = model.spread_over(mesh_lib.spread(mesh, config.attention_gather))

    def like_state(tree: Any) -> Any:
        return jax.lax.with_sharding_constraint(tree, mesh_lib.state_shardings(mesh, tree))

    def loss_sum(
        trained: Params, frozen: Params, batch: Batch, draws: Draws
    ) -> tuple[jax.Array, jax.Array]:
        losses = scene_losses(model, trained, frozen, batch, draws)
        # `where` keeps what a skipped scene holds out of the sum, whatever it is.
        return jnp.sum(jnp.where(batch.valid > 0, losses, 0.0)), losses

    def train_step(
        state: TrainState, batch: Batch, settings: StepSettings
    ) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(settings.key), state.step)
        draws = draw(key, model, batch, settings.drop_rate)
        draws = jax.lax.with_sharding_constraint(draws, _draws_shardings(mesh))
        num_valid = jnp.maximum(jnp.sum(batch.valid), 1.0)
        gradient_of = jax.value_and_grad(loss_sum, has_aux=True)
        if num_micro == 1:
            (total, losses), grads = gradient_of(state.params, state.frozen, batch, draws)
        else:
            total, losses, grads = _accumulate(gradient_of, state, (batch, draws), num_micro, mesh)
        grads = like_state(jax.tree.map(lambda g: g / num_valid, grads))
        rates = SimpleNamespace(**fixed, **settings.optimizer)
        updates, opt_state = make_optimizer(rates).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, state.step, settings.ema_decay) if state.ema else {}
        metrics = {
            "loss": total / num_valid,
            "lr": learning_rate(rates)(state.step),
            **gradient_norms(grads),
            "scene_losses": jax.lax.with_sharding_constraint(losses, by_scene),
            "valid_scenes": jnp.sum(batch.valid),
        }
        new_state = TrainState(
            step=state.step + 1, params=params, frozen=state.frozen, ema=ema, opt_state=opt_state
        )
        # Without this the compiler may split the result in another way, and the next step compiles
        # once more.
        return like_state(new_state), metrics

    return jax.jit(train_step, donate_argnums=0, compiler_options=compiler_options(mesh))


def gradient_norms(grads: Params) -> dict[str, jax.Array]:
    """Euclidean norms before clipping, by name: of all gradients, of each part, and inside it.

    "grad_norm"; "grad_norm_unet", "grad_norm_image_encoder"; "grad_norm_unet/down_blocks_0",
    "grad_norm_unet/mid_block" and so on, for each module that a part is made of.
    """
    norms = {"grad_norm": optax.global_norm(grads)}
    for part, modules in grads.items():
        norms[f"grad_norm_{part}"] = optax.global_norm(modules)
        for name, module in modules.items():
            norms[f"grad_norm_{part}/{name}"] = optax.global_norm(module)
    return norms


def _draws_shardings(mesh: Mesh) -> Any:
    by_scene, by_target = mesh_lib.batch_sharding(mesh), mesh_lib.target_sharding(mesh)
    return Draws(by_scene, by_target, by_target, by_scene)  # type: ignore[arg-type]


def _accumulate(
    gradient_of: Callable[..., Any],
    state: TrainState,
    arrays: tuple[Batch, Draws],
    num_micro: int,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array, Params]:
    """Sums loss and gradients over micro-batches, one after another.

    Scene b goes to micro-batch b % num_micro, so that every device keeps its own scenes.
    """

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0] // num_micro, num_micro, *x.shape[1:])
        return jnp.moveaxis(x, 1, 0)  # [num_micro, B / num_micro, ...]

    def add(carry: Any, micro: tuple[Batch, Draws]) -> tuple[Any, jax.Array]:
        batch, draws = micro
        batch = jax.lax.with_sharding_constraint(batch, batch.shardings(mesh))
        micro = batch, jax.lax.with_sharding_constraint(draws, _draws_shardings(mesh))
        (total, losses), grads = gradient_of(state.params, state.frozen, *micro)
        return jax.tree.map(jnp.add, carry, (total, grads)), losses

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    (total, grads), losses = jax.lax.scan(add, zeros, jax.tree.map(split, arrays))
    return total, jnp.moveaxis(losses, 0, 1).reshape(-1), grads
