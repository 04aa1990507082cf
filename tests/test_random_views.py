"""Cameras and lights of rendered objects, and the arguments that choose them; no Blender."""

import numpy as np
import pytest

from data_prep.render_meshes import __main__ as render_meshes
from data_prep.render_meshes import random_views
from escherjax import cameras
from escherjax.data.formats.transforms import read_cameras, write_transforms
from escherjax.errors import UserError
from tests.helpers.mesh_files import write_gltf, write_obj
from tests.helpers.scene_folders import run


def test_cameras_of_an_object_depend_on_seed_and_id_alone():
    first, lens = random_views.random_cameras(0, "ab/chair", 12, 256)
    again, _ = random_views.random_cameras(0, "ab/chair", 30, 256)
    np.testing.assert_array_equal(first.c2w, again.c2w[:12])
    for seed, name in ((1, "ab/chair"), (0, "ab/table")):
        other, _ = random_views.random_cameras(seed, name, 12, 256)
        assert np.abs(other.c2w - first.c2w).max(axis=(1, 2)).min() > 1e-3
    np.testing.assert_array_equal(lens, 35)
    np.testing.assert_allclose(first.K[:, [0, 1], [0, 1]], 280)  # 560 at 512
    np.testing.assert_array_equal(first.K[:, :2, 2], 128)


def test_directions_are_uniform_and_radii_within_range():
    poses, lens = random_views.random_cameras(0, "x", 4000, 64, (1.0, 3.0), (20.0, 50.0))
    position = poses.c2w[:, :3, 3]
    radius = np.linalg.norm(position, axis=-1)
    assert radius.min() >= 1 - 1e-6 and radius.max() <= 3 + 1e-6
    assert lens.min() >= 20 and lens.max() <= 50
    direction = position / radius[:, None]
    # A uniform coordinate has variance 1/3; four standard errors of 4000 draws.
    np.testing.assert_allclose(direction.mean(0), 0, atol=4 * np.sqrt(1 / 3 / 4000))
    np.testing.assert_allclose((direction**2).mean(0), 1 / 3, atol=4 * np.sqrt(4 / 45 / 4000))
    np.testing.assert_allclose(poses.c2w[:, :3, 2], -direction, atol=1e-5)  # at the origin
    cameras.check_poses(poses.c2w, "random")


@pytest.mark.parametrize("kind", random_views.LIGHTINGS)
def test_lights_shine_from_where_they_stand_and_differ_between_objects(kind):
    drawn = [random_views.random_lighting(0, name, kind) for name in "ab"]
    assert drawn[0] != drawn[1]
    assert drawn[0] == random_views.random_lighting(0, "a", kind)
    for lighting in drawn:
        assert np.array(lighting["world"]).shape == (3, 3)
        for light in lighting["lights"]:
            assert light["energy"] > 0 and np.all(np.array(light["color"]) > 0)
            assert np.dot(light["location"], light["direction"]) < 0
            np.testing.assert_allclose(np.linalg.norm(light["direction"]), 1)


def test_ids_are_paths_without_suffix_and_must_differ(tmp_path):
    write_obj(tmp_path / "b" / "chair.obj")
    write_gltf(tmp_path / "a.chair.gltf")
    (tmp_path / "notes.txt").write_text("no model")
    found = render_meshes.find_models(tmp_path)
    assert [name for name, _ in found] == ["a.chair", "b/chair"]
    assert render_meshes.find_models(tmp_path / "b" / "chair.obj") == [
        ("chair", tmp_path / "b" / "chair.obj")
    ]
    write_gltf(tmp_path / "b" / "chair.gltf")
    with pytest.raises(UserError, match=r"share an id.*chair\.gltf.*chair\.obj.*--formats"):
        render_meshes.find_models(tmp_path)
    assert len(render_meshes.find_models(tmp_path, ["obj"])) == 1
    with pytest.raises(UserError, match="no models"):
        render_meshes.find_models(tmp_path, ["glb"])


def test_every_argument_out_of_range_is_named(tmp_path):
    wrong = [
        "--num-views",
        "0",
        "--resolution",
        "0",
        "--radius",
        "0.5",
        "2",
        "--focal-mm",
        "50",
        "20",
        "--timeout",
        "nan",
        "--depth",
    ]
    with pytest.raises(UserError) as error:
        run(render_meshes, tmp_path, tmp_path / "out", *wrong)
    for name in (
        "--num-views must be at least 1, got 0",
        "--resolution must be at least 1, got 0",
        "--radius must be 0.87 <= LOW <= HIGH, got 0.5 2",
        "--focal-mm must be 1 <= LOW <= HIGH, got 50 20",
        "--timeout",
        "--views-folder",
    ):
        assert name in str(error.value)


def test_transforms_file_keeps_a_lens_of_each_view(tmp_path):
    poses, _ = random_views.random_cameras(0, "x", 3, 64, focal_mm=(20.0, 50.0))
    write_transforms(tmp_path / "transforms.json", poses.c2w, poses.K, 64, ["0", "1", "2"])
    np.testing.assert_allclose(read_cameras(tmp_path / "transforms.json"), poses.c2w, atol=1e-6)
