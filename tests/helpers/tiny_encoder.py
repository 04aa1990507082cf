"""The smallest folder of weights there is: an image encoder of 14 tensors and 2 kB."""

import json

import numpy as np
from safetensors.numpy import save_file

from escherjax.models.convnextv2 import ConvNeXtV2Config
from escherjax.weights import names, reading

CONFIG = {
    "model_type": "convnextv2",
    "depths": [1],
    "hidden_sizes": [4],
    "patch_size": 4,
    "image_size": 8,
    "layer_norm_eps": 1e-12,
}
SHAPES = names.torch_shapes(
    reading.encoder_shapes(ConvNeXtV2Config((1,), (4,), patch_size=4, image_size=8))
)


def random_tensors(seed=0):
    """float32 tensors by name, standard normal."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


def write_config(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG))


def write_single(folder, tensors, file_name="model.safetensors"):
    write_config(folder)
    save_file(tensors, folder / file_name, {"format": "pt"})


def write_shards(folder, tensors, num_shards=2):
    """Shards by turns, and their index; returns the index's fields."""
    write_config(folder)
    weight_map = {}
    for i in range(num_shards):
        shard = f"model-{i + 1:05}-of-{num_shards:05}.safetensors"
        part = dict(list(tensors.items())[i::num_shards])
        save_file(part, folder / shard, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, shard))
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def read(folder):
    """The folder's tensors by name, in PyTorch's layout."""
    return names.torch_from_tree(reading.read_component(folder, "image_encoder")[1])
