"""RTMV: EXR pictures of linear colours, JSON cameras stored transposed."""

import json
import subprocess
import sys

import numpy as np
import pytest

from data_prep import rtmv
from escherjax.data import images
from escherjax.errors import UserError
from tests.helpers.painted_views import POINTS, assert_points_where_painted, camera_positions, moved
from tests.helpers.rtmv_folders import HEIGHT, VIEWS, WIDTH, write_exr, write_scene
from tests.helpers.scene_folders import run


@pytest.mark.parametrize("color", ["tonemapped", "faithful"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_cameras_project_known_points_onto_their_pixels(tmp_path, color, dtype):
    write_scene(tmp_path / "rtmv" / "00001", dtype=dtype)
    source, report = run(rtmv, tmp_path / "rtmv", tmp_path / "out", "--color", color)
    scene = source[0]
    assert (scene.scene_id, scene.source, scene.num_views) == ("00001", "rtmv", VIEWS)
    assert (scene.height, scene.width) == (HEIGHT, WIDTH)
    assert report["notes"]["00001"]["scale"] == 1
    assert_points_where_painted(scene)
    np.testing.assert_allclose(scene.c2w[:, :3, 3], camera_positions(VIEWS), atol=1e-6)


def test_shrunk_scaled_first_views_keep_points_on_their_pixels(tmp_path):
    folder = write_scene(tmp_path / "one")
    options = ("--resolution", "36", "--first-views", "3", "--normalize", "max_radius=1.5")
    source, report = run(rtmv, folder, tmp_path / "out", *options)
    scene = source[0]
    assert (scene.scene_id, scene.num_views, scene.height, scene.width) == ("one", 3, 36, 48)
    assert_points_where_painted(scene, moved(POINTS, report["notes"]["one"]), tolerance=0.3)


def colors_of(tmp_path, linear, color):
    """The 8-bit picture of a frame whose every pixel holds one of these linear values."""
    folder = write_scene(tmp_path / "one", views=1)
    values = np.resize(np.array(linear, np.float32), (HEIGHT, WIDTH))
    channels = {"R": values, "G": values[::-1].copy(), "B": 0 * values, "A": 0 * values}
    write_exr(folder / "00000.exr", channels)
    source, _ = run(rtmv, folder, tmp_path / "out", "--color", color)
    picture = images.decode_image(source[0].images[0], "view")
    assert picture.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(picture[::-1, :, 1], picture[..., 0])
    assert (picture[..., 2] == 0).all()
    return picture[..., 0].ravel()[: len(linear)].tolist()


def test_faithful_colors_are_cut_and_wrap_around(tmp_path):
    # 127.5 is cut; 255 stays; 256, 510, 765.5 and 2e7 are taken modulo 256; -0.9 is cut to 0, -1.02
    # to -1.
    linear = [0.5, 1.0, 256 / 255, 2.0, 765.5 / 255, 2e7 / 255, -0.9 / 255, -1.02 / 255]
    expected = [127, 255, 0, 254, 253, 20_000_000 % 256, 0, 255]
    assert colors_of(tmp_path, linear, "faithful") == expected


def test_tonemapped_colors_are_clipped_and_follow_srgb(tmp_path):
    # sRGB of middle grey 0.18 is 0.4614, of 0.5 0.7354, of 0.002 0.02584; times 255, rounded.
    assert colors_of(tmp_path, [0, 0.002, 0.18, 0.5, 1, 7, -1], "tonemapped") == [
        0, 7, 118, 188, 255, 255, 0,
    ]  # fmt: skip


def edit(folder, number, change):
    path = folder / f"{number:05d}.json"
    content = json.loads(path.read_text())
    change(content["camera_data"])
    path.write_text(json.dumps(content))


def test_every_fault_of_a_scene_is_named_and_the_others_are_kept(tmp_path):
    root = tmp_path / "rtmv"
    for name in ("good", "cameras", "pictures", "transposed"):
        write_scene(root / name, views=7)
    cameras, pictures = root / "cameras", root / "pictures"
    (cameras / "00000.json").unlink()
    (cameras / "00001.exr").unlink()
    (cameras / "00002.json").write_text("{")
    edit(cameras, 3, lambda camera: camera.pop("cam2world"))
    edit(cameras, 4, lambda camera: camera["intrinsics"].pop("fy"))
    edit(cameras, 5, lambda camera: camera.update(width=0))
    (cameras / "00006.json").write_text("[]")
    whole = (pictures / "00000.exr").read_bytes()
    (pictures / "00000.exr").write_bytes(whole[: len(whole) // 2])
    (pictures / "00001.exr").write_bytes(b"")
    write_exr(pictures / "00002.exr", {"Z": np.ones((HEIGHT, WIDTH), np.float32)})
    bad = np.ones((HEIGHT, WIDTH, 3), np.float32)
    bad[0, 0, 0] = np.inf
    write_exr(pictures / "00003.exr", {"RGB": bad})
    edit(pictures, 4, lambda camera: camera.update(width=2 * WIDTH))
    edit(
        root / "transposed",
        0,
        lambda camera: camera.update(cam2world=np.array(camera["cam2world"]).T.tolist()),
    )
    source, report = run(rtmv, root, tmp_path / "out")
    assert [source[i].scene_id for i in range(len(source))] == ["good"]
    reasons = {entry["scene_id"]: entry["reason"] for entry in report["skipped"]}
    for words in (
        "00000.json not found",
        "00001.exr not found",
        "00002.json cannot be read",
        "00003.json must have camera_data",
        "00004.json must have camera_data",
        "00005.json must have camera_data",
        "00006.json must have camera_data",
    ):
        assert words in reasons["cameras"]
    for words in (
        "00000.exr cannot be read",
        "00001.exr cannot be read",
        "00002.exr must have channels R, G and B, got Z",
        "00003.exr holds NaN or infinity",
        "00004.json: intrinsics are for 192 x 72",
    ):
        assert words in reasons["pictures"]
    assert "pose of view 0 must have last row" in reasons["transposed"]


def test_folders_without_frames_are_refused(tmp_path):
    with pytest.raises(UserError, match="not a directory"):
        run(rtmv, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="folders with 00000.exr and 00000.json"):
        run(rtmv, tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="--first-views must be at least 1, got 0"):
        run(rtmv, tmp_path, tmp_path / "out", "--first-views", "0")


def test_without_openexr_the_command_names_the_extra(tmp_path):
    hide = "import sys; sys.modules['OpenEXR'] = None; from data_prep import rtmv; "
    call = f"rtmv.run_command(rtmv.main, ['--source', {str(tmp_path)!r}, '--out', 'out'])"
    done = subprocess.run(
        [sys.executable, "-c", hide + call], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'escherjax[prep]'" in done.stderr
