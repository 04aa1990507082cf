"""A folder of Stable Diffusion 1.5's size is read without a second copy of it in memory."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from escherjax.models.convnextv2 import ConvNeXtV2Config
from escherjax.models.unet import UNetConfig
from escherjax.models.vae import VAEConfig
from escherjax.weights import names, reading

CONFIGS = {
    "unet": {
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": 768,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
    },
    "image_encoder": {
        "model_type": "convnextv2",
        "depths": [3, 3, 9, 3],
        "hidden_sizes": [96, 192, 384, 768],
    },
}
FILES = {
    "unet": ("diffusion_pytorch_model", reading.unet_shapes(UNetConfig())),
    "vae": ("diffusion_pytorch_model", reading.vae_shapes(VAEConfig())),
    "image_encoder": ("model", reading.encoder_shapes(ConvNeXtV2Config())),
}
READ = """
import resource, sys, time
from escherjax.sample import loading
start = time.perf_counter()
pipe = loading.load(sys.argv[1], cape="6dof")
import jax
jax.block_until_ready(pipe.params)
seconds = time.perf_counter() - start
assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(pipe.params))
size = sum(leaf.nbytes for leaf in jax.tree.leaves(pipe.params))
print(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, f"{seconds:.1f}")
"""


def write_random(path, tree, rng):
    """A float32 safetensors file of a tree's tensors, written tensor by tensor."""
    shapes = names.torch_shapes(tree)
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            rng.standard_normal(math.prod(shape), np.float32).tofile(file)


@pytest.fixture
def folder(tmp_path):
    """4 GB are not left to pytest, which keeps the folders of the last three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_a_full_size_folder_is_read_without_a_second_copy(folder, rng):
    for part, (stem, tree) in FILES.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(CONFIGS[part]))
        write_random(folder / part / f"{stem}.safetensors", tree, rng)
    (folder / "scheduler").mkdir()
    schedule = {"beta_schedule": "scaled_linear", "clip_sample": False}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(schedule))
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", READ, folder], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    size, peak, seconds = ran.stdout.split()
    print(f"{size} bytes of parameters read in {seconds} s, peak memory {peak} bytes")
    assert int(size) == 4 * (859_520_964 + 83_653_863 + 27_866_496)
    # One copy, a few of the largest tensors (59 MB), and less than 1 GB of Python and JAX.
    assert int(peak) < 1.25 * int(size)
