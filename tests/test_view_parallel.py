"""Target views split over devices: attention and generation as on one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from escherjax import cameras as cameras_lib
from escherjax import cape
from escherjax.cameras import Cameras
from escherjax.devices import mesh as sharding
from escherjax.devices.spread import Spread
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.models.attention import Attention
from escherjax.sample.pipeline import Pipeline
from tests.helpers.random_models import random_params
from tests.helpers.tiny import tiny_config

NUM_SCENES, NUM_VIEWS, TOKENS, WIDTH = 2, 4, 3, 32
HEADS = 4


pytestmark = pytest.mark.usefixtures("compiled_fast")


def some_cameras(rng, *shape):
    angles = rng.uniform(0.3, 2.8, shape), rng.uniform(-3, 3, shape)
    return Cameras(cameras_lib.from_spherical(*angles, rng.uniform(1.5, 2.2, shape)))


def joint_attention(variant, spread):
    """(parameters, x [B, M, T, C], lengths) -> joint self-attention of all views, same shape."""
    poses = cape.poses(variant, some_cameras(np.random.default_rng(1), NUM_SCENES, NUM_VIEWS))
    module = Attention(WIDTH, HEADS, variant, spread=spread, keys_are_views=True)

    def attend(params, x, poses, lengths):
        flat = x.reshape(len(x), -1, WIDTH)
        return module.apply({"params": params}, flat, flat, poses, poses, lengths).reshape(x.shape)

    split = attend if spread is None else spread.over_views(attend, (False, True, True, False))
    return lambda params, x, lengths: split(params, x, poses, lengths)


def value_and_gradients(function):
    def weighted(params, x, lengths):
        out = function(params, x, lengths)
        return jnp.sum(jnp.sin(3 * out)), out  # every element has a gradient of its own

    return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))


@pytest.fixture(scope="module")
def arguments():
    rng = np.random.default_rng(0)
    kernels = {
        name: {"kernel": rng.standard_normal((WIDTH, WIDTH), np.float32) / np.sqrt(WIDTH)}
        for name in ("to_q", "to_k", "to_v", "to_out_0")
    }
    kernels["to_out_0"]["bias"] = rng.standard_normal(WIDTH).astype(np.float32)
    x = rng.standard_normal((NUM_SCENES, NUM_VIEWS, TOKENS, WIDTH), np.float32)
    # One scene sees all views, the other only the first: whole blocks of keys are masked.
    return kernels, x, np.array([NUM_VIEWS * TOKENS, TOKENS], np.int32)


def mesh_of(**axes):
    config = tiny_config(num_targets=4, **{f"mesh__{axis}": size for axis, size in axes.items()})
    return sharding.make_mesh(config.mesh)


@pytest.mark.parametrize("gather", ["all", "ring"])
@pytest.mark.parametrize(
    ("variant", "axes"),
    [("6dof", {"data": 2, "view": 4}), ("4dof", {"fsdp": 2, "model": 2, "view": 2})],
)
def test_attention_among_views_of_several_devices_equals_one(arguments, variant, axes, gather):
    """Values and gradients, float32: sums of a hundred terms of order 1, in another order."""
    spread = sharding.spread(mesh_of(**axes), gather)
    for lengths in (None, arguments[2]):
        expected = value_and_gradients(joint_attention(variant, None))(*arguments[:2], lengths)
        found = value_and_gradients(joint_attention(variant, spread))(*arguments[:2], lengths)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_keys_and_values_are_gathered_once_and_nothing_else_is(arguments):
    """One gather each of K and V, of this device's scenes and heads: no other axis is undone."""
    mesh = mesh_of(fsdp=2, model=2, view=2)
    function = jax.jit(joint_attention("6dof", sharding.spread(mesh)))
    params, x, _ = arguments
    shardings = sharding.state_shardings(mesh, {"attn1": params})["attn1"]
    x = jax.device_put(x, sharding.target_sharding(mesh))
    text = function.lower(jax.device_put(params, shardings), x, None).compile().as_text()
    found = re.findall(r"= (\S+?)\{\S+ (all-gather|all-to-all|collective-permute)\(", text)
    share = f"f32[{NUM_SCENES // 2},{NUM_VIEWS * TOKENS},{HEADS // 2},{WIDTH // HEADS}]"
    assert found == [(share, "all-gather")] * 2


def make_pipeline(mesh):
    config = tiny_config(
        latents__kind="vae",
        latents__vae__block_channels="(8, 8)",
        latents__vae__layers_per_block=1,
        latents__vae__norm_groups=4,
        unet__attention="(False,)",
    )
    model = eschernet.from_config(config)
    params = random_params(model.parameter_shapes(16), np.random.default_rng(2))
    return Pipeline(model, params, 16, mesh=mesh)


def test_views_generated_by_four_devices_equal_those_of_one(rng):
    """Five views on four devices: three more are computed, seen by none, and thrown away.

    Two steps of a network of random parameters; pictures in [0, 1] to float32 rounding, which
    guidance multiplies by five or so.
    """
    images = rng.random((2, 16, 16, 3), np.float32)
    views = images, some_cameras(rng, 2), some_cameras(rng, 5)
    expected = make_pipeline(None).generate(*views, num_steps=2)
    found = make_pipeline(sharding.view_mesh(4)).generate(*views, num_steps=2)
    assert expected.std() > 0.05
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_more_view_devices_than_there_are_is_refused():
    with pytest.raises(UserError, match="must be 1 to 8.*got 9"):
        sharding.view_mesh(9)
    with pytest.raises(UserError, match="must be 1 to 8.*got 0"):
        sharding.view_mesh(0)


def test_one_device_needs_no_spread():
    assert sharding.spread(sharding.single_device_mesh()) is None
    assert isinstance(sharding.spread(sharding.view_mesh(2)), Spread)
