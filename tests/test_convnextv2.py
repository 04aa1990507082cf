"""The image encoder against the original's numbers, and what its tokens promise."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from escherjax.errors import UserError
from escherjax.models import convnextv2
from escherjax.models.convnextv2 import ConvNeXtV2, ConvNeXtV2Config, bicubic_taps, preprocess
from escherjax.weights import names, reading

TINY = ConvNeXtV2Config(depths=(1, 1), widths=(8, 12), patch_size=2, image_size=16)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, images):
    return model.apply({"params": params}, images)


@pytest.fixture(scope="module")
def tiny():
    """Random parameters of a small encoder, none at its default."""
    shapes = jax.eval_shape(ConvNeXtV2(TINY).init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    leaves, tree = jax.tree.flatten(shapes["params"])
    rng = np.random.default_rng(1)
    return tree.unflatten([jnp.asarray(rng.normal(size=s.shape) / 4, s.dtype) for s in leaves])


@pytest.fixture(scope="module")
def encoded(golden):
    """(arrays of the original, our tokens, our intermediate maps as NCHW of image 0)."""
    _, folder, arrays = golden
    network, params = reading.read_component(folder / "image_encoder", "image_encoder")
    images = (arrays["image_encoder/images_u8"].astype(np.float32) / 255 - 0.5) / 0.5
    apply = jax.jit(lambda p, x: ConvNeXtV2(network.config).apply({"params": p}, x, mutable=True))
    tokens, state = apply(params, np.moveaxis(images, 1, -1))
    sown = state["intermediates"]
    maps = {
        "preprocessed": sown["preprocessed"],
        "embeddings": sown["stem"],
        **sown["encoder"],
    }
    return arrays, tokens, {k: np.moveaxis(v[0][:1], -1, 1) for k, v in maps.items()}


def test_preprocessed_image_equals_the_original(encoded):
    arrays, _, maps = encoded
    expected = arrays["image_encoder/preprocessed"]
    np.testing.assert_allclose(maps["preprocessed"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["embeddings", "stage0", "stage1", "stage2", "stage3"])
def test_maps_equal_the_original(encoded, name):
    arrays, _, maps = encoded
    # The original's own rounding (float32 against float64) is up to 9e-5 here.
    np.testing.assert_allclose(maps[name], arrays[f"image_encoder/{name}"], atol=2e-4, rtol=0)


def test_tokens_equal_the_original_and_not_those_of_an_antialiased_resize(encoded):
    arrays, tokens, _ = encoded
    np.testing.assert_allclose(tokens, arrays["image_encoder/tokens"], atol=2e-4, rtol=0)
    antialiased = arrays["image_encoder/tokens_if_antialias_true"]
    assert np.abs(tokens[:1] - antialiased).max() > 0.1


def test_full_size_has_the_parameters_of_the_published_encoder(golden_dir):
    shapes = jax.eval_shape(
        ConvNeXtV2(ConvNeXtV2Config()).init, jax.random.key(0), jnp.zeros((1, 256, 256, 3))
    )["params"]
    assert names.count_parameters(shapes) == 27_866_496
    published = json.loads((golden_dir / "full-state-dict-shapes.json").read_text())
    expected = {name: tuple(shape) for name, shape in published["image_encoder"].items()}
    assert names.torch_shapes(shapes) == expected


@pytest.mark.parametrize("size_in, size_out", [(10, 7), (6, 9), (16, 4)])
def test_resize_equals_a_pixel_by_pixel_reference(size_in, size_out, rng):
    def kernel(d, a=-0.75):
        d = abs(d)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    signal = rng.normal(size=size_in)
    expected = []
    for i in range(size_out):
        centre = (i + 0.5) * size_in / size_out - 0.5
        first = math.floor(centre) - 1
        expected.append(
            sum(
                kernel(centre - p) * signal[min(max(p, 0), size_in - 1)]
                for p in range(first, first + 4)
            )
        )
    np.testing.assert_allclose(_resize(signal, size_out), expected, atol=1e-5)


def _resize(signal, size_out):
    pixels, weights = bicubic_taps(len(signal), size_out)
    return (signal[pixels] * weights).sum(axis=1)


def test_resize_keeps_constants_overshoots_edges_and_leaves_the_right_size_alone():
    np.testing.assert_allclose(_resize(np.ones(256), 224), 1, atol=1e-6)
    np.testing.assert_array_equal(_resize(np.arange(5.0), 5), np.arange(5.0))
    assert _resize(np.repeat([0.0, 1.0], 8), 14).max() > 1.02
    image = np.linspace(-1, 1, 4 * 4 * 3, dtype=np.float32).reshape(4, 4, 3)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(preprocess(image, 4), ((image + 1) / 2 - mean) / std, atol=1e-5)


def test_resize_treats_rows_and_columns_alike_and_is_float32_for_16_bit_images(rng):
    images = jnp.asarray(rng.normal(size=(2, 3, 10, 6, 3)), jnp.bfloat16)
    upright = preprocess(images, 8)
    assert upright.shape == (2, 3, 8, 8, 3) and upright.dtype == jnp.float32
    np.testing.assert_array_equal(preprocess(images.astype(jnp.float32), 8), upright)
    turned = preprocess(images.swapaxes(2, 3), 8)
    np.testing.assert_allclose(turned.swapaxes(2, 3), upright, atol=1e-5)


@pytest.mark.parametrize("height, width", [(16, 16), (10, 10), (18, 30)])
def test_images_of_any_size_give_the_same_number_of_tokens(tiny, height, width, rng):
    images = jnp.asarray(rng.uniform(-1, 1, size=(2, height, width, 3)), jnp.float32)
    tokens = _apply(ConvNeXtV2(TINY), tiny, images)
    assert tokens.shape == (2, TINY.num_tokens, 12) == (2, 16, 12)
    assert np.isfinite(tokens).all()


@pytest.mark.parametrize(
    "stages, patch, size, expected",
    [(4, 4, 224, 49), (1, 4, 16, 16), (3, 2, 32, 16), (2, 8, 48, 9)],
)
def test_number_of_tokens_follows_from_size_patch_and_stages(stages, patch, size, expected):
    config = ConvNeXtV2Config((1,) * stages, (8,) * stages, patch, size)
    shape = jax.eval_shape(
        ConvNeXtV2(config).init_with_output, jax.random.key(0), jnp.zeros((1, 20, 20, 3))
    )[0].shape
    assert shape == (1, expected, 8) and config.num_tokens == expected


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="multiple of 32"):
        ConvNeXtV2Config(image_size=230)
    with pytest.raises(UserError, match="one entry for each stage"):
        ConvNeXtV2Config(depths=(1, 1))


def test_each_token_is_normalised_by_itself(tiny, rng):
    images = jnp.asarray(rng.uniform(-1, 1, size=(2, 16, 16, 3)), jnp.float32)
    plain = {**tiny, "layernorm": {"scale": jnp.ones(12), "bias": jnp.zeros(12)}}
    tokens = _apply(ConvNeXtV2(TINY), plain, images)
    np.testing.assert_allclose(tokens.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(tokens.std(-1), 1, atol=1e-3)
    assert np.abs(np.diff(tokens, axis=1)).max() > 0.1


def test_a_silent_channel_has_finite_gradients():
    norm = convnextv2._GlobalResponseNorm(jnp.float32, jnp.float32)
    params = {"params": {"weight": jnp.ones((1, 1, 1, 3)), "bias": jnp.ones((1, 1, 1, 3))}}
    x = jnp.ones((1, 2, 2, 3)).at[..., 1].set(0)
    gradient = jax.grad(lambda x: (norm.apply(params, x) ** 2).sum())(x)
    assert np.isfinite(gradient).all() and (np.abs(gradient[..., 1]) > 0).all()


def test_16_bit_compute_stays_near_float32(tiny, rng):
    images = jnp.asarray(rng.uniform(-1, 1, size=(2, 16, 16, 3)), jnp.float32)
    model = ConvNeXtV2(TINY, dtype=jnp.bfloat16)
    half, state = jax.jit(lambda p, x: model.apply({"params": p}, x, mutable=True))(tiny, images)
    full = _apply(ConvNeXtV2(TINY), tiny, images)
    assert half.dtype == jnp.bfloat16 and full.dtype == jnp.float32
    assert {m.dtype for m in jax.tree.leaves(state["intermediates"]["encoder"])} == {half.dtype}
    error = np.abs(half.astype(jnp.float32) - full).max()
    assert 0 < error < 0.1 * np.abs(full).max()
