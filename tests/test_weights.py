"""Pipeline folders, whole and broken."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from escherjax.errors import UserError
from escherjax.models.convnextv2 import ConvNeXtV2Config
from escherjax.models.unet import UNetConfig
from escherjax.models.vae import VAEConfig
from escherjax.weights import names, reading

FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
}


def test_reads_a_pipeline_folder(golden):
    cape_name, folder, _ = golden
    pipeline, params = reading.read_pipeline_folder(folder)
    is_4dof = cape_name == "4dof"
    sizes = {name: network.config for name, network in pipeline.networks.items()}
    assert sizes["unet"] == UNetConfig(
        block_channels=(16, 32, 48, 64) if is_4dof else (32, 64, 64, 64),
        cross_channels=48 if is_4dof else 64,
        norm_groups=16 if is_4dof else 32,
    )
    assert sizes["vae"] == VAEConfig(block_channels=(8, 16, 32, 32), norm_groups=8)
    assert sizes["image_encoder"] == ConvNeXtV2Config(
        depths=(1, 1, 2, 1), widths=(16, 24, 32, 48) if is_4dof else (16, 32, 48, 64)
    )
    assert pipeline.scheduler["set_alpha_to_one"] is False
    kernel = params["unet"]["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
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


def assert_same(params, expected):
    """Two trees have the same leaves, bit for bit."""
    ours, theirs = names.torch_from_tree(params), names.torch_from_tree(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)


def refusal(folder):
    with pytest.raises(UserError) as caught:
        reading.read_pipeline_folder(folder)
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
        "tensor conv_norm_out.bias is [3], expected [16]",
        "tensor class_embedding.weight [2, 3] is surplus",
        "tensor time_embedding.linear_1.bias has values that are not finite",
        "tensor time_embedding.linear_2.bias is I32; it does not hold floating-point numbers",
        "tensor quant_conv.bias has values that are not finite",
    ):
        assert part in message


def test_old_names_of_vae_attention_are_read(folder):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    before = reading.read_pipeline_folder(folder)[1]["vae"]

    def change(tensors):
        renamed = {}
        for name, tensor in tensors.items():
            for current, early in old.items():
                name = name.replace(f".{current}.", f".{early}.")
            renamed[name] = tensor
        assert renamed.keys() - tensors.keys()
        return renamed

    rewrite(folder / FILES["vae"], change)
    assert_same(reading.read_pipeline_folder(folder)[1]["vae"], before)


WRAPPERS = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "parallel": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "both, turned round": lambda name: f"_orig_mod.module.{name}",
    "blocks compiled": lambda name: name.replace("mid_block.", "mid_block._orig_mod."),
    "twice": lambda name: f"module.module.{name}",
}


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_are_read_without_what_wraps_modules_and_that_is_said(folder, caplog, part, wrapper):
    before = reading.read_pipeline_folder(folder)[1][part]
    changed = []

    def change(tensors):
        renamed = {WRAPPERS[wrapper](name): tensor for name, tensor in tensors.items()}
        changed.extend(renamed.keys() - tensors.keys())
        return renamed

    rewrite(folder / FILES[part], change)
    with caplog.at_level("INFO"):
        assert_same(reading.read_pipeline_folder(folder)[1][part], before)
    said = f": {len(changed)} of "
    assert (said in caplog.text and "prefix" in caplog.text) == bool(changed)


def test_a_tensor_with_and_without_a_prefix_is_refused(folder):
    rewrite(
        folder / FILES["unet"],
        lambda tensors: tensors.update({"module.conv_in.bias": tensors["conv_in.bias"].copy()}),
    )
    assert "is stored twice" in refusal(folder)


def test_a_tensor_under_old_and_new_name_is_refused(folder):
    name = "encoder.mid_block.attentions.0.query.weight"
    rewrite(
        folder / FILES["vae"],
        lambda tensors: tensors.update({name: tensors[name.replace("query", "to_q")].copy()}),
    )
    assert "is stored twice" in refusal(folder)


def test_the_oldest_vae_attention_is_read_from_convolutions(folder):
    before = reading.read_pipeline_folder(folder)[1]["vae"]

    def change(tensors):
        reshaped = 0
        for name, tensor in tensors.items():
            if ".attentions.0.to_" in name and name.endswith(".weight"):
                tensors[name] = tensor[:, :, None, None]
                reshaped += 1
        assert reshaped == 8

    rewrite(folder / FILES["vae"], change)
    assert_same(reading.read_pipeline_folder(folder)[1]["vae"], before)


@pytest.mark.parametrize("axes", [1, 4])
def test_old_names_of_response_norms_are_read(folder, axes):
    before = reading.read_pipeline_folder(folder)[1]["image_encoder"]

    def change(tensors):
        old = {}
        for name, tensor in tensors.items():
            if ".grn." in name:
                name = name.replace("grn.weight", "grn.gamma").replace("grn.bias", "grn.beta")
                tensor = tensor.reshape(tensor.shape[-axes:])
            old[name] = tensor
        assert len(old.keys() - tensors.keys()) == 10
        return old

    rewrite(folder / FILES["image_encoder"], change)
    pipeline, params = reading.read_pipeline_folder(folder)
    assert_same(params["image_encoder"], before)
    assert "encoder.stages.0.layers.0.grn.weight" in pipeline.networks["image_encoder"].dtypes


@pytest.mark.parametrize("dtype, word", [(np.float16, "F16"), (ml_dtypes.bfloat16, "BF16")])
def test_half_precision_keeps_its_values_and_is_remembered(folder, dtype, word):
    def change(tensors):
        return {name: tensor.astype(dtype) for name, tensor in tensors.items()}

    rewrite(folder / FILES["image_encoder"], change)
    pipeline, params = reading.read_pipeline_folder(folder)
    ours = names.torch_from_tree(params["image_encoder"])
    stored = load_file(folder / FILES["image_encoder"])
    assert pipeline.networks["image_encoder"].dtypes == dict.fromkeys(stored, word)
    assert set(pipeline.networks["unet"].dtypes.values()) == {"F32"}
    for name, tensor in stored.items():
        assert ours[name].dtype == np.float32
        np.testing.assert_array_equal(ours[name], tensor.astype(np.float32))


def test_float64_is_refused_with_the_reason(folder):
    def change(tensors):
        tensors["conv_in.bias"] = tensors["conv_in.bias"].astype(np.float64)

    rewrite(folder / FILES["unet"], change)
    assert "tensor conv_in.bias is F64; float32 cannot hold its values" in refusal(folder)


def test_classifier_checkpoints_give_their_encoder(folder):
    before = reading.read_component(folder / "image_encoder", "image_encoder")[1]
    head = {"classifier.weight": np.zeros((5, 48)), "classifier.bias": np.zeros(5)}

    def change(tensors):
        return {**{f"convnextv2.{name}": tensor for name, tensor in tensors.items()}, **head}

    rewrite(folder / FILES["image_encoder"], change)
    network, after = reading.read_component(folder / "image_encoder", "image_encoder")
    assert network.config.widths == (16, 24, 32, 48)
    assert_same(after, before)
    assert network.source == folder / FILES["image_encoder"]
    assert network.dtypes.keys() == names.torch_from_tree(before).keys()
    assert network.ignored == ("classifier.bias", "classifier.weight")


def test_an_averaged_unet_is_read_where_there_is_no_other(folder):
    before, before_params = reading.read_pipeline_folder(folder)
    (folder / "unet").rename(folder / "unet_ema")
    path = folder / "unet_ema/config.json"
    average = {"decay": 0.9999, "optimization_step": 7, "power": 2 / 3, "use_ema_warmup": False}
    path.write_text(json.dumps({**json.loads(path.read_text()), **average}))
    after, after_params = reading.read_pipeline_folder(folder)
    assert_same(after_params["unet"], before_params["unet"])
    assert after.networks["unet"].config == before.networks["unet"].config
    assert after.networks["unet"].fields.items() >= average.items()
    assert after.networks["unet"].source.parent == folder / "unet_ema"
    shutil.copytree(folder / "unet_ema", folder / "unet")
    both = reading.read_pipeline_folder(folder)[0]
    assert both.networks["unet"].source.parent == folder / "unet"


def test_what_a_folder_says_beside_its_values_is_kept(golden_dir, folder):
    bare = reading.read_pipeline_folder(folder)[0]
    assert bare.card is None and bare.model_index == {}
    shutil.copyfile(
        golden_dir / "eschernet-4dof-tiny/model_index.json", folder / "model_index.json"
    )
    (folder / "escherjax.json").write_text('{"format": 1, "cape": "4dof"}')
    pipeline = reading.read_pipeline_folder(folder)[0]
    assert pipeline.card == {"format": 1, "cape": "4dof"}
    assert pipeline.model_index["unet"] == ["unet_2d_condition", "UNet2DConditionModel"]
    for part in ("unet", "vae", "image_encoder"):
        fields = json.loads((folder / part / "config.json").read_text())
        assert pipeline.networks[part].fields == fields
        assert pipeline.networks[part].dtypes.keys() == load_file(folder / FILES[part]).keys()
    fields = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert pipeline.scheduler == fields


def test_a_model_on_pixels_has_no_vae(folder):
    facts = {"format": 1, "latents": {"kind": "pixels", "patch": 2}}
    (folder / "escherjax.json").write_text(json.dumps(facts))
    assert "escherjax.json says latents are pixels" in refusal(folder)
    shutil.rmtree(folder / "vae")
    pipeline, params = reading.read_pipeline_folder(folder)
    assert pipeline.networks.keys() == {"unet", "image_encoder"} and params["vae"] == {}
    (folder / "escherjax.json").unlink()
    assert f"{folder / 'vae'}: directory not found" in refusal(folder)


def test_arrays_are_placed_as_they_are_read(folder):
    params = reading.read_pipeline_folder(folder, jax.device_put)[1]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert_same(params, reading.read_pipeline_folder(folder)[1])


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
    assert "is not a directory" in refusal(tmp_path / "absent")


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}"])
def test_unreadable_configs_are_refused(folder, content):
    (folder / "unet/config.json").write_text(content)
    assert str(folder / "unet/config.json") in refusal(folder)


@pytest.mark.parametrize(
    "part, fields, message",
    [
        ("unet", {"use_linear_projection": True}, "use_linear_projection must be False, got True"),
        ("unet", {"norm_eps": 1e-6}, "norm_eps must be 1e-05, got 1e-06"),
        ("unet", {"block_out_channels": "wide"}, "block_out_channels must be a list"),
        ("unet", {"block_out_channels": 320}, "up to 8 of at most 65536, got 320"),
        (
            "unet",
            {"attention_head_dim": [2, 4, 8, 8]},
            "attention_head_dim must be a positive integer",
        ),
        ("unet", {"attention_head_dim": 5}, "num_heads must"),
        (
            "unet",
            {"cross_attention_dim": None},
            "cross_attention_dim must be a positive integer, at most 65536, got None",
        ),
        (
            "unet",
            {"down_block_types": ["DownBlock2D"]},
            "down_block_types must have one entry for each",
        ),
        ("unet", {"up_block_types": ["UpBlock2D"] * 4}, "up_block_types must mirror"),
        ("vae", {"act_fn": "relu"}, "act_fn must be 'silu', got 'relu'"),
        ("unet", {"num_class_embeds": 10}, "num_class_embeds must be None, got 10"),
        ("unet", {"attention_type": "gated"}, "attention_type must be 'default', got 'gated'"),
        ("unet", {"num_attention_heads": 2}, "num_attention_heads must be None, got 2"),
        ("unet", {"_class_name": "UNet3D"}, "_class_name must be 'UNet2DConditionModel'"),
        ("vae", {"_class_name": "VQModel"}, "_class_name must be 'AutoencoderKL'"),
        ("image_encoder", {"num_stages": 2}, "num_stages = 2, but depths = [1, 1, 2, 1]"),
        (
            "unet",
            {"layers_per_block": 10**9},
            "layers_per_block must be a positive integer, at most 128",
        ),
        (
            "unet",
            {"cross_attention_dim": 10**30},
            "cross_attention_dim must be a positive integer, at most 65536",
        ),
        (
            "vae",
            {"block_out_channels": [32] * 9},
            "block_out_channels must be a list of positive integers, up to 8",
        ),
        (
            "vae",
            {"scaling_factor": 10**400},
            "scaling_factor must be a positive number that float32 holds",
        ),
        (
            "image_encoder",
            {"layer_norm_eps": 1e-300},
            "layer_norm_eps must be a positive number that float32",
        ),
        ("vae", {"scaling_factor": "0.2"}, "float32 holds, got '0.2'"),
        ("vae", {"out_channels": 4}, "out_channels must equal in_channels"),
        ("image_encoder", {"hidden_act": "relu"}, "hidden_act must be 'gelu', got 'relu'"),
        ("image_encoder", {"depths": [1, 0, 2, 1]}, "at most 128, got [1, 0, 2, 1]"),
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
    assert reading.read_pipeline_folder(folder)[0].networks["unet"].config.num_heads == 8
