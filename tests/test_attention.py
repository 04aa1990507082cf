"""Attention against a slow reference, against the original, and the fused kernel's padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from escherjax import cape
from escherjax.cameras import Cameras, from_spherical
from escherjax.errors import UserError
from escherjax.models.attention import Attention, attend, pad_keys_to_even, resolve_implementation
from escherjax.models.blocks import Conditioning, FeedForward, SpatialTransformer, TransformerBlock
from escherjax.weights import names


def slow_attention(q, k, v, key_lengths):
    """Softmax attention of one row and head at a time, in float64."""
    out = np.zeros(q.shape)
    for b, length in enumerate(key_lengths):
        for h in range(q.shape[2]):
            logits = q[b, :, h].astype(np.float64) @ k[b, :length, h].T / np.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :length, h]
    return out


def random_qkv(rng, num_queries=6, num_keys=7, heads=2, head_dim=8, batch=2):
    shapes = [(batch, n, heads, head_dim) for n in (num_queries, num_keys, num_keys)]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def test_attend_equals_slow_softmax_attention(rng):
    q, k, v = random_qkv(rng)
    np.testing.assert_allclose(attend(q, k, v), slow_attention(q, k, v, [7, 7]), atol=1e-6)


def test_attend_sees_only_the_first_keys(rng):
    q, k, v = random_qkv(rng)
    out = attend(q, k, v, key_lengths=jnp.array([3, 7], jnp.int32))
    np.testing.assert_allclose(out, slow_attention(q, k, v, [3, 7]), atol=1e-6)


@pytest.mark.parametrize("lengths", [None, [4, 7]])
def test_padding_odd_keys_changes_neither_outputs_nor_gradients(rng, lengths):
    q, k, v = random_qkv(rng)
    lengths = None if lengths is None else jnp.array(lengths, jnp.int32)

    def padded(q, k, v):
        return attend(q, *pad_keys_to_even(k, v, lengths)[:2], "xla", effective)

    k_even, v_even, effective = pad_keys_to_even(k, v, lengths)
    assert k_even.shape[1] == v_even.shape[1] == 8
    assert effective.dtype == jnp.int32
    np.testing.assert_array_equal(effective, [7, 7] if lengths is None else lengths)
    np.testing.assert_allclose(padded(q, k, v), attend(q, k, v, "xla", lengths), atol=1e-6)
    grads = [
        jax.grad(lambda *qkv, f=f: jnp.sum(jnp.sin(f(*qkv))), argnums=(0, 1, 2))(q, k, v)
        for f in (padded, lambda *qkv: attend(*qkv, "xla", lengths))
    ]
    for ours, plain in zip(*grads, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-6)


def test_even_keys_are_not_padded(rng):
    _, k, v = random_qkv(rng, num_keys=4)
    k_same, v_same, lengths = pad_keys_to_even(k, v, None)
    assert k_same is k and v_same is v and lengths is None


def test_auto_is_plain_attention_off_the_gpu():
    assert resolve_implementation("auto", jnp.zeros((1, 4096, 8, 64), jnp.bfloat16)) == "xla"
    assert resolve_implementation("cudnn", jnp.zeros((1, 4, 8, 64))) == "cudnn"


def test_unknown_implementation_is_refused(rng):
    with pytest.raises(UserError, match="attention_impl .* auto, xla, cudnn, .*got 'flash'"):
        attend(*random_qkv(rng), "flash")


def test_values_carry_no_camera(rng):
    """With a single key, attention returns its value whatever the cameras are."""
    x = rng.standard_normal((1, 4, 16)).astype(np.float32)
    context = rng.standard_normal((1, 1, 12)).astype(np.float32)

    def poses(azimuth):
        angles = [np.full((1, 1), a, np.float32) for a in (1.0, azimuth, 1.8)]
        return cape.poses("6dof", Cameras(from_spherical(*angles)))

    layer = Attention(16, num_heads=2)
    variables = layer.init(jax.random.key(0), x, context, poses(0.0), poses(0.5))
    outputs = [layer.apply(variables, x, context, poses(0.0), poses(a)) for a in (0.5, 2.0)]
    np.testing.assert_array_equal(*outputs)


# The original's numbers: `down_blocks.1.attentions.0`, 2 scenes, 3 targets, 2 references.


@pytest.fixture(scope="module")
def original(golden):
    cape_name, folder, io = golden
    params = names.tree_from_torch(load_file(folder / "unet/diffusion_pytorch_model.safetensors"))
    if cape_name == "4dof":
        targets, refs = ({"angles": io[f"attn/pose_{side}"]} for side in ("out", "in"))
    else:
        targets, refs = (
            {"key": io[f"attn/pose_{side}"], "query": io[f"attn/pose_{side}_inv"]}
            for side in ("out", "in")
        )
    conditioning = Conditioning(io["attn/ehs"], targets, refs, num_views=3)
    return cape_name, params["down_blocks_1"]["attentions_0"], conditioning, io


def joined(x):
    """[B*M, T, C] -> [B, M*T, C] of the two scenes."""
    return x.reshape(2, -1, x.shape[-1])


def assert_close(ours, golden_array):
    deviation = np.abs(np.asarray(ours) - golden_array).max()
    assert deviation <= 1e-5, deviation


@pytest.mark.parametrize("name", ["self_out", "cross_out", "ff_out", "block_out"])
def test_transformer_parts_equal_the_original(original, name):
    cape_name, params, conditioning, io = original
    params = params["transformer_blocks_0"]
    x = joined(io["attn/x"])
    targets, refs = conditioning.target_poses, conditioning.ref_poses
    attention = Attention(x.shape[-1], 8, cape_name)
    if name == "self_out":
        layer, params, args = attention, params["attn1"], (x, x, targets, targets)
    elif name == "cross_out":
        layer, params, args = attention, params["attn2"], (x, conditioning.tokens, targets, refs)
    elif name == "ff_out":
        layer, params, args = FeedForward(), params["ff"], (x,)
    else:
        layer, args = TransformerBlock(8, cape_name), (x, conditioning)
    assert_close(layer.apply({"params": params}, *args), joined(io[f"attn/{name}"]))


def test_spatial_transformer_equals_the_original(original):
    cape_name, params, conditioning, io = original
    x = np.moveaxis(io["attn/x_nchw"], 1, -1)
    layer = SpatialTransformer(8, num_groups=16 if cape_name == "4dof" else 32, cape=cape_name)
    out = layer.apply({"params": params}, x, conditioning)
    assert_close(out, np.moveaxis(io["attn/transformer2d_out"], 1, -1))
