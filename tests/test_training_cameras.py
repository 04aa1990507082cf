"""What a run keeps of its training cameras, and what sampling then knows."""

import dataclasses

import numpy as np
import pytest

from escherjax import cameras
from escherjax.data import inputs, procedural, training_cameras
from escherjax.data.mixture import Mixture
from escherjax.data.shards import Scene
from escherjax.data.training_cameras import TrainingCameras
from escherjax.errors import UserError
from escherjax.sample import loading
from tests.helpers.tiny import tiny_config
from tests.helpers.tiny_workdir import write_workdir


def scenes(radii, fov_deg=40.0, width=30, height=20):
    """Scenes whose two cameras stand at these (nearest, farthest) distances."""
    K = np.tile(cameras.intrinsics_from_fov(np.radians(fov_deg), height, height), (2, 1, 1))
    return [
        Scene(
            str(i),
            "test",
            [b"", b""],
            cameras.from_spherical(1.2, [0.0, 1.0], list(ends)),
            K,
            height,
            width,
        )
        for i, ends in enumerate(radii)
    ]


def of_shards(**changes):
    return tiny_config(data__source="shards", **changes)


def test_distances_and_the_field_of_view_of_the_square_are_measured():
    found = training_cameras.measure(scenes([(1.5, 1.6), (1.2, 2.0)]), of_shards())
    assert found.radius == (1.2, 2.0) and found.fov_deg == pytest.approx(40.0, abs=1e-3)


def test_a_field_of_view_that_differs_or_is_zoomed_is_none():
    both = Mixture({"a": scenes([(1.5, 1.6)]), "b": scenes([(3.0, 3.0)] * 99, fov_deg=50.0)})
    assert training_cameras.measure(both, of_shards()) == TrainingCameras((1.5, 3.0), None)
    zoomed = of_shards(data__zoom=(1.0, 2.0))
    assert training_cameras.measure(scenes([(1.5, 1.6)]), zoomed).fov_deg is None


def test_paths_through_the_origin_have_no_distance_from_an_object():
    found = training_cameras.measure(scenes([(1e-7, 5.0)]), of_shards())
    assert found.radius is None and found.fov_deg == pytest.approx(40.0, abs=1e-3)


class Damaged(list):
    def __getitem__(self, index):
        if index == 0:
            raise UserError("this record is damaged")
        return super().__getitem__(index)


def test_scenes_that_cannot_be_read_are_passed_over():
    source = Damaged(scenes([(9.0, 9.0), (1.5, 1.6)]))
    assert training_cameras.measure(source, of_shards()).radius == (1.5, 1.6)
    assert training_cameras.measure(Damaged(scenes([(9.0, 9.0)])), of_shards()) is None


def test_what_a_run_kept_is_what_its_weights_expect(tmp_path):
    """And measured once: a run that goes on looks at nothing."""
    write_workdir(tmp_path)
    config = of_shards()
    training_cameras.keep(tmp_path, scenes([(1.5, 1.6)]), config)
    training_cameras.keep(tmp_path, None, config)
    facts = loading.load(tmp_path).facts
    assert facts.camera_radius == (1.5, 1.6) and facts.fov_deg == pytest.approx(40.0, abs=1e-3)
    far = cameras.from_spherical(1.2, [0.0], [4.0])
    (note,) = map(str, inputs.radius_notes(far, "references", facts))
    assert "references stand 4 to 4" in note and "trained with 1.5 to 1.6" in note


def test_procedural_cameras_are_known_without_looking(tmp_path):
    expected = TrainingCameras(procedural.RADIUS_RANGE, procedural.FOV_DEG)
    assert training_cameras.read(tmp_path, tiny_config()) == expected  # of a run that kept none
    training_cameras.keep(tmp_path, None, tiny_config())
    assert training_cameras.read(tmp_path, tiny_config()) == expected
    zoomed = training_cameras.of_config(tiny_config(data__zoom=(1.0, 2.0)))
    assert zoomed == dataclasses.replace(expected, fov_deg=None)
    assert training_cameras.read(tmp_path / "elsewhere", of_shards()) is None


def test_a_damaged_file_is_refused_by_name(tmp_path):
    for text in ("{", '{"radius": [1.5], "fov_deg": null}', '{"radius": null}'):
        (tmp_path / training_cameras.FILE_NAME).write_text(text)
        with pytest.raises(UserError, match="training_cameras.json is damaged"):
            training_cameras.read(tmp_path, of_shards())
