"""Folders for trainers of radiance fields, read back by three readers."""

import json

import numpy as np
import pytest
from PIL import Image

from escherjax.cameras import crop_intrinsics, project, resize_intrinsics
from escherjax.data import images
from escherjax.data.formats import colmap, folders
from escherjax.reports import sheets
from escherjax.sample import outputs
from tests.helpers.scene_folders import CENTERS, render_balls


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """(folder, c2w, K) of five views of three balls on white, one taken with a longer lens."""
    rendered, c2w, K = render_balls()
    flat = images.on_background(rendered, images.WHITE)
    zoom = np.array([1, 1, 1.25, 1, 1])
    flat, K = sheets.zoom_center(flat, K, zoom)
    path = tmp_path_factory.mktemp("nerf") / "nerf"
    outputs.write_nerf_layout(path, flat, c2w, K, alpha=True)
    return path, c2w, K


def test_transforms_are_read_back_and_known_points_lie_on_their_pixels(folder):
    path, c2w, K = folder
    scene = folders.read_scene_folder(path)
    np.testing.assert_allclose(scene.c2w, c2w, atol=1e-5)
    np.testing.assert_allclose(scene.K, K, rtol=1e-5)
    v, u = np.mgrid[: scene.height, : scene.width] + 0.5
    for view, encoded in enumerate(scene.images):
        picture = images.decode_image(encoded, "view").astype(float)
        places, depth = project(CENTERS, scene.c2w[view], scene.K[view])
        assert (depth > 0).all()
        for channel, place in enumerate(places):
            others = np.delete(picture[..., :3], channel, axis=2).max(axis=2)
            weight = np.maximum(picture[..., channel] - others, 0)  # of a ball's colour, on white
            seen = [(weight * u).sum() / weight.sum(), (weight * v).sum() / weight.sum()]
            # Discs of few pixels, in perspective, some of them partly hidden.
            np.testing.assert_allclose(seen, place, atol=0.5)
    content = json.loads((path / "transforms.json").read_text())
    assert (path / content["ply_file_path"]).is_file()
    assert len(list(path.glob("*.json"))) == 1  # instant-ngp trains on each of them


def test_the_colmap_model_has_the_same_cameras(folder):
    pytest.importorskip("pycolmap")
    path, c2w, K = folder
    views = colmap.read_views(path / "sparse" / "0", path / "images")
    np.testing.assert_allclose(np.stack([pose for _, pose, _ in views]), c2w, atol=1e-5)
    for (file, _, pinhole), expected in zip(views, K, strict=True):
        _, read = pinhole(images.decode_image(file.read_bytes(), "view"))
        np.testing.assert_allclose(read, expected, rtol=1e-5)


def test_pycolmap_itself_projects_points_as_we_do(folder):
    pycolmap = pytest.importorskip("pycolmap")
    path, c2w, K = folder
    model = pycolmap.Reconstruction(str(path / "sparse" / "0"))
    assert model.num_images() == 5 and model.num_cameras() == 2
    assert model.num_points3D() == outputs.NUM_POINTS
    points = CENTERS.astype(np.float64)
    for view in range(5):
        image = model.images[view + 1]
        assert image.name == f"{view:03d}.png"
        in_camera = points @ image.cam_from_world().matrix()[:, :3].T
        in_camera += image.cam_from_world().matrix()[:, 3]
        theirs = image.camera.img_from_cam(in_camera)
        ours, _ = project(points, c2w[view].astype(np.float64), K[view].astype(np.float64))
        np.testing.assert_allclose(theirs, ours, atol=1e-4)  # pixels; poses are float32


def test_the_ply_file_holds_the_models_points(folder):
    path, c2w, _ = folder
    lines = (path / "points3D.ply").read_text().splitlines()
    end = lines.index("end_header")
    assert lines[:3] == ["ply", "format ascii 1.0", f"element vertex {outputs.NUM_POINTS}"]
    names = [line.split()[2] for line in lines[3:end]]
    assert names == ["x", "y", "z", "nx", "ny", "nz", "red", "green", "blue"]
    points = np.loadtxt(lines[end + 1 :])[:, :3]
    text = np.loadtxt(path / "sparse" / "0" / "points3D.txt")
    np.testing.assert_array_equal(points, text[:, 1:4])
    nearest = np.linalg.norm(c2w[:, :3, 3], axis=1).min()
    assert 0.3 * nearest < np.abs(points).max() < nearest


def test_white_joined_to_the_border_becomes_transparent_and_no_other():
    picture = np.full((9, 9, 3), 250, np.uint8)  # not exactly white
    picture[2:7, 2:7] = (200, 30, 30)
    picture[4, 4] = 255  # a highlight
    expected = np.zeros((9, 9), np.uint8)
    expected[2:7, 2:7] = 255
    np.testing.assert_array_equal(outputs.foreground_alpha(picture), expected)
    everywhere = outputs.foreground_alpha(np.full((4, 4, 3), 240, np.uint8))
    assert (everywhere == 255).all()  # too dark for a white ground


def test_pictures_carry_alpha_only_where_asked(folder, tmp_path):
    path, c2w, K = folder
    with Image.open(path / "images" / "000.png") as picture:
        alpha = np.asarray(picture)[..., 3]
    assert 0 < (alpha == 255).mean() < 0.5
    outputs.write_nerf_layout(tmp_path / "new", np.zeros((1, 8, 8, 3), np.uint8), c2w[:1], K[:1])
    with Image.open(tmp_path / "new" / "images" / "000.png") as picture:
        assert picture.mode == "RGB"


def test_zoomed_pictures_are_their_middles_enlarged():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC))
    K = np.array([[70.0, 0, 30], [0, 75, 33], [0, 0, 1]], np.float32)
    given = np.stack([smooth, smooth])
    zoomed, lenses = sheets.zoom_center(given, np.stack([K, K]), np.array([1.0, 2.0]))
    np.testing.assert_array_equal(zoomed[0], smooth)
    np.testing.assert_array_equal(lenses[0], K)
    middle = smooth[16:48, 16:48]
    halved = np.asarray(Image.fromarray(zoomed[1]).resize((32, 32), Image.Resampling.BOX))
    # Enlarging and averaging again blurs a little.
    assert np.abs(halved.astype(int) - middle).mean() < 3
    np.testing.assert_allclose(lenses[1], resize_intrinsics(crop_intrinsics(K, 16, 16), 2, 2))
