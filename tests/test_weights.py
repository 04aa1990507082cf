"""Tensor names both ways, and pipeline folders, whole and broken."""

import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from escherjax.errors import UserError
from escherjax.models.convnextv2 import ConvNeXtV2Config
from escherjax.models.unet import UNetConfig
from escherjax.models.vae import VAEConfig
from escherjax.weights import names, pytorch

FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
}


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


@pytest.mark.parametrize("part", FILES)
def test_state_dicts_make_the_round_trip(golden, part):
    _, folder, _ = golden
    tensors = load_file(folder / FILES[part])
    again = names.torch_from_tree(names.tree_from_torch(tensors))
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    "part, shapes, config, count",
    [
        ("unet", pytorch.unet_shapes, UNetConfig(), 859_520_964),
        ("vae", pytorch.vae_shapes, VAEConfig(), 83_653_863),
        ("image_encoder", pytorch.encoder_shapes, ConvNeXtV2Config(), 27_866_496),
    ],
)
def test_full_size_has_the_published_tensors(golden_dir, part, shapes, config, count):
    published = json.loads((golden_dir / "full-state-dict-shapes.json").read_text())[part]
    tree = shapes(config)
    assert names.count_parameters(tree) == count
    assert names.torch_shapes(tree) == {name: tuple(shape) for name, shape in published.items()}


def test_reads_a_pipeline_folder(golden):
    cape_name, folder, _ = golden
    pipeline = pytorch.read_pipeline_folder(folder)
    is_4dof = cape_name == "4dof"
    assert pipeline.unet == UNetConfig(
        block_channels=(16, 32, 48, 64) if is_4dof else (32, 64, 64, 64),
        cross_channels=48 if is_4dof else 64,
        norm_groups=16 if is_4dof else 32,
    )
    assert pipeline.vae == VAEConfig(block_channels=(8, 16, 32, 32), norm_groups=8)
    assert pipeline.image_encoder == ConvNeXtV2Config(
        depths=(1, 1, 2, 1), widths=(16, 24, 32, 48) if is_4dof else (16, 32, 48, 64)
    )
    assert pipeline.scheduler["set_alpha_to_one"] is False
    kernel = pipeline.params["unet"]["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
    stored = load_file(folder / FILES["unet"])["down_blocks.0.resnets.0.conv1.weight"]
    np.testing.assert_array_equal(kernel, np.moveaxis(stored, (0, 1), (3, 2)))
    assert kernel.dtype == np.float32


# Broken folders: a copy of the golden one with one thing changed.


@pytest.fixture
def folder(golden_dir, tmp_path):
    source = golden_dir / "eschernet-4dof-tiny"
    for path in source.rglob("*"):
        if path.is_file() and path.name != "io.npz" and path.parent != source:
            copy = tmp_path / path.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
    return tmp_path


def rewrite(path, change):
    tensors = load_file(path)
    changed = change(tensors)
    save_file(tensors if changed is None else changed, path)


def refusal(folder):
    with pytest.raises(UserError) as caught:
        pytorch.read_pipeline_folder(folder)
    return str(caught.value)


def test_every_wrong_tensor_is_listed_at_once(folder):
    def change(tensors):
        del tensors["conv_in.bias"], tensors["conv_out.weight"]
        tensors["conv_norm_out.bias"] = np.zeros(3, np.float32)
        tensors["class_embedding.weight"] = np.zeros((2, 3), np.float32)
        tensors["time_embedding.linear_1.bias"][5] = np.nan
        tensors["time_embedding.linear_2.bias"] = np.zeros(64, np.int32)

    rewrite(folder / FILES["unet"], change)
    rewrite(folder / FILES["vae"], lambda tensors: tensors["quant_conv.bias"].fill(np.inf))
    message = refusal(folder)
    assert "7 problem(s)" in message
    for part in (
        "tensor conv_in.bias [16] is missing",
        "tensor conv_out.weight [4, 16, 3, 3] is missing",
        "tensor conv_norm_out.bias is [3]; needed [16]",
        "tensor class_embedding.weight [2, 3] is surplus",
        "tensor time_embedding.linear_1.bias has values that are not finite",
        "tensor time_embedding.linear_2.bias is I32; needed a float type",
        "tensor quant_conv.bias has values that are not finite",
    ):
        assert part in message


def test_old_names_of_vae_attention_are_read(folder):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    before = pytorch.read_pipeline_folder(folder).params["vae"]

    def change(tensors):
        renamed = {}
        for name, tensor in tensors.items():
            for current, early in old.items():
                name = name.replace(f".{current}.", f".{early}.")
            renamed[name] = tensor
        assert renamed.keys() - tensors.keys()
        return renamed

    rewrite(folder / FILES["vae"], change)
    after = pytorch.read_pipeline_folder(folder).params["vae"]
    for name, tensor in names.torch_from_tree(before).items():
        np.testing.assert_array_equal(names.torch_from_tree(after)[name], tensor)


def test_a_tensor_under_old_and_new_name_is_refused(folder):
    name = "encoder.mid_block.attentions.0.query.weight"
    rewrite(
        folder / FILES["vae"],
        lambda tensors: tensors.update({name: tensors[name.replace("query", "to_q")].copy()}),
    )
    assert "is stored twice" in refusal(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_keep_their_values(folder, dtype):
    def change(tensors):
        return {name: tensor.astype(dtype) for name, tensor in tensors.items()}

    rewrite(folder / FILES["image_encoder"], change)
    ours = pytorch.read_pipeline_folder(folder).params["image_encoder"]["layernorm"]["scale"]
    stored = load_file(folder / FILES["image_encoder"])["layernorm.weight"]
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, stored.astype(np.float32))


def test_classifier_checkpoints_give_their_encoder(folder):
    before = pytorch.read_component(folder / "image_encoder", "image_encoder")[1]

    def change(tensors):
        prefixed = {f"convnextv2.{name}": tensor for name, tensor in tensors.items()}
        return {**prefixed, "classifier.weight": np.zeros((5, 48), np.float32)}

    rewrite(folder / FILES["image_encoder"], change)
    config, after, report = pytorch.read_component(folder / "image_encoder", "image_encoder")
    assert report.ignored == ("classifier.weight",)
    assert config.widths == (16, 24, 32, 48)
    np.testing.assert_array_equal(after["layernorm"]["scale"], before["layernorm"]["scale"])
    assert names.count_parameters(after) == names.count_parameters(before)


@pytest.mark.parametrize("part", FILES)
def test_pickles_are_refused_unopened(folder, part):
    path = folder / FILES[part]
    path.rename(path.with_suffix(".bin"))
    message = refusal(folder)
    assert f"{path}: is missing, found only {path.stem}.bin, a pickle" in message
    assert "can run any code" in message and "python -c" in message


def test_a_single_file_of_another_name_is_read_and_several_refused(folder):
    path = folder / FILES["unet"]
    half = path.with_name("diffusion_pytorch_model.fp16.safetensors")
    path.rename(half)
    assert pytorch.read_pipeline_folder(folder).unet.cross_channels == 48
    shutil.copyfile(half, path.with_name("other.safetensors"))
    assert f"found {half.name}, other.safetensors" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -7])
def test_truncated_files_are_refused(folder, keep):
    path = folder / FILES["unet"]
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path}: is not a whole safetensors file" in refusal(folder)


@pytest.mark.parametrize(
    "missing", ["unet", "vae/config.json", "scheduler/scheduler_config.json", FILES["vae"]]
)
def test_missing_files_are_named(folder, missing):
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert str(path) in refusal(folder)


def test_no_folder_is_refused(tmp_path):
    assert "is no folder" in refusal(tmp_path / "absent")


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}"])
def test_unreadable_configs_are_refused(folder, content):
    (folder / "unet/config.json").write_text(content)
    assert str(folder / "unet/config.json") in refusal(folder)


@pytest.mark.parametrize(
    "part, fields, message",
    [
        ("unet", {"use_linear_projection": True}, "use_linear_projection = True is not supported"),
        ("unet", {"norm_eps": 1e-6}, "norm_eps = 1e-06 is not supported; needed 1e-05"),
        ("unet", {"block_out_channels": "wide"}, "block_out_channels = 'wide'; needed a list"),
        ("unet", {"block_out_channels": 320}, "block_out_channels = 320; needed a list"),
        ("unet", {"attention_head_dim": [2, 4, 8, 8]}, "needed a positive integer"),
        ("unet", {"attention_head_dim": 5}, "num_heads = 5 does not divide"),
        ("unet", {"cross_attention_dim": None}, "cross_attention_dim = None"),
        ("unet", {"down_block_types": ["DownBlock2D"]}, "down_block_types has 1 entries"),
        ("unet", {"up_block_types": ["UpBlock2D"] * 4}, "does not mirror"),
        ("vae", {"act_fn": "relu"}, "act_fn = 'relu' is not supported"),
        ("vae", {"scaling_factor": "0.2"}, "scaling_factor = '0.2'; needed a positive number"),
        ("vae", {"out_channels": 4}, "out_channels differs from in_channels"),
        ("image_encoder", {"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ("image_encoder", {"depths": [1, 0, 2, 1]}, "depths = [1, 0, 2, 1]; needed a list"),
    ],
)
def test_configs_of_other_networks_are_refused(folder, part, fields, message):
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    assert message in refusal(folder)


def test_heads_may_be_given_for_each_level(folder):
    path = folder / "unet/config.json"
    fields = {**json.loads(path.read_text()), "attention_head_dim": [8, 8, 8, 8]}
    path.write_text(json.dumps(fields))
    assert pytorch.read_pipeline_folder(folder).unet.num_heads == 8


def test_count_parameters_counts_elements():
    assert names.count_parameters({"a": jnp.zeros((2, 3)), "b": {"c": np.zeros(())}}) == 7
