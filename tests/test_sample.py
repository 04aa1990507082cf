"""The sampling command on a scene folder, with a network trained for two steps."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from data_prep import procedural as procedural_importer
from escherjax import sample, trajectories
from escherjax.cameras import to_spherical
from escherjax.data.scenes import read_scene_folder
from escherjax.data.transforms import read_cameras
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.pipeline import load
from escherjax.training import checkpoint, sharding
from escherjax.training.optimizer import make_optimizer
from escherjax.training.state import create_state


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A work directory with one checkpoint of a fresh network."""
    folder = tmp_path_factory.mktemp("sample") / "run"
    config = tiny_config()
    checkpoint.prepare_workdir(folder, config)
    model, optimizer = eschernet.from_config(config), make_optimizer(config.optimizer)
    state = create_state(model, optimizer, sharding.single_device_mesh(), config)
    average = jax.tree.map(lambda x: x + 1, state.params)
    with checkpoint.open_manager(folder) as manager:
        checkpoint.save(manager, state.replace(ema=average, step=state.step + 7), config)
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "made"
    procedural_importer.main(
        ["--out", str(out), "--folders", "--limit", "1", "--num-views", "5", "--resolution", "16"]
    )
    return next(out.iterdir())


def run(workdir, scene, out, *arguments):
    return sample.main(["--weights", str(workdir), "--views", str(scene), "--out", str(out),
                        "--steps", "2", *arguments])  # fmt: skip


def test_a_work_directory_loads_its_averaged_parameters(workdir):
    for path in (workdir, workdir / "checkpoints" / "7"):
        pipe = load(path)
        fresh = pipe.model.init(42, pipe.resolution)
        for name in ("unet", "image_encoder"):
            jax.tree.map(
                lambda ours, first: np.testing.assert_allclose(ours, first + 1, atol=1e-6),
                pipe.params[name],
                fresh[name],
            )
    with pytest.raises(UserError, match="not a folder"):
        load(workdir / "checkpoints" / "8")


def test_sampling_a_path_writes_everything_needed_to_repeat_it(workdir, scene, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(workdir, scene, out, "--targets", "orbit", "--num-views", "4") == 0
    assert capsys.readouterr().out.strip() == str(out / "contact_sheet.png")
    assert [Image.open(out / f"{i:03d}.png").size for i in range(4)] == [(16, 16)] * 4
    with Image.open(out / "orbit.gif") as animation:
        assert animation.size == (16, 16)
    record = json.loads((out / "run.json").read_text())
    assert record["references"] == [0, 1, 2] and record["steps"] == 2 and record["num_views"] == 4
    assert record["plan"]["name"] == "joint" and record["memory_estimate"]["parameters"] > 0
    written = read_cameras(out / "transforms.json")
    expected = trajectories.trajectory("orbit", 4, *_orbit_of(read_scene_folder(scene).c2w))
    np.testing.assert_allclose(written, expected, atol=1e-6)


def _orbit_of(c2w):
    polar, _, radius = to_spherical(c2w)
    return float(np.median(radius)), float(np.pi / 2 - np.median(polar))


def test_all_cameras_of_the_scene_come_back_as_they_were(workdir, scene, tmp_path):
    run(workdir, scene, tmp_path / "out", "--targets", "all", "--references", "4,0")
    read = read_scene_folder(scene)
    written = read_cameras(tmp_path / "out" / "transforms.json")
    np.testing.assert_allclose(written, read.c2w, atol=1e-6)
    again = read_scene_folder(tmp_path / "out")  # what is written is a scene folder itself
    np.testing.assert_allclose(again.K, read.K, rtol=1e-6)


def test_cameras_from_a_file(workdir, scene, tmp_path):
    run(workdir, scene, tmp_path / "out", "--targets", str(scene / "transforms.json"))
    assert len(list((tmp_path / "out").glob("0*.png"))) == 5


def test_orbit_is_a_closed_circle_and_archimedean_goes_from_pole_to_pole(golden_dir):
    polar, azimuth, radius = to_spherical(trajectories.trajectory("orbit", 8, 1.5, 0.3))
    np.testing.assert_allclose(polar, np.pi / 2 - 0.3, atol=1e-6)
    np.testing.assert_allclose(np.diff(np.unwrap(azimuth)), 2 * np.pi / 8, atol=1e-5)
    np.testing.assert_allclose(radius, 1.5, atol=1e-6)
    spiral = trajectories.trajectory("archimedean", 100, 1.5, 0.0)
    recorded = np.load(golden_dir / "conversions-6dof.npz")["spiral/xyz"]
    np.testing.assert_allclose(spiral[:, :3, 3], recorded, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--references", "0,9"], "views 0 to 4"),
        (["--references", "first"], "numbers such as"),
        (["--targets", "circle"], "neither a path"),
        (["--num-views", "0"], "at least 1"),
        (["--sampler", "euler"], "ddim"),
        (["--dtype", "float64"], "bfloat16"),
        (["--cape", "4dof"], "trained with '6dof'"),
        (["--steps", "0"], "1..1000"),
        (["--plan", "pyramid"], "joint, anchors"),
        (["--chunk", "0"], "chunk = 0"),
    ],
)
def test_wrong_arguments_are_refused(workdir, scene, tmp_path, arguments, reason):
    with pytest.raises(UserError, match=reason):
        run(workdir, scene, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(workdir, scene, tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(UserError, match="not empty"):
        run(workdir, scene, tmp_path)
