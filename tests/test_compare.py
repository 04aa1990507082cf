"""Evaluations side by side: paired differences, by hand; and what is not compared."""

import json
import re

import numpy as np
import pytest

from escherjax import compare
from escherjax.errors import UserError
from escherjax.evaluate import pictures, report
from escherjax.evaluate.protocol import Case, Conventions
from escherjax.evaluate.scoring import CaseScorer
from escherjax.reports import page, results, summary
from escherjax.reports.summary import paired_interval


def settings(mode="faithful", steps=50, **protocol):
    return {
        "protocol": {
            "protocol": "heldout",
            "mode": mode,
            "conventions": {"psnr": "uint8"},
            "rules": {"background": "white"},
            **protocol,
        },
        "metrics": ["psnr"],
        "weights": {
            "path": "w",
            "hash": "0",
            "params": None,
            "trained_steps": None,
            "cape": "6dof",
            "resolution": 32,
        },
        "sampling": {
            "num_steps": steps,
            "guidance_scale": 3.0,
            "sampler": "ddim",
            "seed": 0,
            "dtype": "float32",
        },
    }


def write_run(folder, values, **changes):
    """A summary of {(scene, N): PSNR of its two views}."""
    rows = [
        {
            "scene": scene,
            "num_references": count,
            "method": method,
            "view": view,
            "num_views": 2,
            "psnr": psnr - (method == results.NEAREST),
        }
        for (scene, count), of_views in values.items()
        for method in results.METHODS
        for view, psnr in enumerate(of_views)
    ]
    folder.mkdir()
    summary.write(folder, summary.summarize(settings(**changes), rows, []))
    return folder


A = {("a", 1): (10, 12), ("b", 1): (20, 20), ("c", 1): (14, 18), ("a", 3): (15, 15)}
B = {("a", 1): (11, 13), ("b", 1): (19, 20), ("c", 1): (16, 19), ("d", 1): (40, 40)}


def test_differences_are_paired_over_the_scenes_that_both_have(tmp_path, capsys):
    one, other = write_run(tmp_path / "one", A), write_run(tmp_path / "other", B, steps=20)
    found = compare.compare([one, other])
    (row,) = found.rows  # N = 3 is in the first alone
    assert (row.count, row.metric, row.scenes) == ("1", "psnr", ["a", "b", "c"])
    # Means of scenes: 11, 20, 16 and 12, 19.5, 17.5; their differences 1, -0.5, 1.5
    np.testing.assert_allclose(row.means[0]["mean"], 47 / 3)
    np.testing.assert_allclose(row.means[1]["mean"], 49 / 3)
    np.testing.assert_allclose(row.differences[0]["mean"], 2 / 3)
    expected = paired_interval(np.array([12, 19.5, 17.5]), np.array([11.0, 20, 16]))
    assert tuple(row.differences[0].values()) == expected
    assert found.changes == [("sampling.num_steps", ["50", "20"])]

    out = tmp_path / "page" / "compare.html"
    compare.main([str(one), str(other), "--out", str(out)])
    said, text = capsys.readouterr().out, out.read_text()
    assert said.rstrip().endswith(str(out)) and "+0.67" in said and "+0.67" in text
    assert "sampling.num_steps" in text and "http" not in text.replace("http-equiv", "")
    for shown in ("+1.00", "-0.50", "+1.50", "15.67", "16.33"):
        assert shown in text


def test_a_clear_difference_is_marked(tmp_path, capsys):
    better = {name: (x + 1, y + 1.1) for name, (x, y) in A.items()}
    better[("a", 1)] = (12, 14)
    one, other = write_run(tmp_path / "one", A), write_run(tmp_path / "other", better)
    compare.main([str(one), str(other)])
    assert re.search(r"PSNR dB +1 .*\+1\.\d\d \[.*\] \*", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mode": "corrected"}, 'protocol.mode: A "faithful", B "corrected"'),
        ({"protocol": "gso25"}, "protocol.protocol"),
        ({"conventions": {"psnr": "float"}}, "protocol.conventions.psnr"),
        ({"rules": {"background": "black"}}, "protocol.rules.background"),
    ],
)
def test_what_means_something_else_is_refused(tmp_path, changes, field):
    one, other = write_run(tmp_path / "one", A), write_run(tmp_path / "other", A, **changes)
    with pytest.raises(UserError, match=re.escape(field)):
        compare.compare([one, other])


def consistency_rows(distances):
    """Records of consistency of {scene: median distance, or None}, with one reference."""
    return [
        {
            "scene": scene,
            "num_references": 1,
            "true_views": None,
            "samples": {
                "tsed": 0.5,
                "distance": distance,
                "track_error": None,
                "matches_per_pair": 20.0,
                "num_pairs": 2,
                "num_tracks": 0,
            },
        }
        for scene, distance in distances.items()
    ]


def write_consistency(folder, distances, **rules):
    """A run of a protocol without true views, where only consistency has values."""
    content = settings() | {"metrics": ["consistency"], "consistency": {"min_matches": 10} | rules}
    rows = [
        {"scene": scene, "num_references": 1, "method": method, "view": 0, "num_views": 1}
        for scene in distances
        for method in results.METHODS
    ]
    folder.mkdir()
    summary.write(folder, summary.summarize(content, rows, [], consistency_rows(distances)))
    return folder


def test_consistency_is_paired_over_the_scenes_where_all_runs_know_it(tmp_path, capsys):
    one = write_consistency(tmp_path / "one", {"a": 1.0, "b": 2.0, "c": 3.0})
    other = write_consistency(tmp_path / "other", {"a": 0.5, "b": 1.0, "c": None})
    found = {row.metric: row for row in compare.compare([one, other]).rows}
    assert set(found) == {"tsed", "distance", "matches_per_pair"}  # no track in any scene
    assert found["tsed"].scenes == ["a", "b", "c"] and found["distance"].scenes == ["a", "b"]
    assert found["distance"].differences[0]["mean"] == -0.75
    compare.main([str(one), str(other), "--out", str(tmp_path / "page.html")])
    assert re.search(
        r"distance px +1 +2 +1\.50 \[.*\] +0\.75 \[.*\] +-0\.75", capsys.readouterr().out
    )
    assert "-0.75" in (tmp_path / "page.html").read_text()
    strict = write_consistency(tmp_path / "strict", {"a": 1.0}, min_matches=30)
    with pytest.raises(UserError, match="consistency.min_matches: A 10, B 30"):
        compare.compare([one, strict])


def test_consistency_that_one_run_lacks_is_left_out(tmp_path):
    one = write_run(tmp_path / "one", A)
    content = summary.read(write_run(tmp_path / "other", A))
    content["settings"] |= {"metrics": ["psnr", "consistency"], "consistency": {"min_matches": 10}}
    rows = consistency_rows({"a": 1.0})
    both = summary.summarize(content["settings"], [], [], rows)["consistency"]
    summary.write(tmp_path / "other", content | {"consistency": both})
    found = compare.compare([one, tmp_path / "other"])
    assert {row.metric for row in found.rows} == {"psnr"}


def test_nothing_to_compare_is_refused(tmp_path):
    one = write_run(tmp_path / "one", A)
    other = write_run(tmp_path / "other", {("z", 1): (1, 2)})
    with pytest.raises(UserError, match="share no scored scene"):
        compare.compare([one, other])
    with pytest.raises(UserError, match="two evaluations or more"):
        compare.main([str(one)])
    with pytest.raises(UserError, match="not a summary of an evaluation"):
        compare.main([str(one), str(tmp_path)])


def test_names_cannot_break_the_page(tmp_path):
    scene = "<script>alert(1)</script>"
    values = {(scene, 1): (1, 2), ("b", 1): (2, 3)}
    runs = [write_run(tmp_path / name, values) for name in ("one", "other")]
    compare.main([*map(str, runs), "--out", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    assert scene not in text and "\\u003cscript>alert(1)\\u003c/script>" in text


def test_one_scene_has_no_interval(tmp_path):
    content = summary.summarize(
        settings(),
        [
            {
                "scene": "a",
                "num_references": 1,
                "method": method,
                "view": 0,
                "num_views": 1,
                "psnr": 9.0,
            }
            for method in results.METHODS
        ],
        [],
    )
    assert content["results"]["samples"]["1"]["psnr"] == {"mean": 9.0, "low": None, "high": None}
    summary.write(tmp_path, content)  # JSON without NaN


@pytest.fixture(scope="module")
def script():
    """Calls a function of the page's script in V8."""
    racer = pytest.importorskip("py_mini_racer")
    context = racer.MiniRacer()
    context.eval(page.script())
    return context


@pytest.mark.parametrize(("low", "high"), [(0, 1), (12.3, 27.8), (-0.02, 0.01), (5, 5), (0, 0)])
def test_ticks_are_round_and_hold_the_values_between_them(script, low, high):
    ticks = script.call("ticks", low, high)
    assert ticks[0] <= low and high <= ticks[-1] and 2 <= len(ticks) <= 8
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert f"{steps[0]:.1e}"[:3] in ("1.0", "2.0", "2.5", "5.0")


def test_a_chart_puts_larger_values_higher_and_later_points_to_the_right(script):
    points = [(1.0, 10.0, 9.0, 11.0), (2.0, 20.0, 19.0, 21.0), (5.0, 30.0, 29.0, None)]
    series = json.dumps([{"points": points}])
    places = script.eval(
        f"(() => {{ const {{ u, v, xTicks }} = chartLayout({series}, true);"
        "return JSON.stringify([[1, 2, 5].map(u), [10, 20, 30].map(v), xTicks]); })()"
    )
    xs, ys, ticks = map(np.array, json.loads(places))
    assert (np.diff(xs) > 0).all() and (np.diff(ys) < 0).all()
    np.testing.assert_allclose((xs[1] - xs[0]) / (xs[2] - xs[0]), np.log(2) / np.log(5))
    np.testing.assert_allclose(np.diff(ys)[0], np.diff(ys)[1])
    assert ticks.tolist() == [1, 2, 5]


def test_the_papers_figures_stand_beside_faithful_ones_alone(tmp_path):
    def table(**changes):
        folder = write_run(
            tmp_path / changes["mode"], A, protocol="gso25", published_num_scenes=30, **changes
        )
        return report.write(folder, summary.read(folder)).read_text()

    faithful = table(mode="faithful")
    assert "EscherNet 6DoF, the paper" in faithful and "20.89" in faithful and "25.21" in faithful
    for difference in ("scenes: 1 here, 30 there", "pixels a side: 32 here, 256 there"):
        assert difference in faithful
    assert "guidance: " not in faithful  # it is the paper's
    corrected = table(mode="corrected")
    assert "the paper" not in corrected and "20.89" not in corrected


def test_a_protocol_without_true_views_is_reported_without_figures(tmp_path):
    """Its cases are whole all the same, so that they are not done again."""
    views, poses = np.zeros((2, 8, 8, 3), np.uint8), np.broadcast_to(np.eye(4), (2, 4, 4))
    case = Case("a", 1, views[:1], poses[:1], poses, truth=None, scored=np.zeros(0, int))
    rows = CaseScorer(("psnr",), Conventions()).scores(case, views)
    assert len(rows) == 4 and "psnr" not in rows[0]
    (tmp_path / "per_view.jsonl").write_text(results.as_lines(rows))
    assert results.read_all(tmp_path) == sorted(rows, key=lambda r: (r["method"], r["view"]))
    pictures.save(tmp_path, case, views, rows)
    content = summary.summarize(settings(), results.read_all(tmp_path), [])
    text = report.write(tmp_path, content).read_text()
    assert "there is nothing to score" in text and "data:image/webp" in text
