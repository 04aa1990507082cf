"""Camera paths: shapes, loops, equal steps, splines through cameras."""

import numpy as np
import pytest

from escherjax.cameras import from_spherical, look_at, paths, pose_faults, splines, to_spherical
from escherjax.errors import UserError

RADIUS, ELEVATION, AZIMUTH = 1.8, 0.4, 2.5


def path(name, num_views=25, **options):
    options = {"elevation_rad": ELEVATION, "start_azimuth_rad": AZIMUTH, **options}
    return paths.trajectory(name, num_views, RADIUS, **options)


def steps(c2w, closed=False):
    positions = c2w[:, :3, 3].astype(np.float64)
    if closed:
        positions = np.concatenate([positions, positions[:1]])
    return np.linalg.norm(np.diff(positions, axis=0), axis=1)


@pytest.mark.parametrize("elevation", [ELEVATION, np.pi / 2, -np.pi / 2])
@pytest.mark.parametrize("name", paths.PRESETS)
def test_every_preset_looks_at_the_origin_upright_also_from_the_poles(name, elevation):
    c2w = path(name, elevation_rad=elevation)
    assert c2w.shape == (25, 4, 4) and c2w.dtype == np.float32
    assert pose_faults(c2w) == []
    distance = np.linalg.norm(c2w[:, :3, 3], axis=1, keepdims=True)
    # float32 rounding of a position of length about 2
    np.testing.assert_allclose(c2w[:, :3, 3] + distance * c2w[:, :3, 2], 0, atol=1e-6)
    np.testing.assert_allclose(c2w[:, 2, 0], 0, atol=1e-6)  # image rows are level
    assert (c2w[:, 2, 1] <= 1e-6).all()  # image columns lead down
    if name != "dolly":
        np.testing.assert_allclose(distance, RADIUS, rtol=1e-6)


@pytest.mark.parametrize("name", ["orbit", "spiral", "lemniscate"])
def test_steps_are_equal_and_closed_paths_end_one_step_before_they_began(name):
    c2w = path(name, 60)
    lengths = steps(c2w, closed=paths.is_closed(name))
    # Chords of arcs of equal length differ by the curvature, most at the lemniscate's tips.
    np.testing.assert_allclose(lengths, lengths.mean(), rtol=4e-3)
    if name == "spiral":
        assert np.linalg.norm(c2w[0, :3, 3] - c2w[-1, :3, 3]) > 1


@pytest.mark.parametrize("name", ["orbit", "dolly", "lemniscate"])
def test_paths_begin_at_the_given_azimuth_and_elevation(name):
    polar, azimuth, _ = to_spherical(path(name)[0])
    np.testing.assert_allclose([np.pi / 2 - polar, azimuth], [ELEVATION, AZIMUTH], atol=1e-6)


def test_an_orbit_turns_as_often_as_told_and_ends_on_a_part_of_a_turn():
    def azimuths(turns):
        return np.unwrap(to_spherical(path("orbit", 9, turns=turns))[1]) - AZIMUTH

    np.testing.assert_allclose(azimuths(1), 2 * np.pi * np.arange(9) / 9, atol=1e-5)
    np.testing.assert_allclose(azimuths(-0.5), -np.pi * np.arange(9) / 8, atol=1e-5)
    assert paths.is_closed("orbit") and not paths.is_closed("orbit", -0.5)


def test_an_orbit_above_the_pole_turns_the_picture():
    c2w = path("orbit", 8, elevation_rad=np.pi / 2)
    cosines = (c2w[:, :3, 0] * np.roll(c2w[:, :3, 0], 1, axis=0)).sum(1)
    np.testing.assert_allclose(cosines, np.cos(2 * np.pi / 8), atol=1e-5)


def test_a_spiral_climbs_thirty_degrees_to_either_side_in_its_turns():
    polar, azimuth, _ = to_spherical(path("spiral", 40, turns=3))
    elevation = np.degrees(np.pi / 2 - polar)
    ends = np.degrees(ELEVATION) + np.array([-30, 30])
    np.testing.assert_allclose(elevation[[0, -1]], ends, atol=1e-3)
    assert (np.diff(elevation) > 0).all()
    turned = np.unwrap(azimuth)
    np.testing.assert_allclose(turned[-1] - turned[0], 3 * 2 * np.pi, atol=1e-4)
    # Azimuth and elevation rise together.
    share = (elevation - ends[0]) / 60
    np.testing.assert_allclose(turned - turned[0], share * 6 * np.pi, atol=1e-4)


def test_archimedean_is_the_published_formula(golden_dir):
    recorded = np.load(golden_dir / "conversions-6dof.npz")["spiral/xyz"]
    made = paths.trajectory("archimedean", 100, 1.5)[:, :3, 3]
    np.testing.assert_allclose(made, recorded, atol=1e-5)


def test_archimedean_turns_from_pole_to_pole():
    i = 0.01 + 40 * np.arange(50) / 50
    polar, azimuth, _ = to_spherical(paths.trajectory("archimedean", 50, 2.0))
    np.testing.assert_allclose(polar, np.pi * i / 40, atol=1e-5)
    np.testing.assert_allclose(np.cos(azimuth + i), 1, atol=1e-6)
    twice = paths.trajectory("archimedean", 50, 2.0, turns=80 / (2 * np.pi))
    np.testing.assert_allclose(np.cos(to_spherical(twice)[1] + 2 * i), 1, atol=1e-6)


def test_dolly_zoom_keeps_the_size_of_what_stands_at_the_origin():
    c2w = path("dolly", 7)
    distance = np.linalg.norm(c2w[:, :3, 3], axis=1)
    np.testing.assert_allclose(distance[[0, -1]], [RADIUS * 1.2, RADIUS / 1.2], rtol=1e-6)
    np.testing.assert_allclose(distance[1:] / distance[:-1], 1.2 ** (-2 / 6), rtol=1e-5)
    zoom = paths.dolly_zoom(c2w)
    assert zoom.min() == zoom[-1] == 1
    np.testing.assert_allclose(zoom / distance, 1 / distance[-1], rtol=1e-6)


def test_defaults_are_those_of_the_references():
    c2w = from_spherical(np.array([1.0, 1.2, 1.1]), np.array([0.7, 2, 3]), np.array([2.0, 1.5, 1]))
    expected = (1.5, np.pi / 2 - 1.1, 0.7)
    np.testing.assert_allclose(paths.about_references(c2w), expected, atol=1e-6)


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(UserError) as caught:
        paths.trajectory("helix", 0, np.nan, 2.0, np.inf, 0.0)
    for part in ("'helix'", "spiral", "0 views", "radius nan", "114.592 degrees", "inf", "0 turns"):
        assert part in str(caught.value), part
    with pytest.raises(UserError, match="dolly makes no turns"):
        path("dolly", turns=2.0)


def keyframes(count=5, seed=0):
    """Cameras around the origin at unequal distances, which look past it and are tilted."""
    rng = np.random.default_rng(seed)
    around = 2 * np.pi * (np.arange(count) + rng.uniform(-0.45, 0.45, count)) / count
    c2w = from_spherical(rng.uniform(0.9, 1.7, count), around, rng.uniform(1.5, 2.2, count))
    aims = rng.uniform(-0.3, 0.3, (count, 3)).astype(np.float32)
    ups = np.array([0, 0, 1]) + rng.uniform(-0.2, 0.2, (count, 3))
    return look_at(c2w[:, :3, 3], aims, ups.astype(np.float32))


@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_a_spline_passes_its_cameras(closed, straight):
    given = keyframes()
    at = np.arange(6 if closed else 5)
    passed = splines.interpolate(given, at, closed, straight)
    expected = np.concatenate([given, given[:1]])[: len(at)]
    np.testing.assert_allclose(passed, expected, atol=1e-6)  # they are float32
    assert pose_faults(splines.spline(given, 30, closed, straight)) == []


@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_a_spline_is_smooth_at_its_cameras(closed, straight):
    """Directions of motion and turning just before and behind a camera are the same."""
    given, small = keyframes(), 1e-4
    at = np.arange(0 if closed else 1, 5 if closed else 4)
    before = at - small + 5 * (at == 0)
    behind, there, ahead = (
        splines.interpolate(given, x, closed, straight) for x in (before, at, at + small)
    )
    first, second = (
        step / np.linalg.norm(step, axis=(1, 2), keepdims=True)
        for step in (there - behind, ahead - there)
    )
    np.testing.assert_allclose(first, second, atol=1e-3)  # curvature over a step of 1e-4


@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_a_spline_has_one_speed_and_its_ends_are_cameras(closed, straight):
    given = keyframes()
    c2w = splines.spline(given, 200, closed, straight).astype(np.float64)
    reach = float(np.linalg.norm(given[:, :3, 3], axis=1).mean())
    ring = np.concatenate([c2w, c2w[:1]]) if closed else c2w
    lengths = splines.camera_distances(ring, reach)
    # The speed is measured on 64 points a segment and on chords.
    np.testing.assert_allclose(lengths, lengths.mean(), rtol=0.02)
    np.testing.assert_allclose(c2w[0], given[0], atol=1e-6)
    if not closed:
        np.testing.assert_allclose(c2w[-1], given[-1], atol=1e-6)


def test_positions_are_a_centripetal_catmull_rom_spline():
    """Against the cubic that has the same ends and, by its knots, the same tangents there."""
    positions = np.array([[1, 0, 0], [1.5, 0.2, 0], [1.5, 1.5, 0.1], [0, 2, 0.4]], float)
    given = np.tile(np.eye(4), (4, 1, 1))  # none turns, so that distances are those of positions
    given[:, :3, 3] = positions
    t = np.cumsum([0, *np.sqrt(np.linalg.norm(np.diff(positions, axis=0), axis=1))])

    def tangent(i):
        def slope(a, b):
            return (positions[b] - positions[a]) / (t[b] - t[a])

        return slope(i - 1, i) - slope(i - 1, i + 1) + slope(i, i + 1)

    share = np.linspace(0, 1, 9)[:, None]
    length = t[2] - t[1]
    expected = (
        (2 * share**3 - 3 * share**2 + 1) * positions[1]
        + (share**3 - 2 * share**2 + share) * length * tangent(1)
        + (3 * share**2 - 2 * share**3) * positions[2]
        + (share**3 - share**2) * length * tangent(2)
    )
    made = splines.interpolate(given, 1 + share[:, 0], straight=True)
    np.testing.assert_allclose(made[:, :3, 3], expected, atol=1e-12)


@pytest.mark.parametrize("straight", [False, True])
def test_a_closed_spline_has_no_first_camera(straight):
    given, at = keyframes(), np.linspace(0, 3, 13)
    rolled = splines.interpolate(np.roll(given, -2, axis=0), at, True, straight)
    later = splines.interpolate(given, at + 2, True, straight)
    np.testing.assert_allclose(later, rolled, atol=1e-9)


@pytest.mark.parametrize("straight", [False, True])
def test_a_spline_turns_the_short_way(straight):
    """Also where a quaternion and the next are on opposite sides of their sphere."""
    given = np.tile(np.eye(4), (3, 1, 1))
    for pose, degrees in zip(given, (170, 190, 210), strict=True):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        pose[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    given[:, 0, 3] = [1, 1.01, 1.02]
    c2w = splines.interpolate(given, np.linspace(0, 2, 50), straight=straight)
    turned = splines.camera_distances(c2w, reach=1.0).sum()
    np.testing.assert_allclose(turned, np.radians(40), rtol=2e-3)  # and 0.02 of moves


def test_a_spline_around_the_origin_keeps_distance_gaze_and_level():
    azimuth = np.array([0.0, 2.0, 3.5, 5.0])
    given = from_spherical(np.array([1.0, 1.3, 0.9, 1.1]), azimuth, np.full(4, 1.7))
    c2w = splines.spline(given, 50, closed=True)
    np.testing.assert_allclose(np.linalg.norm(c2w[:, :3, 3], axis=1), 1.7, rtol=1e-5)
    np.testing.assert_allclose(c2w, look_at(c2w[:, :3, 3]), atol=1e-5)
    through = splines.spline(given, 50, closed=True, straight=True)
    assert np.linalg.norm(through[:, :3, 3], axis=1).min() < 1.4  # which cuts corners


def test_a_spline_through_two_cameras_is_the_way_between():
    given = keyframes(2)
    c2w = splines.spline(given, 5, straight=True)
    expected = np.linspace(given[0, :3, 3], given[1, :3, 3], 5)
    np.testing.assert_allclose(c2w[:, :3, 3], expected, atol=2e-3)  # chords of 64 pieces


def test_cameras_that_make_no_spline_are_named():
    given = keyframes(3)
    for wrong in (given[:1], given[0]):
        with pytest.raises(UserError, match="two cameras at least"):
            splines.spline(wrong, 5)
    with pytest.raises(UserError, match="camera 1 of the spline is camera 0 again"):
        splines.spline(given[[0, 0, 1]], 5)
    with pytest.raises(UserError, match="camera 0 of the spline is camera 2 again"):
        splines.spline(given[[0, 1, 0]], 5, closed=True)
    centred = given.copy()
    centred[1, :3, 3] = 0
    with pytest.raises(UserError, match="camera 1 of the spline stands at the origin"):
        splines.spline(centred, 5)
    assert splines.spline(centred, 5, straight=True).shape == (5, 4, 4)
    facing = from_spherical(np.array([1.0, np.pi - 1.0]), np.array([0.0, np.pi]), np.array([2, 1]))
    with pytest.raises(UserError, match="cameras 0 and 1 of the spline are opposite each other"):
        splines.spline(facing, 5)
    with pytest.raises(UserError, match="0 views"):
        splines.spline(given, 0)
    given[2, 0, 0] = np.nan
    with pytest.raises(UserError, match="pose of view 2 holds NaN"):
        splines.spline(given, 5)
