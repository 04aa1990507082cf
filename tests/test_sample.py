"""The sampling command on a scene folder, with a network trained for two steps."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from data_prep import procedural as procedural_importer
from escherjax.cameras import paths, to_spherical
from escherjax.data.formats.folders import read_scene_folder
from escherjax.data.formats.transforms import read_cameras
from escherjax.devices import mesh
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.sample import __main__ as sample
from escherjax.sample import arguments as flags
from escherjax.sample.arguments import COMMAND
from escherjax.sample.loading import load
from escherjax.train.state import create_state
from escherjax.weights import runs
from tests.helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A work directory with one checkpoint of a fresh network."""
    folder = tmp_path_factory.mktemp("sample") / "run"
    config = tiny_config()
    runs.prepare_workdir(folder, config)
    model = eschernet.from_config(config)
    state = create_state(model, mesh.single_device_mesh(), config)
    average = jax.tree.map(lambda x: x + 1, state.params)
    with runs.open_manager(folder) as manager:
        runs.save(manager, state.replace(ema=average, step=state.step + 7).stored(), config)
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "made"
    procedural_importer.main(
        ["--out", str(out), "--folders", "--limit", "1", "--num-views", "5", "--resolution", "16"]
    )
    return next(out.iterdir())


def run(workdir, scene, out, *arguments):
    return sample.main(
        [
            "--weights",
            str(workdir),
            "--views",
            str(scene),
            "--out",
            str(out),
            "--steps",
            "2",
            *arguments,
        ]
    )


def test_a_work_directory_loads_its_averaged_parameters(workdir):
    for path in (workdir, workdir / "checkpoints" / "7"):
        pipe = load(path)
        assert pipe.facts.fov_deg == pytest.approx(49.134, abs=1e-3)  # of procedural scenes
        assert pipe.facts.camera_radius == (1.5, 2.2)
        fresh = pipe.model.init(42, pipe.resolution)
        for name in ("unet", "image_encoder"):
            jax.tree.map(
                lambda ours, first: np.testing.assert_allclose(ours, first + 1, atol=1e-6),
                pipe.params[name],
                fresh[name],
            )
    with pytest.raises(UserError, match="not a directory"):
        load(workdir / "checkpoints" / "8")


def test_sampling_a_path_writes_everything_needed_to_repeat_it(workdir, scene, tmp_path, capsys):
    out = tmp_path / "out"
    path = ["--targets", "dolly", "--num-views", "4", "--nerf-folder", "--alpha"]
    assert run(workdir, scene, out, *path) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out / "contact_sheet.png")
    assert "2/2" in printed.err  # the bar of sampling steps
    assert [Image.open(out / f"{i:03d}.png").size for i in range(4)] == [(16, 16)] * 4
    with Image.open(out / "orbit.gif") as animation:
        assert animation.size == (16, 16)
    record = json.loads((out / "run.json").read_text())
    assert record["references"] == [0, 1, 2] and record["steps"] == 2 and record["num_views"] == 4
    assert record["weights"]["path"] == str(workdir / "checkpoints" / "7")
    assert record["plan"]["name"] == "joint" and record["memory_estimate"]["parameters"] > 0

    read = read_scene_folder(scene)
    references = read.c2w[:3]
    radius, elevation, azimuth = paths.about_references(references)
    expected = paths.trajectory("dolly", 4, radius, elevation, azimuth)
    assert record["targets"]["radius"] == pytest.approx(radius)
    written = read_scene_folder(out)  # what is written is a scene folder itself
    np.testing.assert_allclose(written.c2w, expected, atol=1e-6)
    zoom = paths.dolly_zoom(expected)
    np.testing.assert_allclose(written.K[:, 0, 0], zoom * read.K[0, 0, 0], rtol=1e-5)

    nerf = read_scene_folder(out / "nerf")  # the references, then the views before the zoom
    np.testing.assert_allclose(nerf.c2w, np.concatenate([references, expected]), atol=1e-6)
    np.testing.assert_allclose(nerf.K, np.broadcast_to(read.K[0], (7, 3, 3)), rtol=1e-6)
    assert Image.open(out / "nerf" / "images" / "006.png").mode == "RGBA"

    # The recorded command with other targets and out; the rest of it is kept.
    repeat = ["--repeat", str(out / "run.json"), "--out", str(tmp_path / "again"), "--preview"]
    assert sample.main(repeat) == 0
    for name in ("out", "again"):
        assert Image.open(tmp_path / name / "cameras.png").size == (1320, 498)
    one, other = ((tmp_path / name / "cameras.png").read_bytes() for name in ("out", "again"))
    assert one == other


def test_a_run_is_repeated_with_the_weights_that_it_had(workdir, scene, tmp_path):
    """Not with a checkpoint that was saved since, nor with others that lie in its place."""
    command = [*COMMAND, "--weights", str(workdir), "--out=views", "--seed", "3", "--views", "s"]
    weights = {"path": "run/checkpoints/7", "hash": "abc"}
    path = tmp_path / "run.json"
    values = vars(flags.parse(command[len(COMMAND) :])) | {"out": "views", "views": ["s"]}
    for record in (
        {"command": command, "weights": weights},  # as earlier versions wrote it
        {"command": [*COMMAND, "--repeat", "old"], "arguments": values, "weights": weights},
    ):
        path.write_text(json.dumps(record))
        repeat = ["--repeat", str(path), "--out", "again"]
        same = flags.parse(repeat)
        assert (same.weights, same.weights_hash) == ("run/checkpoints/7", "abc")
        assert (same.seed, str(same.out), [str(view) for view in same.views]) == (3, "again", ["s"])
        others = flags.parse([*repeat, "--weights=others", "--seed=4"])
        assert (others.weights, others.weights_hash, others.seed) == ("others", None, 4)
        with pytest.raises(UserError, match="--out must be given"):
            flags.parse(repeat[:2])


def test_other_weights_than_those_asked_for_draw_nothing(workdir, scene, tmp_path):
    with pytest.raises(UserError, match="--weights-hash is 0123, but"):
        run(workdir, scene, tmp_path / "out", "--weights-hash", "0123")
    assert not (tmp_path / "out" / "000.png").exists()


def test_a_preview_needs_no_weights_and_does_not_stand_in_the_way(workdir, scene, tmp_path):
    out = tmp_path / "out"
    preview = ["--views", str(scene), "--out", str(out), "--references", "3,1", "--preview"]
    for targets in (["--targets", "spline"], ["--targets", "all"], ["--targets", "spiral"]):
        assert sample.main([*preview, *targets]) == 0  # over the one before
        assert [path.name for path in out.iterdir()] == ["cameras.png"]
    (out / "other.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        sample.main(preview)
    with pytest.raises(UserError, match="--weights must be given"):
        sample.main([*preview[:4], "--out", str(tmp_path / "new")])


def test_what_photos_take_is_no_fault_of_their_path(scene, tmp_path):
    photo = str(next(scene.glob("**/*.png")))
    shared = ["--targets", "archimedean", "--elevation-deg", "20", "--preview"]
    out = ["--out", str(tmp_path / "out")]
    assert sample.main(["--views", photo, "--cameras", "front", *out, *shared]) == 0
    with pytest.raises(UserError, match="--elevation-deg: means nothing to --targets archimedean"):
        sample.main(["--views", str(scene), *out, *shared])


def test_a_file_that_records_no_run_is_not_repeated(tmp_path):
    path = tmp_path / "run.json"
    for content in ("{", "[]", "{}", '{"command": ["rm", "-r", "."]}', '{"command": [1, 2, 3]}'):
        path.write_text(content)
        with pytest.raises(UserError, match="expected the run.json"):
            sample.main(["--repeat", str(path)])


def test_photos_with_named_cameras(workdir, scene, tmp_path, capsys):
    photos = sorted(scene.glob("**/*.png"))[:2]
    out = tmp_path / "out"
    arguments = ["--weights", str(workdir), "--views", *map(str, photos), "--out", str(out)]
    arguments += ["--cameras", "front,back:20", "--radius", "2", "--steps", "1"]
    assert sample.main([*arguments, "--num-views", "2"]) == 0
    polar, _, radius = to_spherical(read_cameras(out / "transforms.json"))
    np.testing.assert_allclose(polar, np.radians(80), atol=1e-5)  # the middle of 90 and 70
    np.testing.assert_allclose(radius, 2, rtol=1e-5)
    notes = json.loads((out / "run.json").read_text())["inputs"]
    # 1.06 * (280 / 256) / 2 for the photo in which the object is larger
    assert len(notes) == 2 and "object centred, its box made 58% of the frame" in notes[0]
    assert notes[0] in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--references", "0,9"], "views 0 to 4"),
        (["--references", "first"], "numbers such as"),
        (["--targets", "circle"], "neither a path"),
        (["--targets", "spline", "--references", "1"], "two cameras at least"),
        (["--alpha"], "--nerf-folder"),
        (["--targets", "all", "--turns", "2"], "--turns"),
        (["--num-views", "0"], "at least 1"),
        (["--sampler", "euler"], "ddim"),
        (["--dtype", "float64"], "bfloat16"),
        (["--cameras", "above"], "camera 'above' must be front"),
        (["--cape", "4dof"], "cape must be '6dof'"),
        (["--steps", "1001"], "from 1 to 1000"),
        (["--plan", "pyramid"], "joint, anchors"),
        (["--chunk", "0"], "chunk must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(workdir, scene, tmp_path, arguments, reason):
    with pytest.raises(UserError, match=reason):
        run(workdir, scene, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--steps", "0"], "--steps.*at least 1, got 0"),
        (["--eta", "2"], "eta.*got 2"),
        (["--guidance", "nan"], "guidance_scale.*got nan"),
        (["--sampler", "foo"], "one of ddim"),
        (["--guidance-rescale", "2"], "guidance_rescale.*got 2"),
        (["--seed", "-1"], "seed.*got -1"),
    ],
)
def test_wrong_sampling_is_refused_before_anything_is_read(tmp_path, arguments, reason):
    with pytest.raises(UserError, match=reason):
        run("nowhere", "nowhere", tmp_path / "out", *arguments)


def test_nothing_is_written_over(workdir, scene, tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(UserError, match="not empty"):
        run(workdir, scene, tmp_path)
