import jax
import jax.numpy as jnp
import numpy as np
import pytest

from escherjax import cameras as cameras_lib
from escherjax import cape
from escherjax.cameras import Cameras
from escherjax.errors import UserError

HEADS, HEAD_DIM, TOKENS = 8, 8, 3


def random_cameras(rng, batch=2, num_views=3):
    """Cameras with any rotation, not only those that look at the origin."""
    rotation = np.linalg.qr(rng.normal(size=(batch, num_views, 3, 3)))[0]
    rotation = rotation * np.linalg.det(rotation)[..., None, None]
    c2w = np.tile(np.eye(4), (batch, num_views, 1, 1))
    c2w[..., :3, :3] = rotation
    c2w[..., :3, 3] = rng.uniform(-2, 2, size=(batch, num_views, 3))
    return Cameras(jnp.asarray(c2w, jnp.float32))


def features(rng, num_views, batch=2):
    shape = (batch, num_views * TOKENS, HEADS, HEAD_DIM)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def logits(name, q, k, query_cameras, key_cameras):
    q = cape.rotate_queries(name, q, cape.poses(name, query_cameras))
    k = cape.rotate_keys(name, k, cape.poses(name, key_cameras))
    return jnp.einsum("bqhd,bkhd->bhqk", q, k)


def world_transform(rng):
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    world = np.eye(4)
    world[:3, :3] = rotation * np.linalg.det(rotation)
    world[:3, 3] = rng.uniform(-1, 1, size=3)
    return jnp.asarray(world, jnp.float32)


def rotation_z(angle):
    world = np.eye(4)
    world[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return jnp.asarray(world, jnp.float32)


def moved(world, cameras):
    return Cameras(jnp.einsum("ij,bvjk->bvik", world, cameras.c2w))


def test_6dof_is_invariant_to_any_world_transform(rng):
    targets, refs = random_cameras(rng), random_cameras(rng, num_views=2)
    q, k, world = features(rng, 3), features(rng, 2), world_transform(rng)
    before = logits("6dof", q, k, targets, refs)
    after = logits("6dof", q, k, moved(world, targets), moved(world, refs))
    # float32 with translations of a few units: products of about 10 keep five digits.
    np.testing.assert_allclose(after, before, atol=2e-4)
    only_targets = logits("6dof", q, k, moved(world, targets), refs)
    assert np.abs(only_targets - before).max() > 0.1


@pytest.mark.parametrize("name", ["4dof", "4dof_paper"])
def test_4dof_is_invariant_to_azimuth_and_log_radius(rng, name):
    polar, azimuth = rng.uniform(0.3, 2.8, (2, 5)), rng.uniform(-1, 1, (2, 5))
    radius = rng.uniform(1.6, 1.9, (2, 5))
    q, k = features(rng, 3), features(rng, 2)

    def run(azimuth_shift, scale, shift_keys=True):
        far = np.where(np.arange(5) < 3, 1.0, 1.0 if shift_keys else 0.0)
        c2w = cameras_lib.from_spherical(polar, azimuth + azimuth_shift * far, radius * scale**far)
        cameras = Cameras(jnp.asarray(c2w))
        return logits(name, q, k, cameras[:, :3], cameras[:, 3:])

    np.testing.assert_allclose(run(1.3, 1.1), run(0.0, 1.0), atol=2e-5)
    assert np.abs(run(1.3, 1.0, shift_keys=False) - run(0.0, 1.0)).max() > 0.1
    assert np.abs(run(0.0, 1.1, shift_keys=False) - run(0.0, 1.0)).max() > 0.1


@pytest.mark.parametrize("name", ["4dof", "4dof_paper"])
def test_4dof_ignores_roll_and_gaze(rng, name):
    cameras = random_cameras(rng)
    turned = cameras.c2w.at[..., :3, :3].set(jnp.eye(3))
    q, k = features(rng, 3), features(rng, 3)
    np.testing.assert_array_equal(
        logits(name, q, k, cameras, cameras), logits(name, q, k, Cameras(turned), Cameras(turned))
    )


@pytest.mark.parametrize("name", cape.VARIANTS)
def test_one_camera_is_plain_attention(rng, name):
    camera = random_cameras(rng, num_views=1)
    q, k = features(rng, 1), features(rng, 1)
    np.testing.assert_allclose(
        logits(name, q, k, camera, camera), logits("none", q, k, camera, camera), atol=1e-4
    )


def test_released_4dof_leaves_the_last_two_of_eight_heads_without_camera(rng):
    cameras = random_cameras(rng)
    q = features(rng, 3)
    turned = cape.rotate_queries("4dof", q, cape.poses("4dof", cameras))
    changed = np.abs(np.asarray(turned - q)).max(axis=(0, 1, 3)) > 1e-3
    np.testing.assert_array_equal(changed, [True] * 6 + [False] * 2)
    turned = cape.rotate_queries("4dof_paper", q, cape.poses("4dof_paper", cameras))
    changed = np.abs(np.asarray(turned - q)).max(axis=(0, 1, 2)) > 1e-3
    np.testing.assert_array_equal(changed, [True] * 6 + [False] * 2)  # within each head


@pytest.mark.parametrize("name", ["6dof", "4dof", "4dof_paper"])
def test_gradient_reaches_features_and_cameras(rng, name):
    targets, refs = random_cameras(rng), random_cameras(rng)
    q, k = features(rng, 3), features(rng, 3)

    def loss(q, k, target_c2w, ref_c2w):
        return jnp.sin(logits(name, q, k, Cameras(target_c2w), Cameras(ref_c2w))).sum()

    for gradient in jax.grad(loss, argnums=(0, 1, 2, 3))(q, k, targets.c2w, refs.c2w):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-4


def test_encoding_equals_the_original(golden):
    """Against arrays of the original network; 5e-6 is ten times its own float32 rounding."""
    name, _, arrays = golden
    for case in ("s0", "s1", "s2", "s3"):
        get = lambda key, case=case: jnp.asarray(arrays[f"cape/{case}/{key}"])  # noqa: E731
        q, k = get("q"), get("k")
        heads = 4 if q.shape[-1] == 16 else 8
        split = lambda x, heads=heads: x.reshape(*x.shape[:2], heads, -1)  # noqa: E731
        if name == "6dof":
            out = cape.encode_6dof(split(q), split(k), get("pose_out"), get("pose_in"))
        else:
            out = cape.encode_4dof(split(q), split(k), get("pose_out"), get("pose_in"))
        np.testing.assert_allclose(out[0].reshape(q.shape), get("q_enc"), atol=5e-6)
        np.testing.assert_allclose(out[1].reshape(k.shape), get("k_enc"), atol=5e-6)


def test_poses_of_our_cameras_equal_the_originals(golden_dir):
    """World-to-camera files of Zero-1-to-3, through our OpenCV cameras, give its matrices."""
    arrays = np.load(golden_dir / "conversions-6dof.npz")
    npy, pose = arrays["objaverse/w2c_3x4"], arrays["objaverse/pose_6dof"]
    c2w = cameras_lib.opencv_from_opengl(cameras_lib.c2w_from_w2c(npy)).astype(np.float32)
    ours = cape.poses("6dof", Cameras(c2w[None]))
    np.testing.assert_allclose(ours["key"][0], pose, atol=2e-6)
    np.testing.assert_allclose(ours["query"][0], arrays["objaverse/pose_6dof_inv_T"], atol=2e-6)
    arrays = np.load(golden_dir / "conversions-4dof.npz")
    npy = arrays["objaverse/w2c_3x4"]
    angles = cape.angles_4dof(cameras_lib.c2w_from_w2c(npy).astype(np.float32))
    np.testing.assert_allclose(angles, arrays["objaverse/pose_4dof"], atol=3e-6)


def test_widths_that_cannot_carry_the_encoding_are_refused(rng):
    cameras = random_cameras(rng, num_views=1)
    x = jnp.zeros((2, TOKENS, 2, 6))
    with pytest.raises(UserError, match="divisible by 4"):
        cape.rotate_queries("6dof", x, cape.poses("6dof", cameras))
    with pytest.raises(UserError, match="divisible by 8"):
        cape.rotate_queries("4dof", x, cape.poses("4dof", cameras))
    with pytest.raises(UserError, match="must be one of"):
        cape.poses("5dof", cameras)
