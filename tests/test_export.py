"""The export command, and its comparison of a folder in PyTorch with the weights it came from."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import escherjax
from escherjax import export
from escherjax.errors import EXIT_ERROR, EXIT_OK, UserError
from tests.helpers.fake_hub import FakeHub
from tests.helpers.random_models import random_model
from tests.helpers.tiny_workdir import write_workdir

needs_torch = pytest.mark.skipif(not export.has_torch(), reason="the extra torch is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work directory on pixels whose raw and averaged parameters differ."""
    folder = tmp_path_factory.mktemp("export") / "run"
    write_workdir(folder, min_references=1)
    return folder


@pytest.fixture(scope="module")
def random_pipe():
    """A network with a VAE whose parts all change the picture, none being zero."""
    model, params, resolution = random_model(3, latents="vae")
    return escherjax.Pipeline(model, params, resolution)


@needs_torch
def test_export_writes_what_is_loaded_and_says_how_far_pytorch_is_from_it(run, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--weights", str(run / "checkpoints/4"), "--params", "raw", "--out", str(out)]
    assert export.main(arguments) == EXIT_OK
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    report = json.loads((out / "parity.json").read_text())
    assert report["checked"] and report["versions"]["torch"]
    assert report["parts"].keys() == {"image_encoder", "unet", "views"}
    for part, found in report["parts"].items():
        assert found["relative"] <= report["allowed_relative"] and found["rms"] > 0
        assert f"  {part} " in printed.err
    again, wanted = escherjax.load(out), escherjax.load(run, weights="raw")
    np.testing.assert_array_equal(
        again.params["unet"]["conv_in"]["kernel"], wanted.params["unet"]["conv_in"]["kernel"]
    )
    assert (again.facts.weights, again.facts.trained_steps) == ("raw", 4)


@needs_torch
def test_a_rounded_export_is_compared_as_it_was_rounded(run, tmp_path):
    out = tmp_path / "out"
    assert export.main(["--weights", str(run), "--out", str(out), "--dtype", "bfloat16"]) == EXIT_OK
    stored = escherjax.load(out).stored
    assert {t for network in stored.networks.values() for t in network.dtypes.values()} == {"BF16"}
    assert json.loads((out / "parity.json").read_text())["checked"]


@needs_torch
@pytest.mark.parametrize(
    ("file", "tensor", "wrong"),
    [
        (None, None, set()),
        ("unet/diffusion_pytorch_model", "conv_out.bias", {"unet", "views"}),
        ("image_encoder/model", "layernorm.bias", {"image_encoder", "views"}),
        ("vae/diffusion_pytorch_model", "encoder.conv_out.bias", {"vae encoder"}),
        ("vae/diffusion_pytorch_model", "decoder.conv_out.bias", {"vae decoder", "views"}),
    ],
)
def test_a_wrong_tensor_is_found_in_its_part(random_pipe, tmp_path, file, tensor, wrong):
    random_pipe.save_torch(tmp_path / "out")
    if file:
        path = tmp_path / "out" / f"{file}.safetensors"
        tensors = load_file(path)
        save_file({**tensors, tensor: tensors[tensor] + np.float32(0.1)}, path, {"format": "pt"})
    found = export.compare(random_pipe, tmp_path / "out")
    assert {d.part for d in found if not d.is_rounding} == wrong
    parts = ["image_encoder", "vae encoder", "vae decoder", "unet", "views"]
    assert [d.part for d in found] == parts


@needs_torch
def test_export_fails_where_pytorch_computes_something_else(run, tmp_path, monkeypatch, capsys):
    # Nothing passes a limit below rounding.
    monkeypatch.setattr(export, "ALLOWED", 1e-12)
    out = tmp_path / "out"
    assert export.main(["--weights", str(run), "--out", str(out)]) == EXIT_ERROR
    printed = capsys.readouterr()
    assert printed.out == "" and "TOO FAR" in printed.err and "do not use it" in printed.err
    assert json.loads((out / "parity.json").read_text())["parts"]["unet"]["relative"] > 1e-12


def test_without_pytorch_the_folder_is_written_and_the_report_says_so(
    run, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "torch", None)
    out = tmp_path / "out"
    assert export.main(["--weights", str(run), "--out", str(out)]) == EXIT_OK
    report = json.loads((out / "parity.json").read_text())
    assert report["checked"] is False and "escherjax[torch]" in report["reason"]
    assert "escherjax[torch]" in caplog.text
    assert escherjax.load(out).facts.trained_steps == 4


def test_a_deviation_of_nan_is_no_rounding():
    assert not export.Deviation("unet", float("nan"), 1.0, 1).is_rounding


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--private"], "go with --push-to-hub"),
        (["--revision", "v2"], "go with --push-to-hub"),
        (["--push-to-hub", "bad name!"], "must be owner/name, got 'bad name!'"),
        (["--weights", "nowhere/at/all"], "nowhere/at/all is not a directory"),
    ],
)
def test_wrong_arguments_are_refused_and_write_nothing(run, tmp_path, arguments, message):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        export.main(["--weights", str(run), "--out", str(out), *arguments])
    assert not out.exists()


def test_a_folder_with_content_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        export.main(["--weights", "nowhere/at/all", "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_an_export_is_pushed_and_loads_from_the_hub(run, tmp_path):
    pytest.importorskip("huggingface_hub")
    out, program = tmp_path / "out", [sys.executable, "-m", "escherjax.export", "--no-check"]
    with FakeHub() as server:
        environment = os.environ | {
            "HF_ENDPOINT": server.endpoint,
            "HF_TOKEN": "hf_test",
            "HF_HOME": str(tmp_path / "hf"),
        }
        pushed = subprocess.run(
            [*program, "--weights", run, "--out", out, "--push-to-hub", "owner/eschernet-6dof"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert pushed.returncode == 0, pushed.stderr
        assert pushed.stdout.splitlines() == [f"{server.endpoint}/owner/eschernet-6dof", str(out)]
        again = subprocess.run(
            [*program, "--weights", "owner/eschernet-6dof", "--out", tmp_path / "again"],
            env=environment,
            capture_output=True,
            text=True,
        )
    assert again.returncode == 0, again.stderr
    for path in out.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(out)).read_bytes() == path.read_bytes()
