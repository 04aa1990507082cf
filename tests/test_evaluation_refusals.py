"""What the evaluation command refuses, when, and what a refusal leaves behind."""

import json

import pytest

from escherjax.devices.stopping import Stop
from escherjax.errors import UserError
from escherjax.evaluate import __main__ as evaluate
from escherjax.evaluate import cases, run
from escherjax.evaluate.protocol import Source
from escherjax.evaluate.scoring import CaseScorer
from escherjax.reports import results
from escherjax.sample import loading
from tests.helpers.noise_scenes import write_scene
from tests.helpers.tiny_workdir import write_workdir


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals") / "scenes"
    write_scene(folder / "ball", 0)
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals") / "run"
    write_workdir(folder, latents__kind="pixels", latents__patch=4)
    return folder


def arguments(weights, data, out, *more):
    return [
        "--weights",
        str(weights),
        "--data",
        str(data),
        "--protocol",
        "heldout",
        "--references",
        "1",
        "--metrics",
        "psnr",
        "--steps",
        "1",
        "--guidance",
        "1",
        "--batch-size",
        "1",
        "--out",
        str(out),
        *more,
    ]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--sampler", "foo"], "one of ddim"),
        (["--steps", "0"], "--steps.*at least 1, got 0"),
        (["--eta", "2"], "eta.*got 2"),
        (["--guidance", "nan"], "guidance_scale.*got nan"),
        (["--guidance-rescale", "2"], "guidance_rescale.*got 2"),
        (["--seed", "-1"], "seed.*got -1"),
    ],
)
def test_wrong_sampling_is_refused_before_data_and_weights(tmp_path, more, reason):
    with pytest.raises(UserError, match=reason):
        evaluate.main(arguments("nowhere", "nowhere", tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shards", [["0/1"], ["0/2", "1/2"]])
def test_an_evaluation_that_scored_nothing_blocks_no_other(workdir, data, tmp_path, shards):
    out = tmp_path / "out"
    given = arguments(workdir / "checkpoints" / "4", data, out)
    with pytest.raises(UserError, match=r"no scene could be evaluated.*has 5 views"):
        for shard in shards:
            evaluate.main([*given, "--references", "8,9", "--shard", shard])
    assert evaluate.main(given) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_skipped"] == 0 and list(summary["results"]["samples"]) == ["1"]
    with pytest.raises(UserError, match="other settings"):  # now there is a score to protect
        evaluate.main([*given, "--seed", "1"])


def test_a_followed_run_that_scored_nothing_blocks_no_other(workdir, data, tmp_path):
    given = arguments("", data, tmp_path / "out", "--follow-until-step", "4")[2:]
    given += ["--follow", str(workdir)]
    with pytest.raises(UserError, match="no scene could be evaluated"):
        evaluate.main([*given, "--references", "9"])
    assert evaluate.main(given) == 0
    with pytest.raises(UserError, match="other settings"):
        evaluate.main([*given, "--seed", "1"])


def test_of_two_that_start_together_with_other_settings_one_scores(workdir, data, tmp_path):
    """The other wrote its settings while this one drew its first views."""
    out, weights = tmp_path / "out", workdir / "checkpoints" / "4"
    request = cases.Request(
        Source("heldout", data, reference_counts=(1,)),
        out,
        metrics=("psnr",),
        sampling=cases.Sampling(num_steps=1, guidance_scale=1.0),
        batch_size=1,
        shard=(0, 2),
    )
    protocol = request.source.open()
    scorer = CaseScorer(request.metrics, protocol.conventions)
    with pytest.raises(UserError, match="other settings"):
        run.evaluate_pipeline(
            request,
            protocol,
            scorer,
            loading.load(weights),
            weights,
            Stop(),
            lambda: run.start_or_continue(out, {"metrics": ["ssim"]}),
        )
    assert run.read_settings(out) == {"metrics": ["ssim"]} and results.read_all(out) == []


def test_a_folder_of_something_else_is_not_taken(tmp_path):
    for name, content in (("per_view.jsonl", "a score"), ("photo.png", ""), ("step_1/x", "")):
        path = tmp_path / name.replace("/", "-") / name
        path.parent.mkdir(parents=True)
        path.write_text(content)
        out = tmp_path / name.replace("/", "-")
        with pytest.raises(UserError, match="not an evaluation to continue"):
            run.check(out, {"seed": 0})
        path.write_text("")
        if path.name == "per_view.jsonl":
            run.check(out, {"seed": 0})


def test_what_was_skipped_is_forgotten_but_for_other_shards_of_the_job(tmp_path):
    for name in ("skipped", "skipped.0", "skipped.1", "skipped.2"):
        results.write_rows(tmp_path / f"{name}.jsonl", [])
    results.forget_skipped(tmp_path, (0, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["skipped.1.jsonl"]


def test_a_case_that_was_scored_after_all_is_not_skipped(tmp_path):
    rows = [{"scene": name, "num_references": 1, "reason": "broken"} for name in ("a", "b")]
    results.write_rows(tmp_path / "skipped.0.jsonl", rows)
    scored = [{"scene": "b", "num_references": 1}]
    assert results.read_skipped(tmp_path, scored) == rows[:1]
