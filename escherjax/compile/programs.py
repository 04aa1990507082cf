"""Lowers the programs to compile with abstract arguments, so that nothing is allocated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from escherjax.data.batch import Batch, abstract_batch, unit_images
from escherjax.devices import mesh as sharding
from escherjax.devices.chips import compiler_options
from escherjax.models import eschernet
from escherjax.models.diffusion.sampling import Sampling
from escherjax.models.eschernet import EscherNet, SceneBatch
from escherjax.train import perf
from escherjax.train.state import abstract_state
from escherjax.train.step import StepSettings, train_program

PROGRAMS = ("train", "sample")


@dataclasses.dataclass(frozen=True)
class Program:
    """A lowered program."""

    lowered: Any  # `jax.stages.Lowered`
    arguments: Any  # the state it takes beside data, abstract, with shardings
    model_flops: float  # of one call on all chips together, recomputation not counted
    loop_steps: int = 1  # how often its outer loop runs


def lower_program(name: str, config: ConfigDict, mesh: Mesh) -> Program:
    """Traces and lowers a program for the devices of `mesh`.

    Args:
        name: "train", one step on config.batch_size scenes; or "sample", config.eval.num_targets
            views of config.eval.batch_size scenes by config.eval.num_sampling_steps steps of DDIM
            with guidance, from max(config.eval.num_references) references.
        config: a resolved training config.
        mesh: devices to compile for, real or of a topology.
    """
    model = eschernet.from_config(config)
    state = abstract_state(model, mesh, config)
    arguments: Any = state
    jitted: Any
    if name == "train":
        counts = config.num_references, config.num_targets
        moments_shape = eschernet.moments_shape(config) if config.data.latents else ()
        batch = abstract_batch(config.batch_size, counts, config.resolution, moments_shape, mesh)
        jitted = train_program(model, mesh, config)
        rest = (batch, StepSettings.from_config(config))
        flops = perf.train_step_flops(model, state, config, counts)
    else:
        arguments = state.sampling_params()
        jitted, rest, flops = _sampling(model, arguments, config, mesh)
    with jax.set_mesh(mesh):  # by which attention knows its chips
        loop_steps = 1 if name == "train" else config.eval.num_sampling_steps
        return Program(jitted.lower(arguments, *rest), arguments, flops, loop_steps)


def _sampling(
    model: EscherNet, params: Any, config: ConfigDict, mesh: Mesh
) -> tuple[Any, tuple[Any, ...], float]:
    """Returns (jitted generation, its arguments after the parameters, its FLOPs)."""
    size, num_targets = config.eval.batch_size, config.eval.num_targets
    counts = max(config.eval.num_references), num_targets
    batch = abstract_batch(size, counts, config.resolution, mesh=mesh)
    latents = jax.ShapeDtypeStruct(
        (size, num_targets, *model.latent_shape(config.resolution)),
        jnp.float32,
        sharding=sharding.target_sharding(mesh),
    )

    def generate_with(network: EscherNet) -> Callable[..., jax.Array]:
        def generate(params: Any, batch: Batch, latents: jax.Array) -> jax.Array:
            scenes = SceneBatch(
                unit_images(batch.ref_images), *batch.cameras, latents, batch.num_references
            )
            sampling = Sampling(config.eval.num_sampling_steps, config.guidance_scale)
            return network.generate(params, scenes, sampling)

        return generate

    plain = dataclasses.replace(model, unet=model.unet.clone(attention_impl="xla"))
    flops = perf.count_flops(generate_with(plain), params, batch, latents)
    spread = model.spread_over(sharding.spread(mesh, config.attention_gather))
    jitted = jax.jit(generate_with(spread), compiler_options=compiler_options(mesh))
    return jitted, (batch, latents), flops
