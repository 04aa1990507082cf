"""Files of records, reading ahead, and the settings that a job is known by."""

import json

import numpy as np
import pytest

from escherjax.data.read_ahead import map_ahead
from escherjax.errors import UserError
from escherjax.evaluate import __main__ as evaluate
from escherjax.evaluate import cases as sampling
from escherjax.evaluate import pictures as case_pictures
from escherjax.evaluate import run
from escherjax.evaluate.protocol import Case
from escherjax.reports import results, summary
from escherjax.weights import identity


def test_two_writers_of_one_file_are_refused(tmp_path):
    path = tmp_path / "per_view.jsonl"
    file = results.RecordFile(path)
    with pytest.raises(UserError, match="being written by another"):
        results.RecordFile(path)
    file.close()
    results.RecordFile(path).close()


def test_reading_ahead_keeps_the_order_and_does_not_run_away(tmp_path):
    items, read = list(range(20)), []
    for position, (item, found) in enumerate(
        map_ahead(lambda item: read.append(item) or -item, items, workers=4, num_ahead=2)
    ):
        assert (item, found) == (items[position], -items[position])
        assert len(read) <= position + 4


def case_rows(scene, count=1, views=2):
    return [
        {
            "scene": scene,
            "num_references": count,
            "method": method,
            "view": view,
            "num_views": views,
            "psnr": 1.5,
        }
        for method in results.METHODS
        for view in range(views)
    ]


@pytest.mark.parametrize("kept", range(1, 4))
def test_a_case_is_whole_with_every_line_of_every_method(tmp_path, kept):
    """Cut between lines, nothing is damaged, and yet a case is missing lines."""
    path = tmp_path / "per_view.jsonl"
    path.write_text(results.as_lines(case_rows("a") + case_rows("b")[:kept]))
    found = results.read_records(path)
    assert results.case_names(found.records) == {("a", 1)}
    assert found.problems == ["scene 'b' with N = 1 is not whole."]
    file = results.RecordFile(path)
    assert file.cases == {("a", 1)}
    file.append(case_rows("b"))
    file.close()
    assert results.read_records(path) == (case_rows("a") + case_rows("b"), [])


def test_of_a_case_in_two_files_one_counts(tmp_path):
    for index in range(2):
        rows = case_rows("a") + case_rows(f"only{index}")
        (tmp_path / f"per_view.{index}.jsonl").write_text(results.as_lines(rows))
    found = results.read_all(tmp_path)
    assert [row["scene"] for row in found] == ["a"] * 4 + ["only0"] * 4 + ["only1"] * 4


def test_settings_differ_field_by_field_wherever_data_and_weights_lie():
    one = {"weights": {"path": "/a", "hash": "1"}, "metrics": ["psnr"], "seed": 0}
    other = {"weights": {"path": "/b", "hash": "2"}, "metrics": ["psnr"], "eta": 0.5}
    assert summary.differences(one, other, run.ELSEWHERE) == [
        ("weights.hash", '"1"', '"2"'),
        ("seed", "0", "(not set)"),
        ("eta", "(not set)", "0.5"),
    ]
    assert summary.differences(one, json.loads(json.dumps(one))) == []


def test_the_hash_of_weights_follows_their_bytes_alone(tmp_path):
    for name, data in (("a", b"1234"), ("b", b"1234"), ("c", b"1235")):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "w.safetensors").write_bytes(data)
    hashes = [identity.hash_weights(tmp_path / name) for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2] and len(hashes[0]) == 16


def test_error_maps_are_black_where_equal_and_brighter_where_worse():
    truth = np.full((1, 4, 3), 100, np.uint8)
    view = truth.copy()
    view[0, 1:] += np.array([[20], [60], [155]], np.uint8)
    brightness = case_pictures.error_map(view, truth).astype(float).sum(axis=-1)[0]
    assert brightness[0] < 10 and (np.diff(brightness) > 0).all()
    assert brightness[3] == 252 + 255 + 164  # beyond the end of the scale


def test_processes_that_start_together_agree_on_the_settings(tmp_path):
    """Another process of the job is just writing the file, under the name it has until whole."""
    out = tmp_path / "out"
    out.mkdir()
    (out / f"{run.SETTINGS}.0123abcd.tmp").touch()
    run.start_or_continue(out, {"seed": 0})
    run.start_or_continue(out, {"seed": 0})
    with pytest.raises(UserError, match="seed: 1 was 0"):
        run.start_or_continue(out, {"seed": 1})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        run.start_or_continue(tmp_path / "file", {"seed": 0})


def test_noise_belongs_to_the_seed_the_scene_and_the_number_of_references():
    poses, pictures = np.eye(4)[None], np.zeros((1, 8, 8, 3), np.uint8)
    cases = [
        Case(scene, count, pictures, poses, poses, None, np.zeros(0, int))
        for scene in ("a", "b", "a1")
        for count in (1, 2, 11)
    ]
    seeds = [sampling.case_seed(seed, case) for seed in (0, 1) for case in cases]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**31 for seed in seeds)


def test_data_is_looked_at_before_weights(tmp_path):
    (tmp_path / "empty").mkdir()
    given = [
        "--data",
        str(tmp_path / "empty"),
        "--protocol",
        "heldout",
        "--out",
        str(tmp_path / "out"),
    ]
    with pytest.raises(UserError, match="no scenes"):
        evaluate.main(["--weights", "nowhere", *given])
    with pytest.raises(UserError, match="expected a training work directory"):
        evaluate.main(["--follow", str(tmp_path), *given])
