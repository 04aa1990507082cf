"""escherjax.json: what it says, what is refused, and what a folder without it means."""

import dataclasses
import math

import pytest

from escherjax.errors import UserError
from escherjax.weights import facts as facts_lib
from escherjax.weights.facts import ModelCard

ALL = ModelCard(
    cape="4dof_paper",
    resolution=128,
    translation_unit="metres",
    num_references=(1, 3),
    num_targets=4,
    patch=2,
    weights="ema",
    trained_steps=0,
    guidance_scale=2.5,
    fov_deg=49.5,
    camera_radius=(1.5, 2.25),
)


@pytest.mark.parametrize("facts", [ALL, ModelCard("none")], ids=["all known", "defaults"])
def test_facts_make_the_round_trip(facts):
    assert ModelCard.from_json(facts.to_json()) == facts


def test_the_file_says_which_cameras_are_meant():
    content = ALL.to_json()
    assert content.pop("escherjax")
    assert content == {
        "format": 1,
        "cape": "4dof_paper",
        "camera_matrix": "world_to_camera",
        "camera_axes": "opengl",
        "camera_handedness": "right",
        "world_up": "z",
        "translation_unit": "metres",
        "resolution": 128,
        "num_references": [1, 3],
        "num_targets": 4,
        "latents": {"kind": "pixels", "patch": 2},
        "weights": "ema",
        "trained_steps": 0,
        "guidance_scale": 2.5,
        "fov_deg": 49.5,
        "camera_radius": [1.5, 2.25],
    }
    assert ModelCard("6dof").to_json()["latents"] == {"kind": "vae"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 2),
        ("format", True),
        ("format", "1"),
        ("escherjax", None),
        ("cape", "8dof"),
        ("cape", ["6dof"]),
        ("camera_matrix", "camera_to_world"),
        ("camera_axes", "opencv"),
        ("camera_handedness", "left"),
        ("world_up", "y"),
        ("translation_unit", ""),
        ("translation_unit", 1),
        ("resolution", 0),
        ("resolution", 256.0),
        ("resolution", True),
        ("resolution", None),
        ("num_references", 3),
        ("num_references", [3]),
        ("num_references", [3, 1]),
        ("num_references", [0, 1]),
        ("num_references", [1, 2.0]),
        ("num_targets", 0),
        ("latents", "vae"),
        ("latents", {"kind": "vae", "patch": 2}),
        ("latents", {}),
        ("latents", {"kind": "pixels"}),
        ("latents", {"kind": "pixels", "patch": 0}),
        ("weights", "average"),
        ("weights", ["ema"]),
        ("trained_steps", -1),
        ("trained_steps", 1.5),
        ("guidance_scale", None),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("guidance_scale", -1.0),
        ("guidance_scale", True),
        ("fov_deg", 0),
        ("fov_deg", 180.0),
        ("fov_deg", float("nan")),
        ("fov_deg", "49"),
        ("camera_radius", 1.5),
        ("camera_radius", [1.5]),
        ("camera_radius", [2.2, 1.5]),
        ("camera_radius", [0, 1]),
        ("camera_radius", [1, float("inf")]),
    ],
)
def test_other_values_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=rf"escherjax.json: {field} must be .*, got "):
        ModelCard.from_json({**ALL.to_json(), field: value})


def test_a_file_without_the_later_fields_is_still_read():
    content = ALL.to_json()
    del content["fov_deg"], content["camera_radius"]
    assert ModelCard.from_json(content) == dataclasses.replace(
        ALL, fov_deg=None, camera_radius=None
    )


def test_every_problem_is_listed():
    content = {**ALL.to_json(), "camera_axes": "opencv", "cape": 6, "camera_roll": 0}
    del content["resolution"], content["camera_matrix"]
    with pytest.raises(UserError) as error:
        ModelCard.from_json(content, "folder/escherjax.json")
    assert str(error.value) == (
        "folder/escherjax.json: camera_matrix is missing; resolution is missing; camera_roll is "
        "unknown; camera_axes must be 'opengl', got 'opencv'; cape must be one of 6dof, 4dof, "
        "4dof_paper, none, got 6. Correct the file."
    )


def test_a_folder_without_the_file_is_read_as_the_published_ones(tmp_path):
    for name, cape in (("EscherNet-6DoF", "6dof"), ("logs_4dof_n3", "4dof")):
        facts = facts_lib.of_folder(tmp_path / name, None)
        assert (facts.cape, facts.resolution, facts.patch) == (cape, 256, None)
        assert "1.5 to 2.2" in facts.translation_unit and facts.trained_steps is None
        assert facts.camera_radius == (1.5, 2.2)
        # a focal length of 280 pixels at 256
        assert math.tan(math.radians(facts.fov_deg / 2)) == pytest.approx(128 / 280, rel=1e-12)
    assert facts_lib.of_folder(tmp_path / "eschernet-6dof", None, "none").cape == "none"
    for name in ("weights", "4dof-or-6dof"):
        with pytest.raises(UserError, match="which camera encoding.*6dof, 4dof"):
            facts_lib.of_folder(tmp_path / name, None)
    with pytest.raises(UserError, match="cape must .*got '5dof'"):
        facts_lib.of_folder(tmp_path / "eschernet-6dof", None, "5dof")


def test_the_file_goes_before_the_name_and_the_caller_before_both(tmp_path, caplog):
    folder = tmp_path / "eschernet-6dof"
    assert facts_lib.of_folder(folder, ALL.to_json()) == ALL
    assert facts_lib.of_folder(folder, ALL.to_json(), "4dof_paper") == ALL
    assert not caplog.records
    changed = facts_lib.of_folder(folder, ALL.to_json(), "4dof")
    assert changed == dataclasses.replace(ALL, cape="4dof")
    assert "cape = '4dof_paper'; using '4dof'" in caplog.text
    unknown = {**ALL.to_json(), "cape": "7dof"}
    assert facts_lib.of_folder(folder, unknown, "4dof") == changed
