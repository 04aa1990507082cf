"""Protocols without ground truth: their references' cameras, and the spiral."""

import numpy as np
import pytest
from PIL import Image

from escherjax import cameras
from escherjax.errors import UserError
from escherjax.evaluate.protocol import make_protocol
from escherjax.evaluate.protocols.spiral import camera_angles

SIDE = 16


def write_pictures(folder, count, angles=None):
    """Pictures of one grey, 20 times their number, under half alpha."""
    (folder / "images_rgba").mkdir(parents=True)
    for view in range(count):
        picture = np.full((SIDE, SIDE, 4), 128, np.uint8)
        picture[..., :3] = 20 * view
        Image.fromarray(picture).save(folder / "images_rgba" / f"frame{view:06d}.png")
    if angles is not None:
        np.save(folder / "angles.npy", angles)
    return folder


def published_poses(c2w):
    """World-to-camera with OpenGL axes, as the original evaluation makes them."""
    return np.linalg.inv(cameras.opengl_from_opencv(c2w.astype(np.float64)))


def assert_same_angles(c2w, expected, atol):
    """4DoF poses (polar, azimuth, 0, 0), azimuths on any turn; angle 0 of the radius means 1.5."""
    polar, azimuth, radius = cameras.to_spherical(c2w)
    for function in (np.cos, np.sin):
        made = function(np.stack([polar, azimuth], axis=-1))
        np.testing.assert_allclose(made, function(expected[:, :2]), atol=atol)
    assert (expected[:, 2:] == 0).all()
    np.testing.assert_allclose(radius, 1.5, rtol=1e-6)


@pytest.fixture(scope="module")
def angles():
    draws = np.random.default_rng(0).uniform([-3, 0.2], [3, 1.2], (10, 2))
    return draws  # azimuth, elevation in radians


def test_franka_draws_its_views_by_the_published_seed(angles, tmp_path):
    write_pictures(tmp_path / "cup", 10, angles)
    write_pictures(tmp_path / "bowl", 10, angles)
    protocol = make_protocol("franka", tmp_path, "faithful")
    assert protocol.reference_counts == (5,) and protocol.scene_ids() == ["bowl", "cup"]
    for scene_id in protocol.scene_ids():  # from the seed for each: none depends on another
        case = protocol.read(scene_id, 5, SIDE, "6dof")
        # numpy's legacy shuffle of 0..9 after seed 42.
        assert (case.reference_images[:, 0, 0, 0] / 20).tolist() == [8, 1, 5, 0, 7]
        polar, azimuth, radius = cameras.to_spherical(case.reference_c2w)
        drawn = angles[[8, 1, 5, 0, 7]]
        np.testing.assert_allclose(polar, np.pi / 2 - drawn[:, 1], atol=1e-6)
        np.testing.assert_allclose(np.cos(azimuth), -np.cos(drawn[:, 0]), atol=1e-6)
        np.testing.assert_allclose(np.sin(azimuth), -np.sin(drawn[:, 0]), atol=1e-6)
        np.testing.assert_allclose(radius, 1.5, rtol=1e-6)


def test_franka_cameras_are_the_originals(golden_dir):
    golden = np.load(golden_dir / "conversions-6dof.npz")
    polar, azimuth = camera_angles(golden["franka/angles_rad_az_el"])
    c2w = cameras.from_spherical(polar, azimuth, np.full(len(polar), 1.5))
    # The case is float32; 1.5 times its rounding.
    np.testing.assert_allclose(published_poses(c2w), golden["franka/pose_in_6dof"], atol=1e-6)


@pytest.mark.parametrize(("name", "count"), [("mvdream", 4), ("text2img", 1)])
def test_generated_pictures_look_horizontally_from_the_originals_sides(
    golden_dir, tmp_path, name, count
):
    write_pictures(tmp_path / "duck", count)
    protocol = make_protocol(name, tmp_path)
    case = protocol.read("duck", count, SIDE, "6dof")
    golden = np.load(golden_dir / "conversions-6dof.npz")
    expected = golden["mvdream/pose_in_6dof"][:count]
    np.testing.assert_allclose(published_poses(case.reference_c2w), expected, atol=1e-6)
    assert_same_angles(case.reference_c2w, golden["mvdream/pose_in_4dof"][:count], 1e-6)
    assert (case.reference_images[:, 0, 0, 0] / 20).tolist() == list(range(count))
    with pytest.raises(UserError, match=f"at most {count}, .* got {count + 1}"):
        protocol.read("duck", count + 1, SIDE, "6dof")


def test_targets_are_the_originals_spiral(golden_dir, tmp_path):
    write_pictures(tmp_path / "duck", 1)
    case = make_protocol("text2img", tmp_path).read("duck", 1, SIDE, "6dof")
    golden = np.load(golden_dir / "conversions-6dof.npz")
    assert case.target_c2w.shape == (100, 4, 4) and case.truth is None and not case.scored.size
    # The first view stands 0.045 degrees off the pole: there float32 turns a camera by 1e-4.
    np.testing.assert_allclose(
        published_poses(case.target_c2w), golden["spiral/pose_out_6dof"], atol=2e-4
    )
    assert_same_angles(case.target_c2w, golden["spiral/pose_out_4dof"], 2e-4)


def test_modes_differ_in_the_background(tmp_path):
    (tmp_path / "duck").mkdir()
    Image.fromarray(np.full((SIDE, SIDE, 4), (0, 0, 0, 128), np.uint8)).save(
        tmp_path / "duck" / "any name.png"
    )
    pictures = [
        make_protocol("text2img", tmp_path, mode).read("duck", 1, SIDE, "6dof").reference_images
        for mode in ("faithful", "corrected")
    ]
    assert (pictures[0] == 0).all() and (pictures[1] == 127).all()


def test_wrong_counts_and_angles_are_named(angles, tmp_path):
    write_pictures(tmp_path / "a", 3)
    with pytest.raises(UserError, match="'a': .* must have 4 pictures, got 3"):
        make_protocol("mvdream", tmp_path).read("a", 4, SIDE, "6dof")
    with pytest.raises(UserError, match="'a': .* must have 1 pictures, got 3"):
        make_protocol("text2img", tmp_path).read("a", 1, SIDE, "6dof")
    franka = make_protocol("franka", tmp_path)
    with pytest.raises(UserError, match=r"angles\.npy cannot be read"):
        franka.read("a", 3, SIDE, "6dof")
    for values, words in (
        (angles, r"for 3 pictures, .* got float64 \(10, 2\)"),
        (np.full((3, 2), np.nan), "angles that are not finite"),
        (np.full((3, 2), 45.0), "elevations beyond"),
    ):
        np.save(tmp_path / "a" / "angles.npy", values)
        with pytest.raises(UserError, match=words):
            franka.read("a", 3, SIDE, "6dof")
    np.save(tmp_path / "a" / "angles.npy", angles[:3])
    with pytest.raises(UserError, match="must have 5 pictures or more, got 3"):
        franka.read("a", 5, SIDE, "6dof")
