"""Scene folders: every layout, real captures, and clear words for what cannot be read."""

import json

import numpy as np
import pytest
from PIL import Image

from data_prep import nerf_json, zero123
from escherjax import cameras
from escherjax.data import images
from escherjax.data.formats import folders
from escherjax.errors import UserError
from tests.helpers.scene_folders import (
    SIZE,
    assert_balls_where_projected,
    render_balls,
    run,
    write_transforms,
)


@pytest.fixture(scope="module")
def rendered():
    return render_balls()


def test_wide_pictures_stay_wide_and_keep_points_on_their_pixels(rendered, tmp_path):
    pictures, c2w, K = rendered
    wide = np.pad(pictures, ((0, 0), (0, 0), (44, 20), (0, 0)))  # 64 rows, 128 columns
    focal = float(K[0, 0, 0])
    write_transforms(tmp_path / "one", (wide, c2w), fl_x=focal, cx=SIZE / 2 + 44, cy=SIZE / 2)
    options = ("--normalize", "none", "--resolution", "48")
    source, _ = run(nerf_json, tmp_path / "one", tmp_path / "out", *options)
    assert (source[0].height, source[0].width) == (48, 96)
    assert_balls_where_projected(source[0])


def test_frames_keep_the_order_of_the_file(rendered, tmp_path):
    folder = write_transforms(tmp_path / "one", rendered, fl_x=70.0)
    meta = json.loads((folder / "transforms.json").read_text())
    meta["frames"] = meta["frames"][::-1]
    (folder / "transforms.json").write_text(json.dumps(meta))
    scene = folders.read_scene_folder(folder)
    np.testing.assert_allclose(scene.c2w, rendered[1][::-1], atol=1e-6)


def test_lens_distortion_is_taken_out(tmp_path):
    K = np.array([[60.0, 0, 30], [0, 62, 26], [0, 0, 1]])
    distortion = {"k1": 0.15, "k2": -0.05, "p1": 0.06, "p2": -0.05}
    v, u = np.mgrid[:52, :60] + 0.5
    for x, y in ((0.25, -0.2), (-0.3, 0.1), (0.05, 0.3)):
        r2 = x * x + y * y
        radial = 1 + distortion["k1"] * r2 + distortion["k2"] * r2 * r2
        x_lens = x * radial + 2 * distortion["p1"] * x * y + distortion["p2"] * (r2 + 2 * x * x)
        y_lens = y * radial + distortion["p1"] * (r2 + 2 * y * y) + 2 * distortion["p2"] * x * y
        spot = np.exp(-((u - 60 * x_lens - 30) ** 2 + (v - 62 * y_lens - 26) ** 2) / 6)
        picture = np.repeat(np.round(255 * spot)[..., None], 3, -1).astype(np.uint8)
        straight = images.undistort(picture, K, distortion)[..., 0].astype(float)
        seen = [(straight * u).sum() / straight.sum(), (straight * v).sum() / straight.sum()]
        np.testing.assert_allclose(seen, [60 * x + 30, 62 * y + 26], atol=0.15)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m["frames"][1].pop("transform_matrix"), "frame 1 .* has no pose"),
        (lambda m: m["frames"][1].update(transform_matrix=[[1, "a"]]), "unreadable pose"),
        (lambda m: m["frames"][1].update(file_path="images/none"), "images/none not found"),
        (lambda m: m.pop("fl_x"), "no intrinsics.*fl_x or camera_angle_x"),
        (lambda m: m.update(fl_x="wide"), "fl_x is not a number"),
        (lambda m: m.update(fl_x=-50.0), "positive focal lengths, got fl_x = -50"),
        (lambda m: m.update(w=100, h=200), "another shape"),
        (lambda m: m.update(camera_model="MATTERPORT"), "camera_model.*MATTERPORT"),
        (lambda m: m.update(frames=[]), "lists no frames"),
    ],
)
def test_transforms_that_cannot_be_used_say_why(rendered, tmp_path, change, message):
    folder = write_transforms(tmp_path / "one", rendered, fl_x=70.0)
    meta = json.loads((folder / "transforms.json").read_text())
    change(meta)
    (folder / "transforms.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=message):
        folders.read_scene_folder(folder)


def test_nerf_poses_equal_the_original_conversion_up_to_a_world_turn(golden_dir, tmp_path):
    arrays = np.load(golden_dir / "conversions-6dof.npz")
    frames = []
    # The original scales by the largest radius of all views; one more view stands in for them.
    poses = [*arrays["nerf/c2w_blender"], np.eye(4)]
    poses[-1][2, 3] = arrays["nerf/max_radius"]
    for view, pose in enumerate(poses):
        Image.new("RGB", (8, 8)).save(tmp_path / f"r_{view}.png")
        frames.append({"file_path": f"r_{view}", "transform_matrix": pose.tolist()})
    meta = {"camera_angle_x": 0.69, "frames": frames}
    (tmp_path / "transforms_train.json").write_text(json.dumps(meta))
    out = tmp_path / "out"
    scene = run(nerf_json, tmp_path, out)[0][0]
    ours = cameras.w2c_from_c2w(cameras.opengl_from_opencv(scene.c2w)).astype(np.float64)[:-1]
    theirs = arrays["nerf/pose_6dof"]
    turn = np.linalg.inv(theirs[0]) @ ours[0]  # one world change must explain all views
    np.testing.assert_allclose(theirs @ turn, ours, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(turn[:3, 3]), 0.0, atol=1e-5)


def test_objaverse_poses_equal_the_original_conversion(golden_dir, tmp_path):
    arrays = np.load(golden_dir / "conversions-6dof.npz")
    poses = arrays["objaverse/w2c_3x4"]
    for view, pose in enumerate(poses):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{view:03d}.png")
        np.save(tmp_path / f"{view:03d}.npy", pose)
    scene = folders.read_scene_folder(tmp_path)
    w2c = cameras.w2c_from_c2w(cameras.opengl_from_opencv(scene.c2w))
    np.testing.assert_allclose(w2c, arrays["objaverse/pose_6dof"], atol=1e-6)


def assert_outlines_agree(scene, extent, least):
    """Carves a grid of points by every outline; what is left must fill every outline again."""
    steps = np.linspace(-1, 1, 72) * extent
    points = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    points = points.astype(np.float32)
    masks = [images.decode_image(data, "view")[..., 3] > 127 for data in scene.images]
    kept = np.ones(len(points), bool)
    places = []
    for mask, c2w, K in zip(masks, scene.c2w, scene.K, strict=True):
        pixels = np.floor(cameras.project(points, c2w, K)[0]).astype(int)
        inside = ((pixels >= 0) & (pixels < [scene.width, scene.height])).all(-1)
        column, row = pixels.clip(0, [scene.width - 1, scene.height - 1]).T
        kept &= mask[row, column] | ~inside
        places.append((row, column, inside))
    for mask, (row, column, inside) in zip(masks, places, strict=True):
        block = 4  # pixels: the grid is coarser than the picture
        filled = np.zeros_like(mask)
        filled[row[kept & inside], column[kept & inside]] = True
        shape = (scene.height // block, block, scene.width // block, block)
        coarse, wanted = filled.reshape(shape).any((1, 3)), mask.reshape(shape).all((1, 3))
        assert (coarse & wanted).sum() / wanted.sum() > least


def test_real_zero123_render_agrees_with_its_outlines_and_pose_files(data_dir, tmp_path):
    source, _ = run(zero123, data_dir / "gso_elephant", tmp_path / "out")
    scene = source[0]
    assert (scene.scene_id, scene.num_views) == ("render_mvs_25/model", 25)
    assert (scene.height, scene.width) == (256, 256)
    assert_outlines_agree(scene, extent=0.55, least=0.97)
    points = np.array([[0.2, 0.3, 0.4], [-0.3, 0.1, 0.0], [0.0, 0.0, -0.5]], np.float32)
    pixels, depth = cameras.project(points[None].repeat(25, 0), scene.c2w, scene.K)
    folder = data_dir / "gso_elephant" / "render_mvs_25" / "model"
    for view in range(25):
        pose = np.load(folder / f"{view:03d}.npy")
        x, y, z = pose[:, :3] @ points.T + pose[:, 3:]  # right, up, back; focal 560 at 512 pixels
        np.testing.assert_allclose(pixels[view, :, 0], 128 + 280 * x / -z, atol=1e-2)
        np.testing.assert_allclose(pixels[view, :, 1], 128 - 280 * y / -z, atol=1e-2)
        np.testing.assert_allclose(depth[view], -z, atol=1e-4)


def test_real_nerf_synthetic_scene_agrees_with_its_outlines(data_dir, tmp_path):
    source, report = run(nerf_json, data_dir / "nerf_synthetic_lego", tmp_path / "out")
    scene = source[0]
    assert (scene.num_views, scene.height, scene.width) == (20, 200, 200)
    scale = report["notes"]["nerf_synthetic_lego"]["scale"]
    np.testing.assert_allclose(scale, 1.5 / 4.031, rtol=1e-3)
    assert_outlines_agree(scene, extent=1.3 * scale, least=0.97)
    assert (scene.c2w[:, 2, 3] > 0).all()  # every camera stands above the ground


def test_real_phone_capture_is_read_without_its_distortion(data_dir, tmp_path):
    scene = folders.read_scene_folder(data_dir / "fox")
    assert (scene.num_views, scene.height, scene.width) == (16, 512, 288)
    np.testing.assert_allclose(scene.K[0, 0, 0], 366.805, atol=1e-2)
    original = images.decode_image((data_dir / "fox" / "images" / "0001.jpg").read_bytes(), "fox")
    straight = images.decode_image(scene.images[0], "fox")
    assert (straight != original).any()
    source, _ = run(nerf_json, data_dir / "fox", tmp_path / "out", "--recenter")
    assert (source[0].height, source[0].width) == (455, 256)


def test_linked_folders_are_scenes_too_and_circles_end(rendered, tmp_path):
    write_transforms(tmp_path / "kept" / "one", rendered, fl_x=70.0)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "kept" / "one")
    (tmp_path / "set" / "round").symlink_to(tmp_path / "set")
    found = folders.find_scene_folders(tmp_path / "set", "transforms")
    assert [name for name, _ in found] == ["link"]
