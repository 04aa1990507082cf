"""Importers: cameras that project known points onto the pixels where they are seen."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_prep import nerf_json, zero123
from data_prep import procedural as procedural_command
from data_prep.lib import importing
from escherjax import cameras
from escherjax.data import images, procedural
from escherjax.data import shards as records
from escherjax.data.formats import folders, transforms
from escherjax.errors import UserError
from tests.helpers.scene_folders import (
    CENTERS,
    SIZE,
    VIEWS,
    assert_balls_where_projected,
    render_balls,
    run,
    write_transforms,
    write_zero123,
)


@pytest.fixture(scope="module")
def rendered():
    return render_balls()


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_zero123_cameras_project_known_points_onto_their_pixels(rendered, tmp_path):
    write_zero123(tmp_path / "renders" / "ab" / "one", rendered)
    source, report = run(zero123, tmp_path / "renders", tmp_path / "out")
    scene = source[0]
    assert (scene.scene_id, scene.source, scene.num_views) == ("ab/one", "zero123", VIEWS)
    assert_balls_where_projected(scene)
    np.testing.assert_allclose(scene.c2w, rendered[1], atol=1e-5)
    np.testing.assert_allclose(scene.K, rendered[2], rtol=1e-6)
    assert (report["scenes"], report["views"], report["num_skipped"]) == (1, VIEWS, 0)


@pytest.mark.parametrize("layout", ["nerf_synthetic", "nerfstudio", "other_size"])
def test_transforms_cameras_project_known_points_onto_their_pixels(rendered, tmp_path, layout):
    focal = float(rendered[2][0, 0, 0])
    if layout == "nerf_synthetic":
        angle = 2 * np.arctan(0.5 * SIZE / focal)
        kind = {"name": "transforms_train.json", "suffix": "", "camera_angle_x": angle}
    else:
        factor = 4 if layout == "other_size" else 1  # intrinsics for pictures 4 times as large
        size = {"w": SIZE, "h": SIZE, "cx": SIZE / 2, "cy": SIZE / 2}
        fields = {"fl_x": focal, "fl_y": focal, **size}
        kind = {name: factor * value for name, value in fields.items()}
    write_transforms(tmp_path / "one", rendered, **kind)
    out = tmp_path / "out"
    source, report = run(nerf_json, tmp_path / "one", out, "--normalize", "none")
    assert source[0].scene_id == "one"
    assert_balls_where_projected(source[0])
    assert report["notes"]["one"]["scale"] == 1.0


def test_normalized_scene_projects_scaled_points_onto_the_same_pixels(rendered, tmp_path):
    focal = float(rendered[2][0, 0, 0])
    write_transforms(tmp_path / "one", rendered, fl_x=focal)
    source, report = run(nerf_json, tmp_path / "one", tmp_path / "out")
    radius = np.linalg.norm(source[0].c2w[:, :3, 3], axis=-1)
    np.testing.assert_allclose(radius.max(), 1.5, rtol=1e-5)
    assert_balls_where_projected(source[0], CENTERS * np.float32(report["notes"]["one"]["scale"]))


@pytest.mark.parametrize("offset", [(1e4, 0, 0), (5e5, 4.2e6, 300), (0, -1e8, 1e8)])
def test_a_world_far_away_is_moved_before_it_is_rounded_or_refused(rendered, tmp_path, offset):
    focal = float(rendered[2][0, 0, 0])
    far = rendered[1].astype(np.float64)
    far[:, :3, 3] += offset
    write_transforms(tmp_path / "near" / "one", rendered, fl_x=focal)
    write_transforms(tmp_path / "far" / "one", (rendered[0], far), fl_x=focal)
    for normalize in ("max_radius=1.5", "none"):
        with pytest.raises(UserError, match="stand .* apart and .* give .*--recenter"):
            run(nerf_json, tmp_path / "far", tmp_path / "no", "--normalize", normalize)
    near, _ = run(nerf_json, tmp_path / "near", tmp_path / "out1", "--recenter")
    moved, _ = run(nerf_json, tmp_path / "far", tmp_path / "out2", "--recenter")
    # float64 has 16 digits, of which 8 are left in the farthest world; the spread is about 4.
    np.testing.assert_allclose(moved[0].c2w, near[0].c2w, atol=2e-6)


def test_shrunk_pictures_keep_points_on_their_pixels(rendered, tmp_path):
    write_zero123(tmp_path / "one", rendered)
    source, _ = run(zero123, tmp_path / "one", tmp_path / "out", "--resolution", "32")
    assert (source[0].height, source[0].width) == (32, 32)
    assert_balls_where_projected(source[0])


def test_resolution_zero_keeps_the_files_bytes(rendered, tmp_path):
    folder = write_zero123(tmp_path / "one", rendered)
    source, _ = run(zero123, folder, tmp_path / "out", "--resolution", "0")
    files = [path.read_bytes() for path in sorted(folder.glob("*.png"))]
    assert list(source[0].images) == files


def test_split_picks_its_transforms_file(rendered, tmp_path):
    angle = 0.8
    write_transforms(tmp_path / "one", rendered, "transforms_train.json", "", camera_angle_x=angle)
    part = tuple(array[:2] for array in rendered)
    write_transforms(tmp_path / "one", part, "transforms_test.json", "", camera_angle_x=angle)
    nerf_json.main(["--source", str(tmp_path), "--out", str(tmp_path / "out"), "--split", "test"])
    assert records.open_shards(tmp_path / "out", "test")[0].num_views == 2
    with pytest.raises(UserError, match="transforms_val.json"):
        nerf_json.main(["--source", str(tmp_path), "--out", str(tmp_path / "o"), "--split", "val"])


def break_scene(folder, how):
    """Damages one scene folder of the Zero123 layout."""
    pose = np.load(folder / "001.npy")
    if how == "no pose":
        (folder / "001.npy").unlink()
    elif how == "no picture":
        (folder / "001.png").unlink()
    elif how == "truncated picture":
        data = (folder / "001.png").read_bytes()
        (folder / "001.png").write_bytes(data[: len(data) // 2])
    elif how == "no image file":
        (folder / "001.png").write_text("not a picture")
    elif how == "pose is text":
        (folder / "001.npy").write_text("1 0 0 0")
    elif how == "empty views":
        for name in ("000", "001", "002"):
            Image.new("RGBA", (SIZE, SIZE)).save(folder / f"{name}.png")
    elif how == "mixed sizes":
        Image.new("RGB", (20, 20)).save(folder / "001.png")
    else:
        if how == "NaN pose":
            pose[0, 3] = np.nan
        elif how == "singular pose":
            pose[:, 1] = pose[:, 0]
        elif how == "mirrored pose":
            pose[0] *= -1
        elif how == "scaled pose":
            pose[:, :3] *= 2
        np.save(folder / "001.npy", pose)


DAMAGES = {
    "no pose": "view 001 has no pose",
    "no picture": "view 001 has no picture",
    "truncated picture": "001.png cannot be decoded",
    "no image file": "001.png cannot be decoded",
    "pose is text": "001.npy is not a whole .npy file",
    "empty views": "3 views are empty",
    "mixed sizes": "mixes picture sizes",
    "NaN pose": "pose of view 1 holds NaN",
    "singular pose": "pose of view 1 is not rigid",
    "mirrored pose": "pose of view 1 is mirrored",
    "scaled pose": "pose of view 1 is not rigid",
}


def test_unusable_scenes_are_skipped_with_their_reason_and_not_replaced(rendered, tmp_path):
    write_zero123(tmp_path / "renders" / "good", rendered)
    for how in DAMAGES:
        break_scene(write_zero123(tmp_path / "renders" / how, rendered), how)
    source, report = run(zero123, tmp_path / "renders", tmp_path / "out")
    assert len(source) == 1 and source[0].scene_id == "good"
    assert (report["scenes"], report["num_skipped"]) == (1, len(DAMAGES))
    reasons = {entry["scene_id"]: entry["reason"] for entry in report["skipped"]}
    assert reasons.keys() == DAMAGES.keys()
    for how, reason in DAMAGES.items():
        assert reason in reasons[how]


def test_import_of_nothing_usable_is_an_error_and_leaves_no_data_set(rendered, tmp_path):
    break_scene(write_zero123(tmp_path / "one", rendered), "no pose")
    with pytest.raises(UserError, match="none of 1 scenes can be used.*has no pose"):
        run(zero123, tmp_path / "one", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(UserError, match="no scenes in .*folders with 000.png"):
        run(zero123, tmp_path / "out", tmp_path / "out2")
    with pytest.raises(UserError, match="not a directory"):
        run(zero123, tmp_path / "missing", tmp_path / "out2")


def make_scenes(folder, rendered, count):
    for number in range(count):
        part = tuple(array[: 2 + number % 3] for array in rendered)
        write_zero123(folder / f"scene-{number}", part)
    break_scene(folder / "scene-1", "no pose")
    return folder


def importer_arguments(source, out):
    arguments = ["--source", str(source), "--out", str(out), "--shards", "3", "--heldout", "2"]
    parser = importing.argument_parser("zero123", "test")
    return parser.parse_args(arguments)


def import_until(args, source, last):
    """The zero123 import, stopped as Ctrl-C does when scene number `last` is to be read."""
    found = folders.find_scene_folders(source, "zero123")

    def read_scene(scene_id, folder):
        if scene_id == f"scene-{last}":
            raise KeyboardInterrupt
        return importing.Imported(folders.read_scene_folder(folder, scene_id))

    ids = [scene_id for scene_id, _ in found]
    read = importing.SceneReader(read_scene, found, workers=1)
    return importing.import_scenes(args, "zero123", ids, read)


@pytest.mark.parametrize("stop", [0, 3, 6])
def test_stopped_import_goes_on_and_gives_the_bytes_of_an_undisturbed_one(rendered, tmp_path, stop):
    source = make_scenes(tmp_path / "renders", rendered, 7)
    whole = import_until(importer_arguments(source, tmp_path / "whole"), source, None)
    args = importer_arguments(source, tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        import_until(args, source, stop)
    with pytest.raises(UserError, match="not a whole data set"):
        records.open_shards(args.out)
    kept = {path.name: path.stat().st_ino for path in args.out.glob("*array_record*[0-9]")}
    assert len(kept) == {0: 0, 3: 2, 6: 4}[stop]
    import_until(args, source, None)
    assert contents(args.out) == contents(whole)
    for name, inode in kept.items():
        assert (args.out / name).stat().st_ino == inode  # finished shards are not written twice
    train, heldout = records.open_shards(whole), records.open_shards(whole, "heldout")
    assert [train[i].scene_id for i in range(len(train))] == [f"scene-{i}" for i in (0, 2, 3, 4)]
    assert [heldout[i].scene_id for i in range(2)] == ["scene-5", "scene-6"]


def test_finished_shard_that_was_lost_is_written_again(rendered, tmp_path):
    source = make_scenes(tmp_path / "renders", rendered, 7)
    whole = import_until(importer_arguments(source, tmp_path / "whole"), source, None)
    args = importer_arguments(source, tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        import_until(args, source, 6)
    sorted(args.out.glob("*array_record*"))[0].unlink()
    import_until(args, source, None)
    assert contents(args.out) == contents(whole)


def test_unfinished_import_with_other_arguments_is_refused(rendered, tmp_path):
    source = make_scenes(tmp_path / "renders", rendered, 4)
    args = importer_arguments(source, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        import_until(args, source, 2)
    args.resolution = 32
    with pytest.raises(UserError, match="unfinished import with other arguments"):
        import_until(args, source, None)


def test_finished_data_set_is_replaced_only_on_request(rendered, tmp_path):
    write_zero123(tmp_path / "renders" / "one", rendered)
    run(zero123, tmp_path / "renders", tmp_path / "out")
    before = contents(tmp_path / "out")
    write_zero123(tmp_path / "renders" / "two", rendered)
    with pytest.raises(UserError, match="holds a data set already"):
        run(zero123, tmp_path / "renders", tmp_path / "out")
    assert contents(tmp_path / "out") == before
    source, _ = run(zero123, tmp_path / "renders", tmp_path / "out", "--overwrite")
    assert len(source) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    for more in ((), ("--overwrite",)):
        with pytest.raises(UserError, match="not an empty folder"):
            run(zero123, tmp_path / "renders", tmp_path / "mine", *more)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"


def test_limit_and_heldout_fraction_take_scenes_in_sorted_order(rendered, tmp_path):
    part = tuple(array[:1] for array in rendered)
    for name in "edcbafgh":
        write_zero123(tmp_path / "renders" / name, part)
    options = ("--limit", "6", "--heldout", "0.25")
    train, report = run(zero123, tmp_path / "renders", tmp_path / "out", *options)
    assert [train[i].scene_id for i in range(len(train))] == list("abcd")
    assert report["splits"] == {"train": 4, "heldout": 2}


def test_procedural_command_writes_the_rendered_scenes(tmp_path):
    out = tmp_path / "out"
    arguments = ["--limit", "3", "--num-views", "2", "--resolution", "16", "--first-scene", "4"]
    procedural_command.main(["--out", str(out), *arguments])
    source, expected = records.open_shards(out), procedural.ProceduralSource(0, 3, 2, 16, 4)
    for index in range(3):
        scene = source[index]
        assert scene.scene_id == expected[index].scene_id
        np.testing.assert_array_equal(scene.c2w, expected[index].c2w)
        decoded = [images.decode_image(data, "view") for data in scene.images]
        np.testing.assert_array_equal(decoded, expected[index].images)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--limit", "0"), "--limit must be at least 1, got 0"),
        (("--heldout", "1.5"), "must be a fraction"),
        (("--heldout", "1"), "leaves none of 1 scenes"),
        (("--split", "Train"), "split 'Train'"),
        (("--split", "heldout", "--heldout", "0.5"), "another name"),
    ],
)
def test_impossible_arguments_are_refused(rendered, tmp_path, arguments, message):
    write_zero123(tmp_path / "one", rendered)
    with pytest.raises(UserError, match=message):
        run(zero123, tmp_path / "one", tmp_path / "out", *arguments)


def test_command_reports_wrong_input_in_one_line_with_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "data_prep.zero123", "--source", "nowhere", "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: --source nowhere is not a directory.\n"


def test_scenes_that_teach_nothing_are_skipped(rendered, tmp_path):
    pictures, c2w, K = rendered
    write_transforms(tmp_path / "in" / "good", rendered, fl_x=float(K[0, 0, 0]))
    write_transforms(tmp_path / "in" / "one", (pictures[:1], c2w[:1]), fl_x=30.0)
    still = np.repeat(c2w[:1], len(c2w), 0)
    write_transforms(tmp_path / "in" / "still", (pictures, still), fl_x=30.0)
    _, report = run(nerf_json, tmp_path / "in", tmp_path / "out")
    assert report["scenes"] == 2
    assert report["notes"]["one"]["warning"] == "has one view"
    ((skipped,), name) = report["skipped"], "still"
    assert skipped["scene_id"] == name and "views have the same pose" in skipped["reason"]


def test_pictures_with_cameras_of_any_kind_come_in_by_transforms_json(data_dir, tmp_path):
    """As docs/data.md shows it; the angles beside the matrices tell what the cameras are."""
    shutil.copytree(data_dir / "syncdreamer_chicken", tmp_path / "chicken")
    known = np.load(tmp_path / "chicken" / "cameras.npz")
    names = [f"{view:03d}.png" for view in range(16)]
    c2w = cameras.c2w_from_w2c(known["world_to_cam"])
    transforms.write_transforms(
        tmp_path / "chicken" / "transforms.json", c2w, known["K"], 256, names
    )
    shards, _ = run(nerf_json, tmp_path / "chicken", tmp_path / "out", "--normalize", "none")
    polar, azimuth, radius = cameras.to_spherical(shards[0].c2w)
    turned = np.exp(1j * (azimuth - known["azimuth"]))
    np.testing.assert_allclose(turned, 1, atol=1e-5)  # float32
    np.testing.assert_allclose(np.pi / 2 - polar, known["elevation"], atol=1e-5)
    np.testing.assert_allclose(radius, known["distance"], atol=1e-5)
    np.testing.assert_allclose(shards[0].K, np.tile(known["K"], (16, 1, 1)), rtol=1e-6)
