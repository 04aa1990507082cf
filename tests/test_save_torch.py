"""Work directories and their checkpoints as PyTorch pipeline folders."""

import json

import jax
import numpy as np
import pytest

import escherjax
from escherjax.errors import UserError
from tests.helpers.tiny_workdir import write_workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(work directory, state of its last checkpoint)."""
    folder = tmp_path_factory.mktemp("run")
    return folder, write_workdir(folder, min_references=1)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("weights", [None, "ema", "raw"])
def test_a_work_directory_and_its_folder_hold_the_same_network(run, weights, tmp_path):
    folder, state = run
    pipe = escherjax.load(folder, weights=weights)
    trained = state.params if weights == "raw" else state.ema
    assert_equal(pipe.params, {**trained, "vae": {}})
    pipe.save_torch(tmp_path / "out")
    again = escherjax.load(tmp_path / "out")
    assert_equal(again.params, pipe.params)
    assert again.facts == pipe.facts and again.resolution == pipe.resolution == 16
    assert again.model.codec == pipe.model.codec
    content = json.loads((tmp_path / "out" / "escherjax.json").read_text())
    assert content["weights"] == (weights or "ema") and content["trained_steps"] == 4
    assert content["num_references"] == [1, 2] and content["num_targets"] == 2
    assert content["latents"] == {"kind": "pixels", "patch": 2}


def test_a_checkpoint_is_exported_by_its_folder(run, tmp_path):
    folder, state = run
    pipe = escherjax.load(folder / "checkpoints" / "2", weights="raw")
    assert pipe.facts.trained_steps == 2
    bias = state.params["unet"]["conv_in"]["bias"]  # 0 at initialisation, 0.002, 0.006
    assert_equal(pipe.params["unet"]["conv_in"]["bias"], bias * 0 + np.float32(0.002))


def test_weights_that_are_not_there_are_refused(run, tmp_path):
    folder, _ = run
    with pytest.raises(UserError, match="weights must be 'ema', 'raw' or None, got 'best'"):
        escherjax.load(folder, weights="best")
    write_workdir(tmp_path / "raw", ema__enabled=False)
    assert escherjax.load(tmp_path / "raw").facts.weights == "raw"
    with pytest.raises(UserError, match="kept no average"):
        escherjax.load(tmp_path / "raw", weights="ema")
    escherjax.load(tmp_path / "raw").save_torch(tmp_path / "out")
    with pytest.raises(UserError, match="holds one set of weights"):
        escherjax.load(tmp_path / "out", weights="raw")


def test_cape_goes_before_the_file_of_a_folder(run, tmp_path, caplog):
    escherjax.load(run[0]).save_torch(tmp_path / "out")
    pipe = escherjax.load(tmp_path / "out", cape="none")
    assert pipe.model.cape == pipe.facts.cape == "none"
    assert "cape = '6dof'; using 'none'" in caplog.text
    with pytest.raises(UserError, match="cape must be '6dof', with which .* trained"):
        escherjax.load(run[0], cape="none")


def test_facts_that_do_not_fit_the_networks_are_refused(run, tmp_path):
    escherjax.load(run[0]).save_torch(tmp_path / "out")
    file = tmp_path / "out" / "escherjax.json"
    content = json.loads(file.read_text())
    for change, reason in [
        (
            {"latents": {"kind": "pixels", "patch": 4}},
            "unet.in_channels must be .* 48, got 12",
        ),
        ({"resolution": 17}, "resolution must be a multiple of 2.* got 17"),
        ({"camera_axes": "opencv"}, "camera_axes must be 'opengl', got 'opencv'"),
    ]:
        file.write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match=reason):
            escherjax.load(tmp_path / "out")
