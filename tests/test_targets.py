"""Target cameras by name and from files."""

import json

import numpy as np
import pytest

from escherjax.cameras import from_spherical, look_at, paths, splines, to_spherical
from escherjax.data.formats.transforms import write_transforms
from escherjax.errors import UserError
from escherjax.sample import targets
from escherjax.sample.targets import PathOptions

SCENE = from_spherical(np.linspace(0.8, 1.6, 6), np.linspace(0.5, 5.5, 6), np.linspace(2, 4, 6))
REFERENCES = np.array([4, 1])
DOUBLED = SCENE * np.where(np.arange(4) == 3, [[2], [2], [2], [1]], 1)  # twice as far away


def choose(name, scale=1.0, **options):
    return targets.choose(name, PathOptions(**options), SCENE, REFERENCES, scale)


def test_paths_default_to_the_references_and_take_options():
    radius, elevation, azimuth = paths.about_references(DOUBLED[REFERENCES])
    chosen = choose("orbit", scale=2.0, num_views=7)
    expected = paths.orbit(7, radius, elevation, azimuth)
    np.testing.assert_allclose(chosen.c2w, expected, atol=1e-6)
    assert chosen.is_path and chosen.closed and (chosen.zoom == 1).all()
    assert chosen.settings["turns"] == 1.0
    options = {"radius": 1.5, "elevation_deg": 10, "start_azimuth_deg": 90, "turns": 0.5}
    chosen = choose("spiral", scale=2.0, num_views=7, **options)
    expected = paths.spiral(7, 1.5, np.radians(10), np.pi / 2, 0.5)
    np.testing.assert_allclose(chosen.c2w, expected, atol=1e-6)
    assert chosen.settings == {"name": "spiral", **options}
    assert to_spherical(choose("archimedean").c2w)[1][0] == pytest.approx(-0.01)  # as published


def test_all_are_the_cameras_of_the_scene():
    chosen = choose("all", scale=2.0)
    np.testing.assert_allclose(chosen.c2w, DOUBLED, rtol=1e-6)
    assert not chosen.is_path


def test_a_spline_leads_through_references_all_or_a_file(tmp_path):
    chosen = choose("spline", num_views=9, scale=2.0)
    np.testing.assert_allclose(chosen.c2w[[0, -1]], DOUBLED[REFERENCES], atol=1e-5)
    chosen = choose("spline", num_views=9, through="all", closed=True, straight=True)
    np.testing.assert_allclose(chosen.c2w, splines.spline(SCENE, 9, True, True), atol=1e-6)
    assert chosen.closed
    path = tmp_path / "cameras.json"
    write_transforms(path, SCENE[2:4], np.eye(3), 8, ["a", "b"])
    chosen = choose("spline", num_views=9, through=str(path), scale=2.0)
    np.testing.assert_allclose(chosen.c2w[[0, -1]], DOUBLED[2:4], atol=1e-5)


def test_files_are_a_transforms_json_or_a_list_of_angles(tmp_path):
    path = tmp_path / "list.json"
    entries = [
        {"azimuth_deg": 30, "elevation_deg": 20, "radius": 1.8},
        {"azimuth_deg": -90, "elevation_deg": 0, "radius": 2, "look_at": [0.1, 0.2, 0.3]},
    ]
    path.write_text(json.dumps(entries))
    chosen = choose(str(path), scale=2.0)
    expected = from_spherical(np.radians([70.0]), np.radians([30.0]), np.array([3.6]))
    np.testing.assert_allclose(chosen.c2w[:1], expected, atol=1e-6)
    second = look_at(np.array([0.0, -4, 0]), np.array([0.2, 0.4, 0.6]))
    np.testing.assert_allclose(chosen.c2w[1], second, atol=1e-6)
    write_transforms(path, SCENE, np.eye(3), 8, list("abcdef"))
    np.testing.assert_allclose(choose(str(path)).c2w, SCENE, atol=1e-6)


def test_every_fault_of_a_list_is_named(tmp_path):
    path = tmp_path / "list.json"
    good = {"azimuth_deg": 30, "elevation_deg": 20, "radius": 1.8}
    entries = [
        good | {"radius": 0},
        good | {"elevation_deg": 100, "roll": 3},
        good | {"azimuth_deg": "30"},
        {"radius": 1},
        good | {"look_at": [0, 0]},
        {"azimuth_deg": 0, "elevation_deg": 0, "radius": 1, "look_at": [1, 0, 0]},
        7,
    ]
    path.write_text(json.dumps(entries))
    with pytest.raises(UserError) as caught:
        choose(str(path))
    for number, part in enumerate(
        [
            "positive radius, got 0",
            "elevation_deg from -90 to 90, got 100",
            "azimuth_deg, got '30'",
            "elevation_deg, got None",
            "look_at, got [0, 0]",
            "stands where it looks",
            "got 7",
        ]
    ):
        assert f"camera {number}" in str(caught.value) and part in str(caught.value), part
    assert "has roll; known" in str(caught.value)
    for content, reason in (("[", "cannot be read"), ("[]", "no cameras"), ("{}", "no frames")):
        path.write_text(content)
        with pytest.raises(UserError, match=reason):
            choose(str(path))
    path.write_text('[{"azimuth_deg": NaN, "elevation_deg": 0, "radius": 1}]')
    with pytest.raises(UserError, match="azimuth_deg, got nan"):
        choose(str(path))


def test_unknown_names_and_options_without_meaning_are_refused(tmp_path):
    with pytest.raises(UserError, match="orbit, spiral, archimedean, dolly, lemniscate, spline"):
        choose("circle")
    with pytest.raises(UserError, match="--turns, --closed: .*dolly"):
        choose("dolly", turns=2, closed=True)
    with pytest.raises(UserError, match="--turns: .*dolly.* 0 views.* radius nan"):
        choose("dolly", turns=2, num_views=0, radius=np.nan)
    with pytest.raises(UserError, match="--elevation-deg: .*archimedean"):
        choose("archimedean", elevation_deg=0)
    with pytest.raises(UserError, match="--radius: .*spline"):
        choose("spline", radius=1)
