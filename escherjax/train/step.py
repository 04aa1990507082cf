"""One training step: draws, loss, gradients, update (arXiv 2402.03908, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from escherjax.data.batch import Batch, unit_images
from escherjax.devices import mesh as sharding
from escherjax.devices.chips import compiler_options
from escherjax.models.diffusion.schedule import add_noise, training_target
from escherjax.models.eschernet import EscherNet, Params
from escherjax.train.optimizer import learning_rate, update_ema
from escherjax.train.state import TrainState


@flax.struct.dataclass
class Draws:
    """The randomness of one step, for B scenes of M target views.

    timesteps: [B] int32, one a scene, shared by its targets; noise and posterior_noise:
    [B, M, h, w, C] standard normal; drop: [B] bool, scenes trained without their references.
    """

    timesteps: jax.Array
    noise: jax.Array
    posterior_noise: jax.Array
    drop: jax.Array


def draw(key: jax.Array, model: EscherNet, batch: Batch, drop_rate: float) -> Draws:
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


def make_train_step(
    model: EscherNet, optimizer: optax.GradientTransformation, config: ConfigDict, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """The jitted step: (state, batch) -> (state, metrics); the old state's memory is reused.

    metrics: scalars "loss", "lr", those of `gradient_norms`, and "scene_losses" [B], by which a
    broken scene can be named, and "valid_scenes", how many of them were not left out.
    """
    num_micro = config.accumulation_steps
    schedule = learning_rate(config.optimizer)
    by_scene = sharding.batch_sharding(mesh)
    model = model.spread_over(sharding.spread(mesh, config.attention_gather))

    def like_state(tree):
        return jax.lax.with_sharding_constraint(tree, sharding.state_shardings(mesh, tree))

    def loss_sum(trained, frozen, batch, draws):
        losses = scene_losses(model, trained, frozen, batch, draws)
        # `where` keeps what a skipped scene holds out of the sum, whatever it is.
        return jnp.sum(jnp.where(batch.valid > 0, losses, 0.0)), losses

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        draws = draw(key, model, batch, config.conditioning_dropout)
        draws = jax.lax.with_sharding_constraint(draws, _draws_shardings(mesh))
        num_valid = jnp.maximum(jnp.sum(batch.valid), 1.0)
        gradient_of = jax.value_and_grad(loss_sum, has_aux=True)
        if num_micro == 1:
            (total, losses), grads = gradient_of(state.params, state.frozen, batch, draws)
        else:
            total, losses, grads = _accumulate(gradient_of, state, (batch, draws), num_micro, mesh)
        grads = like_state(jax.tree.map(lambda g: g / num_valid, grads))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, state.step, config.ema.decay) if state.ema else {}
        metrics = {
            "loss": total / num_valid,
            "lr": schedule(state.step),
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


def _draws_shardings(mesh: Mesh) -> Draws:
    by_scene, by_target = sharding.batch_sharding(mesh), sharding.target_sharding(mesh)
    return Draws(timesteps=by_scene, noise=by_target, posterior_noise=by_target, drop=by_scene)


def _accumulate(gradient_of, state: TrainState, arrays, num_micro: int, mesh: Mesh):
    """Sums loss and gradients over micro-batches, one after another.

    Scene b goes to micro-batch b % num_micro, so that every device keeps its own scenes.
    """

    def split(x):
        x = x.reshape(x.shape[0] // num_micro, num_micro, *x.shape[1:])
        return jnp.moveaxis(x, 1, 0)  # [num_micro, B / num_micro, ...]

    def add(carry, micro):
        batch, draws = micro
        batch = jax.lax.with_sharding_constraint(batch, batch.shardings(mesh))
        micro = batch, jax.lax.with_sharding_constraint(draws, _draws_shardings(mesh))
        (total, losses), grads = gradient_of(state.params, state.frozen, *micro)
        return jax.tree.map(jnp.add, carry, (total, grads)), losses

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    (total, grads), losses = jax.lax.scan(add, zeros, jax.tree.map(split, arrays))
    return total, jnp.moveaxis(losses, 0, 1).reshape(-1), grads
