"""Tensor names and layouts, PyTorch's and ours, both ways."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from escherjax.models.convnextv2 import ConvNeXtV2Config
from escherjax.models.unet import UNetConfig
from escherjax.models.vae import VAEConfig
from escherjax.weights import names, reading


@pytest.mark.parametrize(
    "torch_name, shape, path, our_shape",
    [
        ("conv_in.weight", (8, 4, 3, 3), "conv_in/kernel", (3, 3, 4, 8)),
        ("conv_in.bias", (8,), "conv_in/bias", (8,)),
        ("conv_norm_out.weight", (8,), "conv_norm_out/scale", (8,)),
        ("time_embedding.linear_1.weight", (9, 8), "time_embedding/linear_1/kernel", (8, 9)),
        (
            "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0.weight",
            (8, 6),
            "down_blocks_0/attentions_1/transformer_blocks_0/attn1/to_out_0/kernel",
            (6, 8),
        ),
        ("mid_block.ff.net.0.proj.weight", (8, 6), "mid_block/ff/net_0/proj/kernel", (6, 8)),
        (
            "encoder.stages.1.downsampling_layer.0.weight",
            (8,),
            "encoder/stages_1/downsampling_layer_0/scale",
            (8,),
        ),
        (
            "encoder.stages.0.layers.2.dwconv.weight",
            (8, 1, 7, 7),
            "encoder/stages_0/layers_2/dwconv/kernel",
            (7, 7, 1, 8),
        ),
        (
            "encoder.stages.0.layers.2.grn.weight",
            (1, 1, 1, 8),
            "encoder/stages_0/layers_2/grn/weight",
            (1, 1, 1, 8),
        ),
    ],
)
def test_names_and_layouts_both_ways(torch_name, shape, path, our_shape, rng):
    tensor = rng.standard_normal(shape).astype(np.float32)
    ours = names.path_from_torch(torch_name, tensor.ndim)
    assert "/".join(ours) == path
    assert names.torch_from_path(ours) == torch_name
    array = names.array_from_torch(ours, tensor)
    assert array.shape == our_shape
    assert names.torch_shape(ours, array.shape) == shape
    np.testing.assert_array_equal(names.array_to_torch(ours, array), tensor)


def test_linear_kernels_are_transposed_and_convolutions_moved():
    matrix = np.arange(6.0).reshape(2, 3)
    assert names.array_from_torch(("a", "kernel"), matrix)[2, 1] == matrix[1, 2]
    filters = np.arange(120.0).reshape(2, 3, 4, 5)
    assert names.array_from_torch(("a", "kernel"), filters)[3, 4, 2, 1] == filters[1, 2, 3, 4]


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
def test_state_dicts_make_the_round_trip(golden, part):
    _, folder, _ = golden
    [path] = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    again = names.torch_from_tree(names.tree_from_torch(tensors))
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    "part, shapes, config, count",
    [
        ("unet", reading.unet_shapes, UNetConfig(), 859_520_964),
        ("vae", reading.vae_shapes, VAEConfig(), 83_653_863),
        ("image_encoder", reading.encoder_shapes, ConvNeXtV2Config(), 27_866_496),
    ],
)
def test_full_size_has_the_published_tensors(golden_dir, part, shapes, config, count):
    published = json.loads((golden_dir / "full-state-dict-shapes.json").read_text())[part]
    tree = shapes(config)
    assert names.count_parameters(tree) == count
    assert names.torch_shapes(tree) == {name: tuple(shape) for name, shape in published.items()}


def test_count_parameters_counts_elements():
    assert names.count_parameters({"a": jnp.zeros((2, 3)), "b": {"c": np.zeros(())}}) == 7
