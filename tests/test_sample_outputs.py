"""What is written of views that were drawn."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from escherjax.cameras import Cameras, from_spherical, intrinsics_from_fov, paths
from escherjax.data.formats.folders import read_scene_folder
from escherjax.reports import sheets
from escherjax.sample import outputs
from escherjax.sample.targets import Targets

SIZE = 16
K = intrinsics_from_fov(0.86, SIZE, SIZE)


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture
def dolly():
    c2w = paths.dolly(4, 1.8, 0.3)
    return Targets(c2w, paths.dolly_zoom(c2w), is_path=True, closed=False, settings={})


def test_views_are_zoomed_and_an_open_path_is_shown_there_and_back(dolly, tmp_path):
    views = noise(4)
    outputs.write_views(tmp_path, noise(1, 1), views, dolly, K)
    lenses = np.broadcast_to(K, (4, 3, 3))
    zoomed, lenses = sheets.zoom_center(views, lenses, dolly.zoom)
    written = [np.asarray(Image.open(tmp_path / f"{i:03d}.png")) for i in range(4)]
    np.testing.assert_array_equal(written, zoomed)
    assert (written[0] != views[0]).any() and (written[3] == views[3]).all()
    np.testing.assert_allclose(read_scene_folder(tmp_path).K, lenses, rtol=1e-6)
    with Image.open(tmp_path / "orbit.gif") as animation:
        assert animation.n_frames == 6
    closed = tmp_path / "closed"
    outputs.write_views(closed, views, views, dataclasses.replace(dolly, closed=True), K)
    with Image.open(closed / "orbit.gif") as animation:
        assert animation.n_frames == 4


def test_other_targets_make_no_film(dolly, tmp_path):
    targets = dataclasses.replace(dolly, is_path=False)
    outputs.write_views(tmp_path, noise(1), noise(4), targets, K)
    assert not list(tmp_path.glob("orbit.*"))


def test_a_reference_stands_for_the_view_of_its_camera(tmp_path):
    c2w = from_spherical(np.full(5, 1.0), np.arange(5.0), np.full(5, 1.8))
    references, views = noise(2, 1), noise(5)
    lenses = np.stack([K, K * np.array([[1.1], [1.1], [1]], np.float32)])
    known = Cameras(c2w[[3, 1]], lenses)
    outputs.write_nerf_folder(tmp_path / "nerf", references, known, views, c2w, alpha=False)
    scene = read_scene_folder(tmp_path / "nerf")
    np.testing.assert_allclose(scene.c2w, c2w[[3, 1, 0, 2, 4]], atol=1e-6)
    np.testing.assert_allclose(scene.K, np.stack([*lenses, K, K, K]), rtol=1e-6)
    written = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("nerf/images/*"))]
    np.testing.assert_array_equal(written, [*references, *views[[0, 2, 4]]])
