"""What sampling computes once, or not at all: equal to the network without these savings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from escherjax import cape
from escherjax.cameras import Cameras, from_spherical
from escherjax.models import eschernet
from escherjax.models.diffusion.sampling import Sampling
from escherjax.models.eschernet import SceneBatch
from escherjax.train import perf
from tests.helpers.random_models import random_params
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("compiled_fast")

# Pairs of scenes are formed in the first transformer: of the first level, or of the middle only.
NETWORKS = {
    "6dof": {"unet__block_channels": "(32,)", "unet__attention": "(True,)"},
    "4dof": {"unet__block_channels": "(16, 32)", "unet__attention": "(False, False)"},
}


def network(variant):
    config = tiny_config(cape=variant, unet__layers_per_block=1, **NETWORKS[variant])
    model = eschernet.from_config(config)
    return model, random_params(model.parameter_shapes(16), np.random.default_rng(0))


def some_cameras(rng, batch, count):
    angles = rng.uniform(0.5, 2.5, (batch, count)), rng.uniform(-3, 3, (batch, count))
    return Cameras(from_spherical(*angles, rng.uniform(1.5, 2.2, (batch, count))))


def scenes(model, rng, batch=2, num_references=3, num_targets=3):
    tokens = rng.standard_normal((batch, num_references, 4, model.unet.config.cross_channels))
    latents = rng.standard_normal((batch, num_targets, *model.latent_shape(16)))
    cameras = (some_cameras(rng, batch, n) for n in (num_references, num_targets))
    return tokens.astype(np.float32), *cameras, latents.astype(np.float32)


@pytest.mark.parametrize("variant", NETWORKS)
def test_guided_denoiser_equals_two_plain_predictions(variant, rng):
    """Cached keys and values, and pairs from the first transformer on, against the network twice.

    Float32 products of other sizes, so rounding: 1e-6 is seen where outputs are of order one.
    """
    model, params = network(variant)
    tokens, references, targets, latents = scenes(model, rng)
    timesteps = np.array([3, 900])
    counts = np.array([3, 2], np.int32), np.array([2, 3], np.int32)

    def guided(params, latents, timesteps, tokens):
        predict = model.denoiser(params, tokens, references, targets, *counts, guided=True)
        return predict(latents, timesteps)

    plain = jax.jit(
        lambda params, tokens: model.predict(
            params, latents, timesteps, tokens, references, targets, *counts
        )
    )
    found = jax.jit(guided)(params, latents, timesteps, tokens)
    expected = np.stack([plain(params, jnp.zeros_like(tokens)), plain(params, tokens)], axis=1)
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def flops_per_step(model, params, guidance_scale, num_references):
    """Of two steps, less what the references cost once, by half."""
    rng = np.random.default_rng(0)
    tokens, references, targets, latents = scenes(model, rng, 1, num_references)
    whole = perf.count_flops(
        lambda params, tokens, latents: model.generate_latents(
            params,
            tokens,
            SceneBatch(None, references, targets, latents),
            Sampling(2, guidance_scale),
        ),
        params,
        tokens,
        latents,
    )
    poses = cape.poses(model.cape, references)
    once = perf.count_flops(model.unet.reference_cache, params["unet"], tokens, poses)
    assert once > 0
    return (whole - once) / 2


def test_a_step_costs_no_more_for_references_than_the_conditional_products():
    """A reference more adds logits and sums of values, once: no projection, nothing for zeros."""
    model, params = network("6dof")
    with_three, with_four = (flops_per_step(model, params, 3.0, n) for n in (3, 4))
    # Down, middle and up: 1 + 1 + 2 transformers of width 32 on 3 views of 8 x 8, 4 tokens more.
    queries, keys, width = 3 * 8 * 8, 4, 32
    assert with_four - with_three == 4 * (2 * 2 * queries * keys * width)
    unguided = flops_per_step(model, params, 1.0, 3)
    assert 1.5 * unguided < with_three < 2 * unguided
