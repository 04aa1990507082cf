"""The autoencoder against the original's numbers, and what it promises."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from escherjax.errors import UserError
from escherjax.models.vae import VAE, VAEConfig
from escherjax.weights import names, reading

TINY = VAEConfig(block_channels=(8, 12), layers_per_block=1, norm_groups=4)


@pytest.fixture(scope="module")
def original(golden):
    """(arrays of the original, VAE of its sizes, its parameters)."""
    _, folder, arrays = golden
    network, params = reading.read_component(folder / "vae", "vae")
    return arrays, VAE(network.config), params


@pytest.fixture(scope="module")
def tiny():
    """A small VAE whose parameters are all random: at init, residual branches would be off."""
    shapes = jax.eval_shape(VAE(TINY).init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    return tree.unflatten(
        [jnp.asarray(rng.normal(size=s.shape) / max(s.size / 8, 1) ** 0.5, s.dtype) for s in leaves]
    )


@functools.partial(jax.jit, static_argnums=0)
def _encode(vae, params, images):
    return vae.apply({"params": params}, images, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def _decode(vae, params, latents):
    return vae.apply({"params": params}, latents, method="decode")


@pytest.mark.parametrize("size", ["", "128"])
def test_latents_equal_the_original(original, size):
    arrays, vae, params = original
    images = (arrays[f"vae/images{size}_u8"].astype(np.float32) / 255 - 0.5) / 0.5
    mean, logvar = (np.moveaxis(m, -1, 1) for m in _encode(vae, params, np.moveaxis(images, 1, -1)))
    np.testing.assert_allclose(mean, arrays[f"vae/mean{size}"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logvar, arrays[f"vae/logvar{size}"], atol=1e-4, rtol=0)
    if not size:
        np.testing.assert_allclose(np.exp(logvar / 2), arrays["vae/std"], atol=1e-4, rtol=0)


def test_decoded_images_equal_the_original(original):
    arrays, vae, params = original
    latents = np.moveaxis(arrays["vae/z"], 1, -1)
    images = _decode(vae, params, latents)
    np.testing.assert_allclose(np.moveaxis(images, -1, 1), arrays["vae/decoded"], atol=8e-5, rtol=0)
    shown = np.clip(images / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(shown, arrays["vae/pipeline_decode"], atol=8e-5, rtol=0)


def test_full_size_has_the_parameters_of_stable_diffusion(golden_dir):
    shapes = jax.eval_shape(VAE().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    assert names.count_parameters(shapes) == 83_653_863
    published = json.loads((golden_dir / "full-state-dict-shapes.json").read_text())
    expected = {name: tuple(shape) for name, shape in published["vae"].items()}
    assert names.torch_shapes(shapes) == expected


def test_images_of_a_batch_do_not_see_each_other(tiny, rng):
    vae = VAE(TINY)
    images = jnp.asarray(rng.uniform(-1, 1, size=(2, 8, 8, 3)), jnp.float32)
    mean, logvar = _encode(vae, tiny, images)
    decoded = _decode(vae, tiny, mean)
    for i in range(2):
        alone = _encode(vae, tiny, images[i : i + 1])
        np.testing.assert_allclose(mean[i], alone[0][0], atol=1e-5)
        np.testing.assert_allclose(logvar[i], alone[1][0], atol=1e-5)
        np.testing.assert_allclose(decoded[i], _decode(vae, tiny, alone[0])[0], atol=1e-4)
    assert np.abs(mean[0] - mean[1]).max() > 1e-2


@pytest.mark.parametrize("height, width", [(8, 12), (10, 6), (2, 2)])
def test_any_even_size_halves_at_each_level_and_doubles_back(tiny, height, width, rng):
    images = jnp.asarray(rng.uniform(-1, 1, size=(1, height, width, 3)), jnp.float32)
    mean, logvar = _encode(VAE(TINY), tiny, images)
    assert mean.shape == logvar.shape == (1, height // 2, width // 2, 4)
    assert _decode(VAE(TINY), tiny, mean).shape == images.shape


def test_log_variance_is_clamped_and_mean_is_not(tiny):
    images = jnp.zeros((1, 8, 8, 3))
    bias = jnp.array([99.0] * 4 + [99.0, 99.0, -99.0, -99.0])
    loud = {**tiny, "quant_conv": {**tiny["quant_conv"], "bias": bias}}
    mean, logvar = _encode(VAE(TINY), loud, images)
    assert (mean > 50).all()
    np.testing.assert_array_equal(logvar[..., :2], 20)
    np.testing.assert_array_equal(logvar[..., 2:], -30)


def test_16_bit_compute_gives_float32_results_near_those_of_float32(tiny, rng):
    images = jnp.asarray(rng.uniform(-1, 1, size=(2, 8, 8, 3)), jnp.float32)
    full, half = VAE(TINY), VAE(TINY, dtype=jnp.bfloat16)
    mean, _ = _encode(full, tiny, images)
    for exact, rounded in (
        (mean, _encode(half, tiny, images)[0]),
        (_decode(full, tiny, mean), _decode(half, tiny, mean)),
    ):
        assert rounded.dtype == jnp.float32
        error = np.abs(exact - rounded).max()
        assert 0 < error < 0.05 * np.abs(exact).max()
    program = str(jax.make_jaxpr(half.apply)({"params": tiny}, images))
    convolutions = re.findall(r":(\w+)\[[\d,]*\] = conv_general_dilated", program)
    assert len(convolutions) > 10 and set(convolutions) == {"bf16"}


def test_reconstruction_is_decoding_the_mean(tiny, rng):
    images = jnp.asarray(rng.uniform(-1, 1, size=(1, 8, 8, 3)), jnp.float32)
    vae = VAE(TINY)
    expected = _decode(vae, tiny, _encode(vae, tiny, images)[0])
    found = jax.jit(vae.apply)({"params": tiny}, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_widths_that_do_not_fit_the_norm_groups_are_refused():
    with pytest.raises(UserError, match="norm_groups = 32"):
        VAEConfig(block_channels=(128, 200))
    with pytest.raises(UserError, match="block_channels"):
        VAEConfig(block_channels=())
