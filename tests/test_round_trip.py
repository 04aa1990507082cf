"""Pipeline folders in and out again: nothing changes but what was trained."""

import json
import logging
import warnings

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import escherjax
from tests.helpers.random_models import random_model

NUM_DRAWS = 15
WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
}
CONFIGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "image_encoder/config.json",
    "scheduler/scheduler_config.json",
)


def said_by(stored):
    """What a folder says beside values, wherever it lies."""
    networks = {name: (n.config, n.fields, n.dtypes) for name, n in stored.networks.items()}
    return networks, stored.scheduler, stored.model_index


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def assert_same_bits(a, b):
    """Same tree, types, shapes and bits; unlike ==, this tells 0 from -0."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape, path
        assert x.tobytes() == y.tobytes(), path


def write_like(source, target, dtype):
    """A copy of a pipeline folder with every tensor cast to dtype."""
    for name in CONFIGS:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((source / name).read_bytes())
    for name in WEIGHTS.values():
        tensors = load_file(source / name)
        save_file({k: v.astype(dtype) for k, v in tensors.items()}, target / name, {"format": "pt"})


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_folder_comes_out_as_it_went_in(golden, dtype, tmp_path):
    """Files of weights are equal as a whole, and configs field by field."""
    name, source, _ = golden
    if dtype != np.float32:
        write_like(source, tmp_path / f"eschernet-{name}", dtype)
        source = tmp_path / f"eschernet-{name}"
    pipe = escherjax.load(source)
    pipe.save_torch(tmp_path / "again")
    for file in WEIGHTS.values():
        assert (tmp_path / "again" / file).read_bytes() == (source / file).read_bytes(), file
    for file in CONFIGS:
        assert read_json(tmp_path / "again" / file) == read_json(source / file), file
    again = escherjax.load(tmp_path / "again")
    assert_same_bits(again.params, pipe.params)
    assert again.facts == pipe.facts and again.facts.cape == name
    assert again.model.cape == pipe.model.cape
    assert said_by(again.stored) == said_by(pipe.stored)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 256, 256, 3)).astype(np.float32)
    assert_same_bits(again.encode_images(images), pipe.encode_images(images))


@pytest.fixture(scope="module", params=range(NUM_DRAWS))
def drawn(request, tmp_path_factory):
    """(model, params, folder) of a random network that was saved."""
    model, params, resolution = random_model(request.param)
    folder = tmp_path_factory.mktemp("drawn") / "out"
    escherjax.Pipeline(model, params, resolution).save_torch(folder)
    return model, params, resolution, folder


def test_any_network_of_ours_comes_back(drawn):
    model, params, resolution, folder = drawn
    pipe = escherjax.load(folder)
    assert_same_bits(pipe.params, params)
    assert pipe.resolution == resolution
    assert pipe.model.unet == model.unet and pipe.model.encoder == model.encoder
    assert pipe.model.codec == model.codec
    np.testing.assert_array_equal(pipe.model.schedule.betas, model.schedule.betas)
    assert pipe.model.schedule.prediction_type == model.schedule.prediction_type


def test_diffusers_and_transformers_load_any_network_of_ours(drawn, caplog):
    """Strictly: no missing or unexpected tensor, no warning, and every tensor is the file's."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    model, _, _, folder = drawn
    classes = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "image_encoder": transformers.ConvNextV2Model,
    }
    for library in (diffusers, transformers):
        library.utils.logging.enable_propagation()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part, file in WEIGHTS.items():
            if not (folder / part).exists():
                continue
            network, info = classes[part].from_pretrained(
                folder / part,
                output_loading_info=True,
                low_cpu_mem_usage=False,  # which needs the package accelerate
            )
            assert not any(info.values()), (part, info)
            state = network.state_dict()
            tensors = load_file(folder / file)
            assert state.keys() == tensors.keys()
            for name, tensor in tensors.items():
                assert state[name].numpy().tobytes() == tensor.tobytes(), name
        scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text
    # torch and numpy round the same formula; one unit in the last place of float32.
    np.testing.assert_allclose(scheduler.betas.numpy(), model.schedule.betas, rtol=1.2e-7)
    assert scheduler.config.prediction_type == model.schedule.prediction_type


def test_old_names_of_the_autoencoder_come_out_as_todays(golden, tmp_path):
    """Same bytes under the new names, and the four projections of both attentions are there."""
    name, golden_folder, _ = golden
    source = tmp_path / f"eschernet-{name}"
    write_like(golden_folder, source, np.float32)
    today = load_file(source / WEIGHTS["vae"])
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old_name(tensor):
        for new, before in old.items() if ".attentions." in tensor else ():
            tensor = tensor.replace(f".{new}.", f".{before}.")
        return tensor

    renamed = {old_name(k): v for k, v in today.items()}
    assert len(renamed.keys() - today.keys()) == 16
    save_file(renamed, source / WEIGHTS["vae"])
    escherjax.load(source).save_torch(tmp_path / "again")
    written = load_file(tmp_path / "again" / WEIGHTS["vae"])
    assert written.keys() == today.keys()
    for tensor, array in today.items():
        assert written[tensor].tobytes() == array.tobytes(), tensor
