"""Protocols on EscherNet's renders of Google Scanned Objects."""

import numpy as np
import pytest
from PIL import Image

from escherjax import cameras
from escherjax.errors import UserError
from escherjax.evaluate.protocol import make_protocol
from tests.helpers.scene_folders import blender_pose

SIDE = 32


def poses(count, seed):
    draws = np.random.default_rng(seed).uniform([0.3, -3, 1.5], [2.5, 3, 2.2], (count, 3))
    return cameras.from_spherical(*draws.T).astype(np.float64)


def write_views(folder, c2w, axes):
    """Pictures whose grey value tells the view; poses in the set's own axes."""
    folder.mkdir(parents=True)
    for view, pose in enumerate(c2w):
        named = blender_pose(pose) if axes == "opengl" else pose
        np.save(folder / f"{view:03d}.npy", np.linalg.inv(named)[:3])
        if axes == "opengl":
            picture = np.full((SIDE, SIDE, 4), 255, np.uint8)
            picture[..., :3] = 10 * view
            Image.fromarray(picture).save(folder / f"{view:03d}.png")
    return folder


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    root = tmp_path_factory.mktemp("GSO30")
    for seed, name in enumerate(("shoe", "alarm")):
        write_views(root / name / "render_mvs_25" / "model", poses(25, seed), "opengl")
    write_views(root / "shoe" / "render_sync_36_single" / "model", poses(36, 7), "opencv")
    write_views(root / "shoe" / "render_spiral_100" / "model", poses(100, 8), "opencv")
    return root


@pytest.mark.parametrize("mode", ["faithful", "corrected"])
def test_gso25_gives_the_first_views_makes_all_and_scores_the_last_fifteen(objects, mode):
    protocol = make_protocol("gso25", objects, mode)
    assert protocol.scene_ids() == ["alarm", "shoe"]
    assert protocol.reference_counts == (1, 2, 3, 5, 10)
    case = protocol.read("shoe", 3, 16, "6dof")
    assert case.reference_images[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert case.truth.shape == (25, 16, 16, 3)
    assert case.truth[:, 0, 0, 0].tolist() == list(range(0, 250, 10))
    assert case.scored.tolist() == list(range(10, 25))
    np.testing.assert_allclose(case.target_c2w, poses(25, 0), atol=1e-6)
    np.testing.assert_array_equal(case.reference_c2w, case.target_c2w[:3])
    np.testing.assert_allclose(case.target_K[:, 0, 0], [16 * 35 / 32] * 25, rtol=1e-6)  # float32
    assert protocol.describe()["published_num_scenes"] == 30


def test_a_scored_view_is_never_given(objects):
    with pytest.raises(UserError, match="at most 10, .* got 11"):
        make_protocol("gso25", objects, reference_counts=[1, 11])
    assert make_protocol("gso3d", objects).read("shoe", 25, 16, "6dof").num_references == 25


@pytest.mark.parametrize(("name", "count", "seed"), [("gso3d", 36, 7), ("gso100", 100, 8)])
def test_cameras_of_fixed_paths_have_opencv_axes_and_no_truth(objects, name, count, seed):
    case = make_protocol(name, objects).read("shoe", 2, 16, "4dof")
    np.testing.assert_allclose(case.target_c2w, poses(count, seed), atol=1e-6)
    np.testing.assert_allclose(case.reference_c2w, poses(25, 0)[:2], atol=1e-6)
    assert case.truth is None and case.scored.size == 0 and case.target_c2w.shape[0] == count


def test_gso3d_cameras_are_the_originals(golden_dir, objects, tmp_path):
    golden = np.load(golden_dir / "conversions-6dof.npz")
    folder = tmp_path / "one"
    write_views(folder / "render_mvs_25" / "model", poses(25, 0), "opengl")
    target = write_views(folder / "render_sync_36_single" / "model", poses(36, 1), "opencv")
    for view, w2c in enumerate(golden["gso3d/file_opencv_w2c"]):
        np.save(target / f"{view:03d}.npy", w2c[:3])
    case = make_protocol("gso3d", tmp_path).read("one", 1, 16, "6dof")
    w2c = np.linalg.inv(cameras.opengl_from_opencv(case.target_c2w.astype(np.float64)))
    expected = golden["gso3d/pose_6dof"]
    np.testing.assert_allclose(w2c[: len(expected)], expected, atol=1e-6)  # float32 cases


def test_real_renders_show_what_their_cameras_see(data_dir, golden_dir):
    protocol = make_protocol("gso25", data_dir / "gso_elephant", "corrected")
    assert protocol.scene_ids() == ["gso_elephant"]
    case = protocol.read("gso_elephant", 10, 64, "6dof")
    np.testing.assert_array_equal(case.truth[:10], case.reference_images)
    radii = np.linalg.norm(case.target_c2w[:, :3, 3], axis=-1)
    assert radii.min() >= 1.5 and radii.max() <= 2.2
    # The object stands at the origin, which every camera has in the middle, and it fills less the
    # farther the camera is.
    covered = (case.truth < 250).any(-1).mean((1, 2))
    assert np.corrcoef(covered, radii)[0, 1] < -0.5
    assert (case.truth[:, 26:38, 26:38] < 250).any(-1).mean() > 0.9


def test_missing_views_and_sets_are_named(objects, tmp_path):
    folder = write_views(tmp_path / "cup" / "render_mvs_25" / "model", poses(25, 0), "opengl")
    for view in (3, 24):
        for suffix in ("npy", "png"):
            (folder / f"{view:03d}.{suffix}").unlink()
    with pytest.raises(UserError, match="'cup'.* misses view 003, 024; it must have 000 to 024"):
        make_protocol("gso25", tmp_path).read("cup", 1, 16, "6dof")
    with pytest.raises(UserError, match="'alarm' has no .*render_sync_36_single"):
        make_protocol("gso3d", objects).read("alarm", 1, 16, "6dof")
    with pytest.raises(UserError, match="no object in .* has renders in OBJECT/render_mvs_25"):
        make_protocol("gso25", objects / "shoe" / "render_spiral_100")
