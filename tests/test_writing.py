"""Writing pipeline folders: types, refusals, and all or nothing."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save

import escherjax
from escherjax.errors import UserError
from escherjax.weights.tensors import NUMPY_TYPES
from escherjax.weights.writing import write_safetensors
from tests.helpers.random_models import random_model

UNET = "unet/diffusion_pytorch_model.safetensors"


def pipe_of(latents="pixels"):
    model, params, resolution = random_model(0, latents)
    return escherjax.Pipeline(model, params, resolution)


def dtypes(path):
    return {str(array.dtype) for array in load_file(path).values()}


def test_streamed_files_are_the_librarys_byte_for_byte(rng, tmp_path):
    tensors = {
        "b.weight": rng.standard_normal((3, 5)).astype(np.float32),
        "a": rng.standard_normal(7).astype(np.float16),
        "c": rng.standard_normal((2, 1, 3)).astype(ml_dtypes.bfloat16),
        "d": np.array(2.5, np.float32),
        "e": np.zeros((0, 4), np.float32),
        "é": np.ones(1, np.float16),
    }
    keys = {np.dtype(v): k for k, v in NUMPY_TYPES.items()}
    specs = {name: (keys[t.dtype], t.shape) for name, t in tensors.items()}
    write_safetensors(tmp_path / "file", specs, tensors.__getitem__)
    assert (tmp_path / "file").read_bytes() == save(tensors, {"format": "pt"})


def test_a_model_on_pixels_has_no_vae_folder(tmp_path):
    pipe_of().save_torch(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "escherjax.json",
        "image_encoder",
        "model_index.json",
        "scheduler",
        "unet",
    ]
    assert "vae" not in json.loads((tmp_path / "out/model_index.json").read_text())


def test_what_was_trained_goes_to_float32_and_the_rest_keeps_its_type(tmp_path, caplog):
    pipe = pipe_of("vae")
    pipe.save_torch(tmp_path / "half", dtype="float16")
    half = escherjax.load(tmp_path / "half")
    assert (
        json.loads((tmp_path / "half/image_encoder/config.json").read_text())["torch_dtype"]
        == "float16"
    )
    half.params["unet"]["conv_in"]["bias"] += np.float32(1e-6)
    half.save_torch(tmp_path / "trained")
    assert dtypes(tmp_path / "trained" / UNET) == {"float32"}
    assert dtypes(tmp_path / "trained/vae/diffusion_pytorch_model.safetensors") == {"float16"}
    assert dtypes(tmp_path / "trained/image_encoder/model.safetensors") == {"float16"}
    assert "unet is written in float32: 1 of" in caplog.text and "conv_in.bias" in caplog.text
    again = escherjax.load(tmp_path / "trained").params
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), again, half.params))


def test_the_encoders_config_names_the_type_that_was_written(tmp_path):
    """transformers casts weights to the type the config names; float16 would undo training."""
    pipe_of().save_torch(tmp_path / "half", dtype="float16")
    half = escherjax.load(tmp_path / "half")
    half.params["image_encoder"]["layernorm"]["bias"] += np.float32(1e-6)
    half.save_torch(tmp_path / "trained")
    config = json.loads((tmp_path / "trained/image_encoder/config.json").read_text())
    assert config["torch_dtype"] == "float32"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_type_asked_for_is_written_everywhere_rounded_to_nearest(dtype, tmp_path):
    pipe = pipe_of("vae")
    pipe.save_torch(tmp_path / "out", dtype)
    written = {}
    for path in (tmp_path / "out").rglob("*.safetensors"):
        assert dtypes(path) == {dtype}
        written |= load_file(path)
    kernel = pipe.params["unet"]["conv_in"]["kernel"].transpose(3, 2, 0, 1)
    assert written["conv_in.weight"].tobytes() == kernel.astype(dtype).tobytes()


def test_bfloat16_parameters_are_written_as_such(tmp_path):
    model, params, resolution = random_model(0, "pixels")
    params = jax.tree.map(lambda a: a.astype(ml_dtypes.bfloat16), params)
    escherjax.Pipeline(model, params, resolution).save_torch(tmp_path / "out")
    assert dtypes(tmp_path / "out" / UNET) == {"bfloat16"}


def test_values_that_cannot_be_written_are_all_named(tmp_path):
    pipe = pipe_of()
    pipe.params["unet"]["conv_in"]["bias"][0] = 1e5
    pipe.params["image_encoder"]["layernorm"]["bias"][0] = -1e6
    with pytest.raises(UserError) as error:
        pipe.save_torch(tmp_path / "out", "float16")
    assert "unet: tensor conv_in.bias has values beyond the range of float16" in str(error.value)
    assert "image_encoder: tensor layernorm.bias has" in str(error.value)
    pipe.params["unet"]["conv_out"]["bias"][0] = np.nan
    with pytest.raises(UserError, match="tensor conv_out.bias has values that are not finite"):
        pipe.save_torch(tmp_path / "out")
    pipe.params["unet"]["conv_out"]["bias"] = np.zeros(3, np.int32)
    with pytest.raises(UserError, match="tensor conv_out.bias must be one of float32.* got int32"):
        pipe.save_torch(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_only_an_empty_or_new_folder_is_written(tmp_path):
    pipe = pipe_of()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="is not empty"):
        pipe.save_torch(tmp_path / "full")
    with pytest.raises(UserError, match="is a file"):
        pipe.save_torch(tmp_path / "full" / "thesis.tex")
    with pytest.raises(UserError, match=r"cannot be written \(File exists\)"):
        pipe.save_torch(tmp_path / "full" / "thesis.tex" / "out")
    with pytest.raises(UserError, match="dtype must be one of float32.* got 'float64'"):
        pipe.save_torch(tmp_path / "out", "float64")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "thesis.tex"]
    (tmp_path / "empty").mkdir()
    os.symlink(tmp_path / "empty", tmp_path / "link")
    pipe.save_torch(tmp_path / "link")
    assert (tmp_path / "empty" / UNET).is_file()


def run_python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_full_disk_is_a_clear_refusal_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands in for the end of the disk."""
    done = run_python(
        """
        import resource, sys
        from tests.helpers.random_models import random_model
        import escherjax
        from escherjax.errors import run_command

        model, params, resolution = random_model(0, "pixels")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        pipe = escherjax.Pipeline(model, params, resolution)
        run_command(lambda argv: pipe.save_torch(argv[0]), sys.argv[1:])
        """,
        tmp_path / "out",
    )
    assert done.returncode == 2, done.stderr
    assert "out cannot be written (File too large), and nothing of it was kept" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_killed_while_writing_leaves_nothing_under_the_name(tmp_path):
    """Killed when the first network is whole and the second one half."""
    done = run_python(
        """
        import os, signal, sys
        from tests.helpers.random_models import random_model
        import escherjax

        class Trap:
            # An array that ends the process when it is read for the second time, to be written.
            def __init__(self, array):
                self.array, self.reads = array, 0
                self.shape, self.dtype = array.shape, array.dtype

            def __array__(self, dtype=None, copy=None):
                self.reads += 1
                if self.reads == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return self.array

        model, params, resolution = random_model(0, "pixels")
        layernorm = params["image_encoder"]["layernorm"]
        layernorm["bias"] = Trap(layernorm["bias"])
        escherjax.Pipeline(model, params, resolution).save_torch(sys.argv[1])
        """,
        tmp_path / "out",
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.") and left.name.endswith(".partial")
    assert (left / UNET).is_file()  # it was in the middle of writing
    pipe_of().save_torch(tmp_path / "out")  # what is left is in nobody's way
    assert escherjax.load(tmp_path / "out").params


def test_params_on_several_devices_are_written_whole(tmp_path):
    pipe = pipe_of()
    mesh = jax.make_mesh((8,), ("fsdp",))
    spec = jax.sharding.PartitionSpec
    kernel = pipe.params["unet"]["conv_in"]["kernel"]
    pipe.params["unet"]["conv_in"]["kernel"] = jax.device_put(
        kernel, jax.sharding.NamedSharding(mesh, spec(None, None, None, "fsdp"))
    )
    pipe.save_torch(tmp_path / "out")
    written = load_file(tmp_path / "out" / UNET)["conv_in.weight"]
    assert written.tobytes() == kernel.transpose(3, 2, 0, 1).tobytes()


def test_facts_of_the_pipeline_are_written_and_read(tmp_path):
    pipe = pipe_of()
    pipe.facts = dataclasses.replace(
        pipe.facts,
        num_references=(1, 3),
        num_targets=4,
        weights="ema",
        trained_steps=7,
        guidance_scale=2.5,
        translation_unit="metres",
    )
    pipe.save_torch(tmp_path / "out")
    assert escherjax.load(tmp_path / "out").facts == pipe.facts
