"""RealEstate10K: text files of normalised cameras, frames in folders, of which some are missing."""

import numpy as np
import pytest
from PIL import Image

from data_prep import re10k
from escherjax.data import images
from escherjax.errors import UserError
from tests.helpers.painted_views import (
    POINTS,
    assert_points_where_painted,
    camera_axes,
    camera_positions,
    moved,
    paint,
)
from tests.helpers.scene_folders import run

VIEWS, HEIGHT, WIDTH = 5, 64, 112
INTRINSICS = 0.61, 1.13, 0.53, 0.46  # in units of width, height, width, height
UP = np.array([0.1, -1.0, 0.2])


def write_clip(root, clip="train/0123456789abcdef", suffix="png", views=VIEWS):
    """A clip's text file in root/cameras and frames in root/frames; returns its timestamps."""
    folder = root / "frames" / clip
    folder.mkdir(parents=True)
    fx, fy, cx, cy = INTRINSICS
    lines, times = ["https://www.youtube.com/watch?v=clip"], []
    for view, position in enumerate(camera_positions(views)):
        right, up, forward = camera_axes(position, UP)
        rotation = np.stack([right, -up, forward])  # rows are the camera's axes
        translation = -rotation @ position
        x, y, z = (POINTS @ rotation.T + translation).T
        pixels = np.stack([WIDTH * (fx * x / z + cx), HEIGHT * (fy * y / z + cy)], axis=-1)
        times.append(90_000_000 + 33_367 * view)
        path = folder / f"{times[-1]}.{suffix}"
        Image.fromarray(paint(pixels, HEIGHT, WIDTH)).save(path, quality=95, subsampling=0)
        matrix = np.concatenate([rotation, translation[:, None]], axis=1)
        numbers = [*INTRINSICS, 0, 0, *matrix.ravel()]
        lines.append(" ".join([str(times[-1]), *(f"{number:.9f}" for number in numbers)]) + " ")
    file = root / "cameras" / f"{clip}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    return times


def import_clips(root, *more):
    options = ("--frames", str(root / "frames"), *more)
    return run(re10k, root / "cameras", root / "out", *options)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_cameras_project_known_points_onto_their_pixels(tmp_path, suffix):
    write_clip(tmp_path, suffix=suffix)
    source, report = import_clips(tmp_path)
    scene = source[0]
    assert (scene.scene_id, scene.source) == ("train/0123456789abcdef", "re10k")
    assert (scene.num_views, scene.height, scene.width) == (VIEWS, HEIGHT, WIDTH)
    note = report["notes"]["train/0123456789abcdef"]
    assert note["scale"] == 1 and "missing_frames" not in note
    assert_points_where_painted(scene, moved(POINTS, note))
    # Turned upright, and not scaled: the cameras stand 2 from the origin.
    assert (scene.c2w[:, 2, 1] < 0).all()
    np.testing.assert_allclose(np.linalg.norm(scene.c2w[:, :3, 3], axis=-1), 2, rtol=1e-5)


def test_shrunk_and_scaled_clips_keep_points_on_their_pixels(tmp_path):
    write_clip(tmp_path)
    options = ("--resolution", "32", "--normalize", "max_radius=1.5", "--recenter", "--up", "file")
    source, report = import_clips(tmp_path, *options)
    assert (source[0].height, source[0].width) == (32, 56)
    note = report["notes"]["train/0123456789abcdef"]
    assert note["rotation"] == np.eye(3).tolist()
    assert_points_where_painted(source[0], moved(POINTS, note), tolerance=0.3)


def test_missing_frames_are_named_and_nothing_takes_their_place(tmp_path, capsys):
    times = write_clip(tmp_path)
    folder = tmp_path / "frames" / "train/0123456789abcdef"
    kept = [folder / f"{time}.png" for time in np.array(times)[[0, 2, 4]]]
    for time in (times[1], times[3]):
        (folder / f"{time}.png").unlink()
    (folder / "thumbnail.png").write_text("not a frame")
    source, report = import_clips(tmp_path, "--resolution", "0")
    assert list(source[0].images) == [path.read_bytes() for path in kept]
    note = report["notes"]["train/0123456789abcdef"]
    assert note["missing_frames"] == {"count": 2, "timestamps": [times[1], times[3]]}
    assert report["views_left_out"] == 2
    last = "0 skipped, 2 views of the others left out (2: frame without a picture)\n"
    assert capsys.readouterr().out.endswith(last)
    assert_points_where_painted(source[0], moved(POINTS, note))


def test_frames_may_lie_without_their_split_and_are_thinned_evenly(tmp_path):
    times = write_clip(tmp_path)
    (tmp_path / "frames" / "train" / "0123456789abcdef").rename(tmp_path / "frames" / "a")
    (tmp_path / "cameras" / "train" / "0123456789abcdef.txt").rename(
        tmp_path / "cameras" / "train" / "a.txt"
    )
    source, _ = import_clips(tmp_path, "--max-views", "2", "--resolution", "0")
    assert source[0].scene_id == "train/a"
    ends = [(tmp_path / "frames" / "a" / f"{time}.png").read_bytes() for time in times[::4]]
    assert list(source[0].images) == ends


def edit_line(file, number, edit):
    lines = file.read_text().split("\n")
    words = lines[number - 1].split()
    edit(words)
    lines[number - 1] = " ".join(words)
    file.write_text("\n".join(lines))


def test_every_fault_of_a_clip_is_named_and_the_others_are_kept(tmp_path):
    for clip in ("good", "bad", "text", "empty", "gone", "mirrored", "broken"):
        write_clip(tmp_path, clip)
    cameras = tmp_path / "cameras"
    edit_line(cameras / "bad.txt", 2, lambda words: words.pop())
    edit_line(cameras / "bad.txt", 3, lambda words: words.__setitem__(1, "fx"))
    edit_line(cameras / "bad.txt", 4, lambda words: words.__setitem__(5, "0.1"))
    first = (cameras / "bad.txt").read_text().split("\n")[4].split()[0]
    edit_line(cameras / "bad.txt", 6, lambda words: words.__setitem__(0, first))
    (cameras / "text.txt").write_text("A licence\n")
    (cameras / "empty.txt").write_text("https://video\n")
    for path in (tmp_path / "frames" / "gone").iterdir():
        path.unlink()
    for column in (7, 8, 9):
        edit_line(
            cameras / "mirrored.txt",
            2,
            lambda words, c=column: words.__setitem__(c, str(-float(words[c]))),
        )
    broken = sorted((tmp_path / "frames" / "broken").iterdir())[:2]
    for path in broken:
        path.write_bytes(b"")
    source, report = import_clips(tmp_path)
    assert [source[i].scene_id for i in range(len(source))] == ["good"]
    reasons = {entry["scene_id"]: entry["reason"] for entry in report["skipped"]}
    for words in (
        "line 2 has 18 numbers, not 19",
        "line 3 holds something that is not a number",
        "line 4 has [0.1, 0.0] where zeros belong",
        f"line 6 repeats timestamp {first}",
    ):
        assert words in reasons["bad"]
    assert "is not a clip: expected the video's address" in reasons["text"]
    assert "it has no frames" in reasons["empty"]
    assert "none of its 5 frames is in" in reasons["gone"]
    assert "pose of view 0 is mirrored" in reasons["mirrored"]
    assert all(path.name in reasons["broken"] for path in broken)


def test_missing_folders_are_refused(tmp_path):
    (tmp_path / "frames").mkdir()
    with pytest.raises(UserError, match="cameras does not exist"):
        import_clips(tmp_path)
    (tmp_path / "cameras").mkdir()
    with pytest.raises(UserError, match="no .txt in"):
        import_clips(tmp_path)
    (tmp_path / "frames").rmdir()
    with pytest.raises(UserError, match="frames is not a directory"):
        import_clips(tmp_path)


def test_real_clips_are_read_with_their_cameras(data_dir, tmp_path):
    """The sample has cameras only; grey pictures of 640 x 360 stand for its frames."""
    clips = data_dir / "re10k_txt"
    grey = images.encode_png(np.full((360, 640, 3), 128, np.uint8))
    for file in clips.glob("*.txt"):
        lines = file.read_text().split("\n")
        if lines[0].startswith("http"):
            (tmp_path / file.stem).mkdir()
            for line in filter(None, lines[1:]):
                (tmp_path / file.stem / f"{line.split()[0]}.png").write_bytes(grey)
    options = ("--frames", str(tmp_path), "--resolution", "0", "--up", "file")
    source, report = run(re10k, clips, tmp_path / "out", *options)
    assert (report["scenes"], report["views"]) == (6, 96)
    assert [entry["scene_id"] for entry in report["skipped"]] == ["LICENSE.CameraCtrl"]
    assert source[0].scene_id == "0bf152ef84195293"
    # First camera of that file: focal lengths are 0.4748 widths and 0.8441 heights, about equal
    # in pixels; its matrix takes its centre to 0 and leaves the direction it looks on row 3.
    np.testing.assert_allclose(source[0].K[0].diagonal(), [303.880, 303.880, 1], atol=1e-3)
    np.testing.assert_allclose(source[0].K[0, :2, 2], [320, 180])
    np.testing.assert_allclose(
        source[0].c2w[0, :3, 2], [0.622651041, 0.025398925, 0.782087326], atol=1e-6
    )
    matrix = np.array([
        [0.780003667, 0.059620168, -0.622928321, 0.726968666],
        [-0.062449891, 0.997897983, 0.017311305, 0.217967188],
        [0.622651041, 0.025398925, 0.782087326, -1.002211444],
    ])  # fmt: skip
    center = np.append(source[0].c2w[0, :3, 3], 1)
    np.testing.assert_allclose(matrix @ center, 0, atol=1e-6)
