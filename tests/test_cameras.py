import jax.numpy as jnp
import numpy as np
import pytest

from escherjax import cameras
from escherjax.errors import UserError


def random_rotation(rng):
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return rotation * np.linalg.det(rotation)


def random_poses(rng, count):
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, :3, :3] = [random_rotation(rng) for _ in range(count)]
    c2w[:, :3, 3] = rng.normal(size=(count, 3))
    return c2w


def test_opengl_and_opencv_name_the_same_camera(rng):
    c2w = random_poses(rng, 3)
    gl = cameras.opengl_from_opencv(c2w)
    np.testing.assert_array_equal(cameras.opencv_from_opengl(gl), c2w)
    np.testing.assert_array_equal(gl[:, :3, 3], c2w[:, :3, 3])  # it does not move
    point = rng.normal(size=3)
    ahead = np.linalg.inv(c2w[0]) @ [*point, 1]
    ahead_gl = np.linalg.inv(gl[0]) @ [*point, 1]
    np.testing.assert_allclose(ahead_gl, ahead * [1, -1, -1, 1], atol=1e-12)


def test_rigid_inverse_equals_the_general_one(rng):
    c2w = random_poses(rng, 4)
    np.testing.assert_allclose(cameras.w2c_from_c2w(c2w), np.linalg.inv(c2w), atol=1e-12)
    np.testing.assert_allclose(cameras.c2w_from_w2c(np.linalg.inv(c2w)), c2w, atol=1e-12)
    np.testing.assert_allclose(cameras.c2w_from_w2c(np.linalg.inv(c2w)[:, :3]), c2w, atol=1e-12)


def test_numpy_in_numpy_out_and_jax_in_jax_out(rng):
    c2w = random_poses(rng, 2).astype(np.float32)
    for function in (cameras.opengl_from_opencv, cameras.w2c_from_c2w):
        assert isinstance(function(c2w), np.ndarray)
        on_device = function(jnp.asarray(c2w))
        assert not isinstance(on_device, np.ndarray)
        np.testing.assert_allclose(on_device, function(c2w), atol=1e-6)


def test_look_at_puts_the_target_in_the_middle_and_up_upwards():
    position, target = np.array([[2.0, 1.0, 0.5]]), np.array([[0.0, 0.2, 0.1]])
    c2w = cameras.look_at(position, target)
    K = cameras.intrinsics_from_fov(np.pi / 3, 64, 48)[None]
    points = np.stack([target[0], target[0] + [0, 0, 0.1]])[None]
    pixels, depth = cameras.project(points, c2w, K)
    np.testing.assert_allclose(pixels[0, 0], [32, 24], atol=1e-6)
    np.testing.assert_allclose(pixels[0, 1, 0], 32, atol=1e-6)
    assert pixels[0, 1, 1] < 24 and (depth > 0).all()  # up in the world is up in the picture
    np.testing.assert_allclose(np.linalg.det(c2w[0, :3, :3]), 1)


def test_look_at_from_the_pole_is_a_rotation():
    c2w = cameras.look_at(np.array([0.0, 0.0, 2.0]))
    np.testing.assert_allclose(c2w[:3, :3] @ c2w[:3, :3].T, np.eye(3), atol=1e-12)
    with pytest.raises(UserError, match="its own target"):
        cameras.look_at(np.zeros(3))


def test_spherical_coordinates_there_and_back(rng):
    polar, azimuth, radius = rng.uniform(0.1, 3, 5), rng.uniform(-3, 3, 5), rng.uniform(1, 2, 5)
    c2w = cameras.from_spherical(polar, azimuth, radius)
    for found, expected in zip(cameras.to_spherical(c2w), (polar, azimuth, radius), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    # the x axis at azimuth 0 on the horizon, the y axis a quarter turn on
    for azimuth, position in ((0.0, [2, 0, 0]), (np.pi / 2, [0, 2, 0])):
        c2w = cameras.from_spherical(np.pi / 2, azimuth, 2.0)
        np.testing.assert_allclose(c2w[:3, 3], position, atol=1e-6)


def test_look_at_poses_equal_the_originals_spiral(golden_dir):
    """The original's evaluation path: world-to-camera, OpenGL axes."""
    arrays = np.load(golden_dir / "conversions-6dof.npz")
    ours = cameras.opengl_from_opencv(cameras.look_at(arrays["spiral/xyz"]))
    np.testing.assert_allclose(
        cameras.w2c_from_c2w(ours), arrays["spiral/pose_out_6dof"], atol=1e-9
    )


def test_resizing_and_cropping_keep_points_on_their_pixels(rng):
    K = np.array([[50.0, 0, 30], [0, 60, 20], [0, 0, 1]])
    c2w = cameras.look_at(np.array([2.0, 0, 0]))
    points = rng.uniform(-0.3, 0.3, (4, 3))
    pixels, _ = cameras.project(points, c2w, K)
    halved, _ = cameras.project(points, c2w, cameras.resize_intrinsics(K, 0.5, 0.25))
    np.testing.assert_allclose(halved, pixels * [0.5, 0.25])
    cut, _ = cameras.project(points, c2w, cameras.crop_intrinsics(K, 7, 3))
    np.testing.assert_allclose(cut, pixels - [7, 3])


def test_normalised_scene_looks_the_same(rng):
    """Scaling and moving the whole scene changes no pixel."""
    c2w = cameras.from_spherical(rng.uniform(1, 2, 6), rng.uniform(-3, 3, 6), rng.uniform(3, 5, 6))
    c2w = c2w.astype(np.float64)
    offset = np.array([1.0, -2.0, 0.5])
    c2w[:, :3, 3] += offset
    moved, scale, center = cameras.normalize_scene(c2w, radius=1.5, recenter=True)
    np.testing.assert_allclose(center, offset, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(moved[:, :3, 3], axis=-1).max(), 1.5)
    points = offset + rng.normal(size=(6, 4, 3)) * 0.2
    K = cameras.intrinsics_from_fov(0.8, 64, 64)[None]
    before, _ = cameras.project(points, c2w, K)
    after, _ = cameras.project(scale * (points - center), moved, K)
    np.testing.assert_allclose(after, before, atol=1e-6)
    with pytest.raises(UserError, match="no scale"):
        cameras.normalize_scene(np.eye(4)[None])


def test_poses_that_are_no_cameras_are_refused(rng):
    good = random_poses(rng, 2)
    cameras.check_poses(good, "good")

    def changed(change):
        bad = good.copy()
        change(bad[1])
        return bad

    def scale(pose):
        pose[:3, :3] *= 2

    def mirror(pose):
        pose[:3, 0] *= -1

    def break_row(pose):
        pose[3, 0] = 1

    def put_nan(pose):
        pose[0, 3] = np.nan

    def flatten(pose):
        pose[:3, :3] = 0

    for change, reason in [
        (scale, "not rigid"),
        (mirror, "mirrored"),
        (break_row, "last row"),
        (put_nan, "NaN"),
        (flatten, "not rigid"),
    ]:
        with pytest.raises(UserError, match=f"fox: pose of view 1.*{reason}"):
            cameras.check_poses(changed(change), "fox")
    with pytest.raises(UserError, match="shape"):
        cameras.check_poses(good[:, :3], "fox")
