"""The U-Net against the original's numbers, and the properties that views and cameras promise."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from escherjax import cape
from escherjax.cameras import Cameras, from_spherical
from escherjax.errors import UserError
from escherjax.models import blocks
from escherjax.models.initialization import draw_parameters
from escherjax.models.unet import TimeEmbedding, UNet, UNetConfig, timestep_features
from escherjax.weights import names

GOLDEN_CONFIGS = {
    "6dof": UNetConfig(block_channels=(32, 64, 64, 64), cross_channels=64),
    "4dof": UNetConfig(block_channels=(16, 32, 48, 64), cross_channels=48, norm_groups=16),
}
CASES = ("b1_i1_o1", "b1_i3_o3", "b2_i2_o5", "b1_i3_o2_ns")
LARGE_CASE = "b1_i3_o3_32"


# Halves the compile time of these tests; the programs run for milliseconds.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def golden_params(golden):
    _, folder, _ = golden
    return names.tree_from_torch(load_file(folder / "unet/diffusion_pytorch_model.safetensors"))


def golden_poses(cape_name, io, prefix):
    """(target poses, reference poses) of a golden case, in the form the network takes."""
    if cape_name == "4dof":
        return {"angles": io[f"{prefix}/pose_out"]}, {"angles": io[f"{prefix}/pose_in"]}
    return tuple(
        {"key": io[f"{prefix}/pose_{side}"], "query": io[f"{prefix}/pose_{side}_inv"]}
        for side in ("out", "in")
    )


def nhwc(array):
    return np.moveaxis(array, 1, -1)


def max_deviation(ours, golden_array):
    return np.abs(np.asarray(ours) - golden_array).max()


@pytest.mark.parametrize(
    ("golden", "case"),
    [(cape, case) for cape in GOLDEN_CONFIGS for case in CASES]
    + [pytest.param("4dof", LARGE_CASE, marks=pytest.mark.slow), ("6dof", LARGE_CASE)],
    indirect=["golden"],
)
def test_outputs_and_intermediates_equal_the_original(golden, golden_params, case):
    cape_name, _, io = golden
    prefix = f"unet/{case}"
    targets, refs = golden_poses(cape_name, io, prefix)
    batch, num_targets = io[f"{prefix}/pose_out"].shape[:2]
    num_refs = io[f"{prefix}/pose_in"].shape[1]
    x, tokens = nhwc(io[f"{prefix}/x"]), io[f"{prefix}/ehs"]

    out, state = jit(
        functools.partial(
            UNet(GOLDEN_CONFIGS[cape_name], cape=cape_name).apply, mutable="intermediates"
        )
    )(
        {"params": golden_params},
        x.reshape(batch, num_targets, *x.shape[1:]),
        io[f"{prefix}/t"].reshape(batch, num_targets)[:, 0],
        tokens.reshape(batch, num_refs, -1, tokens.shape[-1]),
        targets,
        refs,
    )

    assert out.dtype == jnp.float32
    # Wrong norm epsilons already differ by 5e-5; the original's own rounding is 4e-6.
    assert max_deviation(out.reshape(x.shape), nhwc(io[f"{prefix}/out"])) <= 2e-5
    stored = [name for name in io.files if name.startswith(f"{prefix}/h_")]
    assert len(stored) == (12 if case in ("b1_i1_o1", "b1_i3_o3") else 0)
    for name in stored:
        (ours,) = state["intermediates"][name.rsplit("/")[-1]]
        theirs = io[name] if ours.ndim == 2 else nhwc(io[name])
        assert max_deviation(ours, theirs[: len(ours)]) <= 1e-4, name


def test_pieces_equal_the_original(golden, golden_params):
    _, _, io = golden
    features = timestep_features(jnp.asarray(io["pieces/t"]), io["pieces/t_sinusoid"].shape[1])
    assert max_deviation(features, io["pieces/t_sinusoid"]) <= 1.5e-4
    width = io["pieces/time_embedding"].shape[1]
    time = TimeEmbedding(width).apply({"params": golden_params["time_embedding"]}, features)
    assert max_deviation(time, io["pieces/time_embedding"]) <= 5e-5

    x = nhwc(io["pieces/x"])
    level = golden_params["down_blocks_0"]
    resnet = blocks.ResNetBlock(x.shape[-1], num_groups=min(32, x.shape[-1]))
    out = resnet.apply({"params": level["resnets_0"]}, x, io["pieces/temb"])
    assert max_deviation(out, nhwc(io["pieces/resnet_d0_0"])) <= 1e-5
    out = blocks.Downsample().apply({"params": level["downsamplers_0"]}, x)
    assert max_deviation(out, nhwc(io["pieces/downsample_d0"])) <= 1e-5


def test_full_size_has_the_tensors_of_stable_diffusion(golden_dir):
    shapes = jax.eval_shape(
        UNet(cape="none").init,
        jax.random.key(0),
        jnp.zeros((1, 1, 8, 8, 4)),
        jnp.zeros((1,), jnp.int32),
        jnp.zeros((1, 1, 1, 768)),
        {},
        {},
    )["params"]
    published = json.loads((golden_dir / "full-state-dict-shapes.json").read_text())["unet"]
    assert names.count_parameters(shapes) == 859_520_964
    assert names.torch_shapes(shapes) == {name: tuple(shape) for name, shape in published.items()}


# Properties, on a network of two levels with no weight at zero.

SMALL = UNetConfig(
    block_channels=(16, 24),
    attention=(True, False),
    layers_per_block=1,
    num_heads=2,
    cross_channels=12,
    norm_groups=4,
)
ONE_LEVEL = dataclasses.replace(SMALL, block_channels=(8,), attention=(True,))


def init_shapes(config, scene, **fields):
    args = (scene["x"], scene["t"], scene["tokens"], {}, {})
    net = UNet(config, cape="none", **fields)
    return jax.eval_shape(net.init, jax.random.key(0), *args)["params"]


def random_params(shapes, rng):
    """Weights that keep activations of order one, nothing zero."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(
            (1.0 if path[-1].key == "scale" else 0.0)
            + rng.standard_normal(leaf.shape)
            * (np.prod(leaf.shape[:-1]) ** -0.5 if path[-1].key == "kernel" else 0.1),
            jnp.float32,
        ),
        shapes,
    )


@dataclasses.dataclass
class Small:
    """A small network with random weights, jitted once for each argument shape."""

    cape: str
    params: dict

    def __post_init__(self):
        self.apply = jit(
            lambda params, x, t, tokens, target, ref, num: self.net().apply(
                {"params": params},
                x,
                t,
                tokens,
                cape.poses(self.cape, target),
                cape.poses(self.cape, ref),
                num,
            )
        )

    def net(self, **fields):
        return UNet(SMALL, cape=self.cape, **fields)

    def __call__(self, scene, **changes):
        scene = {**scene, **changes}
        out = self.apply(self.params, *(scene[k] for k in SCENE_FIELDS))
        return np.asarray(out)


SCENE_FIELDS = ("x", "t", "tokens", "target", "ref", "num_references")


def make_scene(rng, num_refs=3, num_targets=2, batch=2, side=6):
    def cameras(num_views):
        shape = (batch, num_views)
        return Cameras(
            from_spherical(
                rng.uniform(0.4, 2.6, shape),
                rng.uniform(-2, 2, shape),
                rng.uniform(1.6, 2.1, shape),
            )
        )

    return {
        "x": rng.standard_normal((batch, num_targets, side, side, 4)).astype(np.float32),
        "t": np.array([7, 901], np.int32)[:batch],
        "tokens": rng.standard_normal((batch, num_refs, 5, 12)).astype(np.float32),
        "target": cameras(num_targets),
        "ref": cameras(num_refs),
        "num_references": None,
    }


@pytest.fixture(scope="module", params=["6dof", "4dof"])
def small(request):
    rng = np.random.default_rng(1)
    scene = make_scene(rng)
    return Small(request.param, random_params(init_shapes(SMALL, scene), rng))


@pytest.fixture(scope="module")
def scene():
    return make_scene(np.random.default_rng(2))


@pytest.fixture(scope="module")
def output(small, scene):
    return small(scene)


def test_output_ignores_order_of_references(small, scene, output):
    order = [2, 0, 1]
    shuffled = small(scene, tokens=scene["tokens"][:, order], ref=scene["ref"][:, order])
    np.testing.assert_allclose(shuffled, output, atol=2e-5)


def test_tokens_belong_to_their_camera(small, scene, output):
    order = [2, 0, 1]
    assert np.abs(small(scene, ref=scene["ref"][:, order]) - output).max() > 1e-3


def test_permuting_targets_permutes_outputs(small, scene, output):
    order = [1, 0]
    shuffled = small(scene, x=scene["x"][:, order], target=scene["target"][:, order])
    np.testing.assert_allclose(shuffled, output[:, order], atol=2e-5)
    assert np.abs(output[:, order] - output).max() > 1e-2


def test_targets_see_each_other(small, scene, output):
    changed = scene["x"].copy()
    changed[:, 1] += 1.0
    assert np.abs(small(scene, x=changed)[:, 0] - output[:, 0]).max() > 1e-3


def test_scenes_do_not_see_each_other(small, scene, output):
    changed = {key: scene[key].copy() for key in ("x", "tokens")}
    for array in changed.values():
        array[1] += 1.0
    np.testing.assert_allclose(small(scene, **changed)[0], output[0], atol=2e-5)


def test_output_ignores_world_motion(small, scene, output):
    cos, sin = np.cos(0.7), np.sin(0.7)
    world = np.eye(4, dtype=np.float32)
    world[:2, :2] = [[cos, -sin], [sin, cos]]  # about z: all that 4DoF may ignore
    if small.cape == "6dof":
        tilt = np.eye(4, dtype=np.float32)
        tilt[1:3, 1:3] = [[cos, -sin], [sin, cos]]
        world = world @ tilt
        world[:3, 3] = [0.3, -0.2, 0.5]
    moved = {side: Cameras(world @ scene[side].c2w) for side in ("target", "ref")}
    np.testing.assert_allclose(small(scene, **moved), output, atol=3e-5)
    assert np.abs(small(scene, target=moved["target"]) - output).max() > 1e-3


def test_any_number_of_views_and_odd_sides(small):
    other = make_scene(np.random.default_rng(3), num_refs=4, num_targets=1, batch=1, side=7)
    out = small(other)
    assert out.shape == (1, 1, 7, 7, 4)
    assert np.isfinite(out).all()


def test_num_references_equals_passing_fewer(small, scene, output):
    counted = small(scene, num_references=np.array([2, 3], np.int32))
    np.testing.assert_allclose(counted[1], output[1], atol=2e-5)
    fewer = small(scene, tokens=scene["tokens"][:, :2], ref=scene["ref"][:, :2])
    np.testing.assert_allclose(counted[0], fewer[0], atol=2e-5)
    assert np.abs(fewer[0] - output[0]).max() > 1e-3


def test_remat_changes_neither_outputs_nor_gradients_nor_names(scene):
    poses = [cape.poses("6dof", scene[side]) for side in ("target", "ref")]
    args = (scene["x"], scene["t"], scene["tokens"], *poses)
    params = random_params(init_shapes(ONE_LEVEL, scene), np.random.default_rng(4))

    def loss(params, remat):
        return jnp.mean(jnp.square(UNet(ONE_LEVEL, remat=remat).apply({"params": params}, *args)))

    grad = jax.value_and_grad(loss)
    loss_stored, stored = jit(grad, static_argnums=1)(params, False)
    recomputing = jit(grad, static_argnums=1).lower(params, True)
    assert recomputing.as_text().count("optimization_barrier") >= 7  # the units of this network
    loss_again, again = recomputing.compile()(params)
    np.testing.assert_allclose(loss_again, loss_stored, rtol=1e-6)
    assert jax.tree.structure(again) == jax.tree.structure(stored)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(stored), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(stored))


def test_bfloat16_is_near_float32(small, scene, output):
    poses = [cape.poses(small.cape, scene[side]) for side in ("target", "ref")]
    out, state = jit(
        functools.partial(small.net(dtype=jnp.bfloat16).apply, mutable="intermediates")
    )({"params": small.params}, scene["x"], scene["t"], scene["tokens"], *poses)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.bfloat16)}
    assert out.dtype == jnp.float32
    error = np.sqrt(np.mean(np.square(out - output)) / np.mean(np.square(output)))
    assert error < 0.03, error


def test_bfloat16_keeps_parameters_float32(scene):
    shapes = init_shapes(SMALL, scene, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


def test_fresh_network_predicts_zero(scene):
    args = (scene["x"], scene["t"], scene["tokens"], {}, {})
    network = UNet(ONE_LEVEL, cape="none")
    shapes = jax.eval_shape(network.init, jax.random.key(0), *args)["params"]
    params = draw_parameters({"unet": shapes}, seed=0)["unet"]
    assert not np.any(jit(network.apply)({"params": params}, *args))
    assert np.any(params["conv_in"]["kernel"])


@pytest.mark.parametrize("side", [8, 7])
def test_upsampling_is_nearest_neighbour(side, rng):
    x = rng.standard_normal((1, 4, 4, 2)).astype(np.float32)
    identity = np.zeros((3, 3, 2, 2), np.float32)
    identity[1, 1] = np.eye(2)
    params = {"conv": {"kernel": identity, "bias": np.zeros(2, np.float32)}}
    out = blocks.Upsample().apply({"params": params}, x, (side, side))
    nearest = np.floor(np.arange(side) * (4 / side)).astype(int)
    np.testing.assert_array_equal(out, x[:, nearest][:, :, nearest])


def test_group_norm_equals_the_plain_formula(rng):
    x = (rng.standard_normal((2, 5, 3, 12)) * 2 + 3).astype(np.float32)
    gain, bias = rng.standard_normal((2, 12)).astype(np.float32)
    norm = blocks.GroupNorm(4, epsilon=1e-2, activation=nn.silu)
    out = norm.apply({"params": {"scale": gain, "bias": bias}}, x)
    groups = x.reshape(2, 15, 4, 3).astype(np.float64)
    centred = groups - groups.mean((1, 3), keepdims=True)
    normal = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-2)
    y = normal.reshape(x.shape) * gain + bias
    np.testing.assert_allclose(out, y / (1 + np.exp(-y)), atol=1e-5)


def test_wrong_number_of_cameras_is_refused(scene):
    poses = cape.poses("6dof", scene["target"])
    with pytest.raises(UserError, match=r"reference cameras .*\(2, 3\).* got \(2, 2\)"):
        UNet(SMALL).init(jax.random.key(0), scene["x"], scene["t"], scene["tokens"], poses, poses)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"norm_groups": 5}, r"norm_groups must .*got 5, .*\[16, 24\]"),
        ({"num_heads": 16}, r"num_heads must .*got 16, .*\[24\]"),
        ({"attention": (True,)}, "unet.attention and .* got 1 and 2"),
        ({"block_channels": (), "attention": ()}, "a level at least"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **fields)
