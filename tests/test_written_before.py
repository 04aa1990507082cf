"""Work directories and exported folders of earlier versions still open.

`data/run_and_export.tar.xz` was written by commit b0f20bb, before the modules moved into rooms: a
checkpoint of step 2 of the tiny run and its export in float16. Array i of the trained parameters,
in order of their paths, is filled with (i + 1) / 256, and its average with the negative of that.
"""

import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

import escherjax
from escherjax.weights import integrity, runs
from tests.helpers.finished_runs import final_state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(Path(__file__).parent / "data" / "run_and_export.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def assert_numbered(params, sign):
    trained = {part: params[part] for part in ("unet", "image_encoder")}
    for i, leaf in enumerate(jax.tree.leaves(trained)):
        np.testing.assert_array_equal(leaf, sign * (i + 1) / 256)


def test_a_run_written_before_is_restored_and_sampled_from(folder):
    assert integrity.newest_whole(folder / "run") == 2
    assert runs.read_config(folder / "run").resolution == 16
    state = final_state(folder / "run")
    assert_numbered(state.params, 1)
    assert_numbered(state.ema, -1)
    assert_numbered(escherjax.load(folder / "run").params, -1)
    assert_numbered(escherjax.load(folder / "run", weights="raw").params, 1)


def test_a_folder_exported_before_is_read(folder):
    pipe = escherjax.load(folder / "exported")
    assert_numbered(pipe.params, -1)
    assert (pipe.facts.cape, pipe.facts.weights, pipe.facts.trained_steps) == ("6dof", "ema", 2)
    assert pipe.facts.num_references == (1, 2) and pipe.facts.patch == 2
