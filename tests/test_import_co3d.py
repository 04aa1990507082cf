"""CO3D: PyTorch3D's viewpoints in both scales of normalised device coordinates."""

import gzip
import json

import numpy as np
import pytest
from PIL import Image

from data_prep import co3d
from data_prep.inspect.epipolar import check_scene
from escherjax import cameras
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

VIEWS = 5
UP = np.array([0.2, -1.0, 0.1])  # the world stands on its head, as those of real sequences


def write_sequence(root, sequence, kind, height, width, views=VIEWS):
    """Pictures and masks of one sequence of category "cup"; returns its frame annotations."""
    folder = root / "cup" / sequence
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    # Focal lengths and centres differ on the two axes, so that an exchange shows.
    focal, center = np.array([2.1, 2.3]), np.array([0.06, -0.04])
    unit = np.array([width, height]) / 2 if kind != "ndc_isotropic" else min(width, height) / 2
    entries = []
    for view, position in enumerate(camera_positions(views)):
        right, up, forward = camera_axes(position, UP)
        R = np.stack([-right, up, forward], axis=1)  # x_camera = x_world R + T: left, up, forward
        T = -position @ R
        seen = POINTS @ R + T
        ndc = focal * seen[:, :2] / seen[:, 2:] + center
        pixels = np.array([width, height]) / 2 - ndc * unit
        names = f"cup/{sequence}/images/{view:06d}.png", f"cup/{sequence}/masks/{view:06d}.png"
        picture = paint(pixels, height, width)
        Image.fromarray(picture).save(root / names[0])
        Image.fromarray(picture.max(-1)).save(root / names[1])
        viewpoint = {
            "R": R.tolist(),
            "T": T.tolist(),
            "focal_length": focal.tolist(),
            "principal_point": center.tolist(),
            "intrinsics_format": kind,
        }
        entries.append(
            {
                "sequence_name": sequence,
                "frame_number": view,
                "frame_timestamp": 0.1 * view,
                "image": {"path": names[0], "size": [height, width]},
                "mask": {"path": names[1], "mass": 1.0},
                "viewpoint": viewpoint,
            }
        )
    return entries


def write_annotations(root, entries, name="frame_annotations.jgz"):
    data = json.dumps(entries).encode()
    (root / "cup" / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)


@pytest.mark.parametrize("kind", ["ndc_isotropic", "ndc_norm_image_bounds"])
@pytest.mark.parametrize("size", [(72, 112), (112, 72)])
def test_cameras_project_known_points_onto_their_pixels(tmp_path, kind, size):
    write_annotations(tmp_path, write_sequence(tmp_path, "1_2_3", kind, *size))
    source, report = run(co3d, tmp_path, tmp_path / "out")
    scene = source[0]
    assert (scene.scene_id, scene.source, scene.num_views) == ("cup/1_2_3", "co3d", VIEWS)
    assert (scene.height, scene.width) == size
    assert_points_where_painted(scene, moved(POINTS, report["notes"]["cup/1_2_3"]))
    np.testing.assert_allclose(np.linalg.norm(scene.c2w[:, :3, 3], axis=-1).max(), 1.5, rtol=1e-5)
    # The world was upside down. The mean of the pictures' up directions, which is only about that
    # of the world, has a small say in what is up: 1.2 degrees here.
    up = np.array(report["notes"]["cup/1_2_3"]["rotation"]) @ UP / np.linalg.norm(UP)
    np.testing.assert_allclose(up, [0, 0, 1], atol=0.03)
    before = [tuple(camera_axes(p, UP)[1]) for p in camera_positions(VIEWS)]
    assert np.mean(before, axis=0)[1] < -0.5


def test_missing_format_is_the_per_axis_one_and_the_files_world_can_be_kept(tmp_path):
    entries = write_sequence(tmp_path, "a", "ndc_norm_image_bounds", 72, 112)
    for entry in entries:
        del entry["viewpoint"]["intrinsics_format"]
    write_annotations(tmp_path, entries, "frame_annotations.json")
    options = ("--normalize", "none", "--no-recenter", "--up", "file")
    source, report = run(co3d, tmp_path / "cup", tmp_path / "out", *options)
    assert source[0].scene_id == "a"
    assert_points_where_painted(source[0])
    assert report["notes"]["a"] == {
        "rotation": np.eye(3).tolist(),
        "center": [0, 0, 0],
        "scale": 1.0,
    }


def test_masks_become_alpha_and_shrunk_pictures_keep_points_on_their_pixels(tmp_path):
    entries = write_sequence(tmp_path, "a", "ndc_isotropic", 80, 120)
    for entry in entries:  # annotations of a picture twice as large
        entry["image"]["size"] = [160, 240]
    write_annotations(tmp_path, entries)
    source, report = run(co3d, tmp_path, tmp_path / "out", "--masks", "--resolution", "40")
    scene = source[0]
    assert (scene.height, scene.width) == (40, 60)
    points = moved(POINTS, report["notes"]["cup/a"])
    assert_points_where_painted(scene, points, tolerance=0.3)
    pixels, _ = cameras.project(np.broadcast_to(points, (VIEWS, 3, 3)), scene.c2w, scene.K)
    for view, data in enumerate(scene.images):
        picture = images.decode_image(data, "view")
        assert picture.shape == (40, 60, 4)
        columns, rows = pixels[view].astype(int).T
        assert (picture[rows, columns, 3] > 150).all()  # the mask is opaque on the dots
        assert picture[0, 0, 3] == 0


def test_frames_are_thinned_evenly_and_sequences_sorted(tmp_path):
    long = write_sequence(tmp_path, "b", "ndc_isotropic", 40, 40, views=9)
    short = write_sequence(tmp_path, "a", "ndc_isotropic", 40, 40, views=2)
    write_annotations(tmp_path, long[::-1] + short)
    source, _ = run(co3d, tmp_path, tmp_path / "out", "--max-views", "3", "--resolution", "0")
    assert [source[i].scene_id for i in range(2)] == ["cup/a", "cup/b"]
    assert [source[i].num_views for i in range(2)] == [2, 3]
    files = [(tmp_path / long[number]["image"]["path"]).read_bytes() for number in (0, 4, 8)]
    assert list(source[1].images) == files


def test_every_fault_of_a_sequence_is_named_and_the_others_are_kept(tmp_path):
    good = write_sequence(tmp_path, "good", "ndc_isotropic", 40, 40)
    bad = write_sequence(tmp_path, "bad", "ndc_isotropic", 40, 40, views=8)
    (tmp_path / bad[0]["image"]["path"]).unlink()
    (tmp_path / bad[1]["mask"]["path"]).unlink()
    bad[2]["viewpoint"] = None
    bad[3]["viewpoint"]["R"] = [[1, 0], [0, 1]]
    bad[4]["viewpoint"]["intrinsics_format"] = "pixels"
    del bad[5]["image"]["size"]
    bad[6]["viewpoint"]["T"] = ["x", 0, 0]
    mirrored = write_sequence(tmp_path, "mirrored", "ndc_isotropic", 40, 40)
    mirrored[0]["viewpoint"]["R"][0] = [-x for x in mirrored[0]["viewpoint"]["R"][0]]
    broken = write_sequence(tmp_path, "broken", "ndc_isotropic", 40, 40)
    for entry in broken[:2]:
        (tmp_path / entry["image"]["path"]).write_text("no picture")
    Image.new("L", (20, 20)).save(tmp_path / broken[2]["mask"]["path"])
    tall = write_sequence(tmp_path, "tall", "ndc_isotropic", 40, 40)
    tall[0]["image"]["size"] = [60, 40]
    write_annotations(tmp_path, good + bad + mirrored + broken + tall)
    source, report = run(co3d, tmp_path, tmp_path / "out", "--masks")
    assert [source[i].scene_id for i in range(len(source))] == ["cup/good"]
    reasons = {entry["scene_id"]: entry["reason"] for entry in report["skipped"]}
    for words in (
        "frame 0: picture cup/bad/images/000000.png is missing",
        "frame 1: mask cup/bad/masks/000001.png is missing",
        "frame 2 has no viewpoint",
        "frame 3: viewpoint's R is not an array of shape (3, 3)",
        "frame 4: intrinsics_format must be",
        "frame 5: image has no size",
        "frame 6: viewpoint's T is not an array",
    ):
        assert words in reasons["cup/bad"]
    assert "pose of view 0 is mirrored" in reasons["cup/mirrored"]
    for words in ("000000.png cannot be decoded", "000001.png cannot be", "expected one size"):
        assert words in reasons["cup/broken"]
    assert "another shape" in reasons["cup/tall"]


def test_unreadable_annotations_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        run(co3d, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "cup").mkdir()
    with pytest.raises(UserError, match="no frame_annotations.jgz"):
        run(co3d, tmp_path, tmp_path / "out")
    file = tmp_path / "cup" / "frame_annotations.jgz"
    whole = gzip.compress(b"[]" * 50)
    for data in (b"", whole[:-9], whole[:15] + b"\xff\xff" + whole[17:], b"[", b"\xff\xfe"):
        file.write_bytes(data)
        with pytest.raises(UserError, match="cannot be read"):
            run(co3d, tmp_path, tmp_path / "out")
    for content in ({"a": 1}, [1], [{"sequence_name": "a"}]):
        file.write_bytes(gzip.compress(json.dumps(content).encode()))
        with pytest.raises(UserError, match="entry 0 is not a frame annotation"):
            run(co3d, tmp_path, tmp_path / "out")
    write_annotations(tmp_path, [], "frame_annotations.json")
    with pytest.raises(UserError, match="several annotation files"):
        run(co3d, tmp_path, tmp_path / "out")


def test_a_broken_category_is_named_and_the_others_are_kept(tmp_path):
    write_annotations(tmp_path, write_sequence(tmp_path, "good", "ndc_isotropic", 40, 40))
    for name, content in (("bowl", b"{"), ("vase", gzip.compress(b"[1]")), ("none", b"[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "frame_annotations.jgz").write_bytes(content)
    source, report = run(co3d, tmp_path, tmp_path / "out")
    assert [source[i].scene_id for i in range(len(source))] == ["cup/good"]
    reasons = {entry["scene_id"]: entry["reason"] for entry in report["skipped"]}
    assert "cannot be read" in reasons["bowl/frame_annotations.jgz"]
    assert "entry 0 is not a frame annotation" in reasons["vase/frame_annotations.jgz"]
    with pytest.raises(UserError, match="there are no scenes in"):
        run(co3d, tmp_path / "none", tmp_path / "out2")


def test_real_sequence_keeps_matched_features_on_their_epipolar_lines(data_dir, tmp_path):
    pytest.importorskip("cv2")
    source, _ = run(co3d, data_dir / "co3d_apple", tmp_path / "out", "--resolution", "0")
    scene = source[0]
    assert (scene.num_views, scene.height, scene.width) == (10, 480, 270)
    # 0.20 pixels; the bound leaves room for another version of the feature detector.
    agreement = check_scene(scene)
    assert agreement.matches.sum() > 100
    assert np.nanmedian(agreement.distance) < 0.5
