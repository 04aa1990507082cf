"""Procedural scenes: exact silhouettes, exact cameras, the same scene for the same number."""

import itertools

import numpy as np
import pytest

from escherjax import cameras
from escherjax.data import procedural, raytrace
from escherjax.errors import UserError

SIZE = 48
RED, GREEN, BLUE = np.eye(3)


def render(solids, c2w, K, resolution=SIZE, supersample=2):
    """[V, H, W, 4] of a scene given by hand, for cameras [V, ...]."""
    world = raytrace.make_world(solids)
    batched = raytrace.World(
        raytrace.Solids(*(field[None] for field in world.solids)),
        world.count[None],
        world.light[None],
    )
    return np.asarray(raytrace.render(batched, c2w[None], K[None], resolution, supersample))[0]


@pytest.fixture(scope="module")
def views():
    """Four spread cameras of SIZE pixels."""
    drawn = procedural.random_cameras(3, np.array([0]), 4, SIZE)
    return drawn.c2w[0], drawn.K[0]


@pytest.fixture(scope="module")
def scenes():
    return procedural.render_scenes(0, range(6), num_views=4, resolution=32)


def test_balls_are_seen_where_their_centers_project(views):
    centers = np.array([[0.35, 0.1, 0.0], [-0.1, 0.3, 0.25], [0.0, -0.15, -0.4]], np.float32)
    balls = [
        raytrace.make_solid(center, (0.06,) * 3, quadric=raytrace.BALL, colors=(color,) * 6)
        for center, color in zip(centers, (RED, GREEN, BLUE), strict=True)
    ]
    pictures = render(balls, *views).astype(float)
    pixels, _ = cameras.project(centers[None].repeat(4, 0), *views)
    v, u = np.mgrid[:SIZE, :SIZE] + 0.5
    for view, channel in itertools.product(range(4), range(3)):
        picture = pictures[view]
        weight = picture[..., 3] * (picture[..., channel] > 0)
        seen = [(weight * u).sum() / weight.sum(), (weight * v).sum() / weight.sum()]
        np.testing.assert_allclose(seen, pixels[view, channel], atol=0.35)


def test_silhouette_of_a_turned_box_is_bounded_by_its_projected_corners(views):
    half, center = np.array([0.4, 0.15, 0.25]), np.array([0.05, -0.1, 0.1])
    rotation = np.asarray(procedural._rotations(*(np.array(a) for a in (0.7, 0.5, 2.0))))
    picture = render([raytrace.make_solid(center, half, rotation)], *views)
    corners = center + (half * list(itertools.product((-1, 1), repeat=3))) @ rotation.T
    pixels, _ = cameras.project(corners[None].astype(np.float32).repeat(4, 0), *views)
    for view in range(4):
        rows, columns = np.nonzero(picture[view, ..., 3] > 127)
        low, high = pixels[view].min(0), pixels[view].max(0)
        np.testing.assert_allclose([columns.min(), rows.min()], low, atol=1.0)
        np.testing.assert_allclose([columns.max() + 1, rows.max() + 1], high, atol=1.0)


@pytest.mark.parametrize("quadric", ["BOX", "BALL", "CYLINDER", "CONE", "DOME"])
@pytest.mark.parametrize("cut", [raytrace.NO_CUT, (0.6, 0.0, 0.8, 0.2)])
def test_hits_agree_with_marching_along_each_ray(views, quadric, cut):
    quadric = getattr(raytrace, quadric)
    center, half = np.array([0.1, 0.0, -0.05]), np.array([0.5, 0.3, 0.4])
    rotation = np.asarray(procedural._rotations(*(np.array(a) for a in (0.4, 1.0, 1.0))))
    c2w, K = views
    solid = raytrace.make_solid(center, half, rotation, quadric, cut)
    alpha = render([solid], c2w, K, supersample=1)[..., 3]
    v, u = np.mgrid[:SIZE, :SIZE] + 0.5
    k, a, b, c = quadric
    for view in range(2):
        camera = np.stack([(u - K[0, 0, 2]) / K[0, 0, 0], (v - K[0, 1, 2]) / K[0, 1, 1], 1 + 0 * u])
        direction = np.einsum("ij,jhw->hwi", c2w[view, :3, :3], camera)
        distance = np.linspace(0.5, 3.5, 600)
        points = c2w[view, :3, 3] + distance[:, None, None, None] * direction
        x, y, z = np.moveaxis(((points - center) @ rotation) / half, -1, 0)
        inside = (abs(x) <= 1) & (abs(y) <= 1) & (abs(z) <= 1)
        inside &= k * (x * x + y * y) + a * z * z + b * z + c <= 0
        inside &= cut[0] * x + cut[1] * y + cut[2] * z <= cut[3]
        marched = inside.any(0)
        # Marching may miss grazing rays, and only those.
        assert (marched & (alpha[view] == 0)).sum() == 0
        assert ((alpha[view] == 255) & ~marched).sum() <= 0.02 * marched.sum()
        assert marched.mean() > 0.05


def test_nearer_solid_hides_the_farther_one():
    c2w = cameras.look_at(np.array([[0.0, -2.0, 0.0]], np.float32))
    K = cameras.intrinsics_from_fov(0.8, SIZE, SIZE)[None]
    near = raytrace.make_solid((0, -0.3, 0), (0.2,) * 3, colors=(RED,) * 6)
    far = raytrace.make_solid((0, 0.3, 0), (0.2,) * 3, colors=(GREEN,) * 6)
    for order in ([near, far], [far, near]):
        middle = render(order, c2w, K)[0, SIZE // 2, SIZE // 2]
        assert middle[0] > 100 and middle[1] == 0


def test_each_face_shows_its_own_color():
    colors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]], float)
    positions = np.array([[-2, 0, 0], [2, 0, 0], [0, -2, 0], [0, 2, 0], [0, 0, -2], [0, 0, 2.0]])
    c2w = cameras.look_at(positions.astype(np.float32))
    K = np.repeat(cameras.intrinsics_from_fov(0.8, SIZE, SIZE)[None], 6, 0)
    pictures = render([raytrace.make_solid(half_size=(0.3,) * 3, colors=colors)], c2w, K)
    middle = pictures[:, SIZE // 2, SIZE // 2, :3]
    np.testing.assert_array_equal(middle > 60, colors > 0.5)


def test_edge_pixels_carry_straight_color():
    c2w = cameras.look_at(np.array([[2.0, 0.0, 0.0]], np.float32))
    K = cameras.intrinsics_from_fov(0.83, SIZE, SIZE)[None]
    picture = render([raytrace.make_solid(half_size=(0.3,) * 3, colors=(RED,) * 6)], c2w, K)[0]
    alpha = picture[..., 3]
    partial = (alpha > 0) & (alpha < 255)
    assert partial.any()
    inner = picture[SIZE // 2, SIZE // 2, :3].astype(int)
    assert abs(picture[partial][:, :3].astype(int) - inner).max() <= 2
    assert (picture[alpha == 0] == 0).all()


def test_scene_depends_on_seed_and_number_alone(scenes):
    some = procedural.render_scenes(0, [4, 1], num_views=4, resolution=32)
    for name in ("images", "c2w", "K"):
        np.testing.assert_array_equal(some[name], scenes[name][[4, 1]])
    other = procedural.render_scenes(1, [4, 1], num_views=4, resolution=32)
    assert (other["images"] != some["images"]).any((1, 2, 3, 4)).all()
    assert (other["c2w"] != some["c2w"]).any((1, 2, 3)).all()


def test_objects_fill_the_unit_cube_with_three_to_seven_solids():
    worlds = procedural.random_worlds(0, np.arange(200))
    assert set(np.unique(worlds.count)) == {3, 4, 5, 6, 7}
    solids = worlds.solids
    kinds = [quadric for quadric, _ in procedural.KINDS]
    kind = np.argmax((solids.quadric[:, :, None] == np.array(kinds)).all(-1), -1)
    low, high = procedural._bounds(solids.center, solids.rotation, solids.half_size, kind)
    there = (np.arange(procedural.MAX_SOLIDS) < worlds.count[:, None])[..., None]
    low = np.where(there, low, np.inf).min(1)
    high = np.where(there, high, -np.inf).max(1)
    np.testing.assert_allclose((high - low).max(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(high + low, 0.0, atol=1e-5)


def test_cameras_look_at_the_origin_from_spread_sides():
    drawn = procedural.random_cameras(0, np.arange(50), 12, 64)
    cameras.check_poses(drawn.c2w, "procedural")
    position = drawn.c2w[..., :3, 3]
    radius = np.linalg.norm(position, axis=-1)
    assert radius.min() >= 1.5 and radius.max() <= 2.2 and radius.max() - radius.min() > 0.5
    pixels, depth = cameras.project(np.zeros((50, 12, 1, 3), np.float32), drawn.c2w, drawn.K)
    np.testing.assert_allclose(pixels, 32.0, atol=1e-3)
    np.testing.assert_allclose(depth[..., 0], radius, rtol=1e-5)
    assert (-drawn.c2w[..., 2, 1] > 0).all()  # the image's up points up
    cosine = np.einsum("svi,swi->svw", position, position) / (radius[:, :, None] * radius[:, None])
    assert (cosine - 2 * np.eye(12)).max() < 0.95  # no two views alike
    assert (cosine.min(-1) < -0.3).all()  # and each has one from behind


def test_every_view_shows_the_object_and_sides_differ(scenes):
    pictures = scenes["images"].astype(float)
    coverage = (pictures[..., 3] > 0).mean((2, 3))
    assert coverage.min() > 0.04 and coverage.max() < 0.9
    flat = pictures[..., :3] * pictures[..., 3:] / 255
    for a, b in itertools.combinations(range(4), 2):
        assert (np.abs(flat[:, a] - flat[:, b]).mean((1, 2, 3)) > 8).all()


def test_source_gives_the_rendered_scenes(scenes):
    source = procedural.ProceduralSource(0, 3, num_views=4, resolution=32, first_scene=2)
    assert len(source) == 3
    for index in range(3):
        scene = source[index]
        assert scene.scene_id == f"procedural-0-{index + 2:07d}"
        np.testing.assert_array_equal(scene.images, scenes["images"][index + 2])
        np.testing.assert_array_equal(scene.c2w, scenes["c2w"][index + 2])
    with pytest.raises(IndexError):
        source[3]


def test_empty_requests_are_refused():
    with pytest.raises(UserError, match="num_scenes must be at least 1, got 0"):
        procedural.ProceduralSource(0, 0, 4, 32)
    with pytest.raises(UserError, match="num_views must be at least 1, got 0"):
        procedural.render_scenes(0, [0], num_views=0, resolution=32)
