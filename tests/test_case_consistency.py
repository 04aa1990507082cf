"""Consistency of the views of a case, in records, summary and report; and views in files."""

import json
import sys

import numpy as np
import pytest

from escherjax.data import images
from escherjax.data.formats.folders import read_scene_folder
from escherjax.errors import UserError
from escherjax.evaluate import pictures, report
from escherjax.evaluate.protocol import Case, Conventions
from escherjax.evaluate.scoring import CaseScorer
from escherjax.metrics import epipolar, view_consistency
from escherjax.metrics.consistency import nearest_pairs
from escherjax.reports import page, results, summary
from escherjax.reports.results import CaseName
from tests.helpers.textured_plane import K, textured_scene

SETTINGS = {
    "protocol": {"protocol": "heldout", "mode": "faithful"},
    "weights": {
        "path": "w",
        "params": None,
        "trained_steps": None,
        "cape": "6dof",
        "resolution": 128,
    },
    "sampling": {
        "dtype": "float32",
        "sampler": "ddim",
        "num_steps": 5,
        "guidance_scale": 1.0,
        "seed": 0,
    },
    "metrics": ["consistency"],
    "consistency": {"max_distance": 2.0, "min_matches": 10},
}


@pytest.fixture(scope="module")
def scorer():
    pytest.importorskip("cv2")
    return CaseScorer(["consistency"], Conventions())


@pytest.fixture(scope="module")
def case():
    scene = textured_scene(6)
    truth = np.stack([images.decode_image(data, "picture")[..., :3] for data in scene.images])
    return Case("plane", 1, truth[:1], scene.c2w[:1], scene.c2w, truth, np.arange(1, 6), scene.K)


def test_scored_views_are_measured_beside_the_true_ones_of_their_cameras(scorer, case):
    drawn = case.truth[[0, 1, 2, 5, 4, 3]]  # two views on each other's places
    row = scorer.consistency(case, drawn, case.target_K)
    c2w, lenses = case.target_c2w[1:], case.target_K[1:]
    for method, shown in (("samples", drawn), ("true_views", case.truth)):
        found = view_consistency(shown[1:], c2w, lenses, nearest_pairs(c2w))
        np.testing.assert_allclose(
            [row[method][name] for name in ("tsed", "distance", "track_error")],
            [found.tsed, found.median_distance, found.median_track_error],
            rtol=1e-6,  # 7 digits are kept
        )
        assert row[method]["num_pairs"] == len(found.pairs)
        assert row[method]["num_tracks"] == len(found.track_error)
    assert row["true_views"]["tsed"] == 1 and row["samples"]["tsed"] < 0.7
    assert row["true_views"]["matches_per_pair"] > 50
    wrong_lens = scorer.consistency(case, drawn, case.target_K * [[0.5], [0.5], [1]])
    assert wrong_lens["true_views"]["tsed"] < 1  # not what is remembered of the right one


def test_without_truth_all_targets_are_measured_alone(scorer, case):
    untrue = Case(
        "plane", 1, case.truth[:1], case.reference_c2w, case.target_c2w, None, np.zeros(0, int)
    )
    row = scorer.consistency(untrue, case.truth, case.target_K)
    assert row["true_views"] is None and row["samples"]["tsed"] == 1
    assert row["samples"]["num_pairs"] == len(nearest_pairs(case.target_c2w))
    blank = scorer.consistency(untrue, np.full_like(case.truth, 255), case.target_K)
    assert blank["samples"]["distance"] is None and blank["samples"]["tsed"] == 0
    assert blank == json.loads(results.as_lines([blank]))


def row_of(scene, samples, true_views=None, count=1):
    def values(tsed, distance):
        return {
            "tsed": tsed,
            "distance": distance,
            "track_error": distance,
            "matches_per_pair": 1.0,
            "num_pairs": 3,
            "num_tracks": 2,
        }

    true_values = None if true_views is None else values(*true_views)
    return {
        "scene": scene,
        "num_references": count,
        "samples": values(*samples),
        "true_views": true_values,
    }


def test_scenes_without_a_value_count_in_no_mean_and_are_told(tmp_path):
    rows = [
        row_of("a", (0.25, 4.0), (1.0, 0.5)),
        row_of("b", (0.75, None), (1.0, 0.7)),
        row_of("a", (0.0, None), count=2),
    ]
    scores = [
        {"scene": scene, "num_references": count, "method": method, "view": 0, "num_views": 1}
        for scene, count in (("a", 1), ("b", 1), ("a", 2))
        for method in results.METHODS
    ]
    content = summary.summarize(SETTINGS, scores, [], rows)
    found = content["consistency"]["results"]
    assert found["samples"]["1"]["tsed"]["mean"] == 0.5
    assert found["samples"]["1"]["tsed"]["low"] < 0.5 < found["samples"]["1"]["tsed"]["high"]
    assert found["samples"]["1"]["distance"] == {
        "mean": 4.0,
        "low": None,
        "high": None,
        "num_scenes": 1,
    }
    assert found["samples"]["2"]["distance"]["mean"] is None
    assert found["true_views"].keys() == {"1"}
    assert content["consistency"]["per_scene"]["true_views"]["1"]["b"]["distance"] == 0.7
    summary.write(tmp_path, content)  # refuses what JSON does not have
    text = report.write(tmp_path, content).read_text()
    assert page.estimate("tsed", found["samples"]["1"]["tsed"]) in text
    assert "4.00 of 1 scene" in text and "true views" in text
    lines = report.as_text(content).splitlines()[-3:]
    assert [line.split()[:3] for line in lines] == [
        ["1", "samples", "2"],
        ["1", "true", "views"],
        ["2", "samples", "1"],
    ]
    assert "4.00 of 1 scene" in lines[0]


def test_lines_cut_off_or_damaged_are_left_out_and_named(tmp_path):
    path = tmp_path / "consistency.jsonl"
    lines = results.as_lines([row_of("a", (1.0, 1.0)), row_of("b", (1.0, 1.0))])
    path.write_text(lines.replace('"scene": "a"', '"scene": 1') + '{"scene": "c"')
    found = results.read_records(path)
    assert results.case_names(found.records) == {("b", 1)}
    assert found.problems == ["line 3 is half written.", "line 1 is damaged."]
    (tmp_path / "consistency.1.jsonl").write_text(results.as_lines([row_of("b", (0.0, 0.0))]))
    (row,) = results.read_all(tmp_path, results.CONSISTENCY)
    assert row["samples"]["tsed"] == 0.0  # of the first file by name


def test_a_missing_opencv_is_said_before_anything_is_drawn(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"escherjax\[prep\]"):
        CaseScorer(["psnr", "consistency"], Conventions())
    assert CaseScorer(["psnr"], Conventions()).has_consistency is False
    with pytest.raises(UserError):
        epipolar.load_opencv()


@pytest.mark.parametrize(
    ("scene_id", "folder"), [("set/shoe_1", "views/set/shoe_1/N1"), ("../../a b", None)]
)
def test_saved_views_are_a_scene_folder_inside_the_evaluation(case, tmp_path, scene_id, folder):
    named = Case(
        scene_id,
        1,
        case.reference_images,
        case.reference_c2w,
        case.target_c2w,
        None,
        np.zeros(0, int),
    )
    name, out = CaseName(scene_id, 1), tmp_path / "out"
    assert not pictures.has_views(out, name)
    pictures.save_views(out, named, case.truth, case.target_K)
    assert pictures.has_views(out, name)
    assert not pictures.has_views(out, CaseName(scene_id, 2))
    place = pictures.views_folder(out, name)
    assert (out / "views").resolve() in place.resolve().parents
    assert folder is None or place == out / folder
    scene = read_scene_folder(place)
    np.testing.assert_array_equal(images.decode_image(scene.images[5], "picture"), case.truth[5])
    np.testing.assert_allclose(scene.c2w, case.target_c2w, atol=1e-6)
    np.testing.assert_allclose(scene.K, [K] * 6, rtol=1e-6)  # float32
