"""The evaluation command and its engine, on pictures of noise and an untrained network."""

import copy
import dataclasses
import json
import logging
import re
import shutil
import signal

import numpy as np
import pytest

from escherjax.devices.stopping import Stop
from escherjax.errors import EXIT_PREEMPTED, UserError
from escherjax.evaluate import __main__ as evaluate
from escherjax.evaluate import cases as sampling
from escherjax.evaluate import follow, run
from escherjax.evaluate.protocol import Source
from escherjax.evaluate.scoring import CaseScorer
from escherjax.metrics import psnr
from escherjax.reports import results
from escherjax.sample import loading
from tests.helpers.noise_scenes import NUM_VIEWS, SIDE, write_scene
from tests.helpers.tiny_workdir import write_workdir

SCENES = ("ball", "box", "cone")
COUNTS = (1, 2)
METRICS = ("psnr", "ssim", "consistency")
ON_PIXELS = {"latents__kind": "pixels", "latents__patch": 4}  # compiles in half the time


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "scenes"
    for seed, name in enumerate(SCENES):
        write_scene(folder / name, seed)
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    write_workdir(folder, **ON_PIXELS)
    return folder


@pytest.fixture(scope="module")
def weights(workdir):
    return workdir / "checkpoints" / "4"


@pytest.fixture(scope="module")
def pipe(weights):
    return loading.load(weights)  # one device; its compiled programs serve all tests


@pytest.fixture
def request_for(data):
    def make(out, references=COUNTS, folder=data, **changes):
        given = {
            "sampling": sampling.Sampling(num_steps=2, guidance_scale=1.0),
            "metrics": METRICS,
            "batch_size": 1,
        }
        source = Source("heldout", folder, reference_counts=references)
        return sampling.Request(source, out, **{**given, **changes})

    return make


@pytest.fixture
def evaluated(pipe, weights):
    """Evaluates a request with the shared network; the result of `run.evaluate_pipeline`."""

    def go(request, stop=None, pipe=pipe):
        protocol = request.source.open()
        scorer = CaseScorer(request.metrics, protocol.conventions)
        return run.evaluate_pipeline(request, protocol, scorer, pipe, weights, stop or Stop())

    return go


@pytest.fixture(scope="module")
def finished(pipe, weights, data, tmp_path_factory):
    """The output of the command itself."""
    out = tmp_path_factory.mktemp("evaluate") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", lambda *_, **__: pipe)  # compiled already
        assert evaluate.main(arguments(weights, data, out)) == 0
    return out


def arguments(weights, data, out, *more):
    return [
        "--weights",
        str(weights),
        "--data",
        str(data),
        "--protocol",
        "heldout",
        "--references",
        "1,2",
        "--metrics",
        ",".join(METRICS),
        "--steps",
        "2",
        "--save-views",
        "--guidance",
        "1",
        "--batch-size",
        "1",
        "--out",
        str(out),
        *more,
    ]


def written(out):
    """The bytes that a restart must not change."""
    views = list(out.glob("views/*/N*/*"))
    assert len(views) == len(SCENES) * len(COUNTS) * (NUM_VIEWS - max(COUNTS) + 1)
    views += [out / name for name in ("summary.json", "report.html")] + list(out.glob("*.jsonl"))
    return {path.relative_to(out): path.read_bytes() for path in views}


def test_every_view_is_scored_and_means_are_means_of_scenes(finished, data):
    rows, targets = results.read_all(finished), NUM_VIEWS - max(COUNTS)
    assert len(rows) == len(SCENES) * len(COUNTS) * 2 * targets
    summary = json.loads((finished / "summary.json").read_text())
    for method in ("samples", "nearest_reference"):
        for count in COUNTS:
            means = [
                np.mean(
                    [
                        r["psnr"]
                        for r in rows
                        if (r["method"], r["num_references"], r["scene"]) == (method, count, scene)
                    ]
                )
                for scene in SCENES
            ]
            found = summary["results"][method][str(count)]
            assert found["num_scenes"] == 3 and found["num_views"] == 3 * targets
            np.testing.assert_allclose(found["psnr"]["mean"], np.mean(means), rtol=1e-12)
            assert found["psnr"]["low"] < np.mean(means) < found["psnr"]["high"]
            np.testing.assert_allclose(
                [summary["per_scene"][method][str(count)][s]["psnr"] for s in SCENES],
                means,
                rtol=1e-12,
            )
    settings, consistency = summary["settings"], summary["consistency"]["results"]
    assert [consistency["true_views"][str(count)]["num_scenes"] for count in COUNTS] == [3, 3]
    assert settings["weights"]["trained_steps"] == 4 and settings["protocol"]["mode"] == "faithful"


def test_the_baseline_copies_the_reference_whose_camera_is_nearest(finished, request_for, tmp_path):
    protocol = request_for(tmp_path).source.open()
    rows = [json.loads(line) for line in (finished / "per_view.jsonl").read_text().splitlines()]
    used = set()
    for scene in SCENES:
        case = protocol.read(scene, 2, SIDE, "6dof")
        found = [
            r["psnr"]
            for r in rows
            if (r["scene"], r["num_references"], r["method"]) == (scene, 2, "nearest_reference")
        ]
        expected = []
        for target, truth in zip(case.target_c2w, case.truth, strict=True):
            distances = [np.linalg.norm(target[:3, 3] - ref[:3, 3]) for ref in case.reference_c2w]
            used.add(int(np.argmin(distances)))
            expected.append(psnr(case.reference_images[np.argmin(distances)], truth))
        np.testing.assert_allclose(found, np.array(expected), rtol=1e-6)  # 7 digits are written
    assert used == {0, 1}  # or the test would say little


def test_the_report_opens_offline_and_shows_every_number(finished):
    text = (finished / "report.html").read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r'@import|url\(|(src|href|action)="', text)
    assert "default-src 'none'" in text  # the browser itself refuses requests
    summary = json.loads((finished / "summary.json").read_text())
    values = [
        (name, value)
        for tables in (*summary["results"].values(), summary["gain_over_nearest_reference"])
        for of in tables.values()
        for name in ("psnr", "ssim")
        for value in of[name].values()
    ]
    values += [
        (name, value)
        for by_count in summary["per_scene"].values()
        for scenes in by_count.values()
        for of in scenes.values()
        for name, value in of.items()
    ]
    assert len(values) == 2 * 2 * (3 * 3 + 2 * 3)
    decimals = {"psnr": 2, "ssim": 4}
    missing = [value for name, value in values if f"{value:.{decimals[name]}f}" not in text]
    assert not missing
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))
    assert [scene["id"] for scene in data["scenes"]] == list(SCENES)
    assert all(uri.startswith("data:image/webp;base64,") for uri in data["images"])
    case = data["scenes"][0]["cases"]["2"]
    assert len(case["references"]) == 2 and len(case["targets"]) == 3


@pytest.mark.parametrize("share", [0.0, 0.31, 0.5, 0.99])
def test_a_job_cut_off_anywhere_continues_to_the_same_bytes(
    finished, request_for, evaluated, tmp_path, share
):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for name, kept in (("per_view.jsonl", share), ("consistency.jsonl", 1 - share)):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[: int(kept * len(whole))])
    for name in ("summary.json", "report.html", "views/box/N1/transforms.json"):
        (out / name).unlink()
    assert evaluated(request_for(out, save_views=True))
    assert written(out) == written(finished)


def test_a_damaged_line_is_named_and_its_case_done_again(
    finished, request_for, evaluated, tmp_path, caplog
):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    lines = (out / "per_view.jsonl").read_bytes().split(b"\n")
    lines[7] = lines[7].replace(b'"view"', b'"vi\x00w"')
    (out / "per_view.jsonl").write_bytes(b"\n".join(lines))
    with caplog.at_level(logging.WARNING, "escherjax.evaluate"):
        assert evaluated(request_for(out))
    assert "line 8 is damaged" in caplog.text and "'box' with N = 1" in caplog.text
    assert (out / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


def test_a_signal_stops_after_the_batch_and_exits_with_75(
    finished, pipe, weights, data, tmp_path, monkeypatch
):
    out = tmp_path / "out"

    def load(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        return pipe

    monkeypatch.setattr(loading, "load", load)
    assert evaluate.main(arguments(weights, data, out)) == EXIT_PREEMPTED
    assert results.case_names(results.read_all(out)) == {("ball", 1)}
    monkeypatch.setattr(loading, "load", lambda *_, **__: pipe)
    assert evaluate.main(arguments(weights, data, out)) == 0
    assert written(out) == written(finished)


def test_shards_together_equal_one_process(finished, request_for, evaluated, tmp_path):
    out = tmp_path / "out"
    assert not evaluated(request_for(out, shard=(0, 2)))
    assert not (out / "summary.json").exists()
    assert evaluated(request_for(out, shard=(1, 2)))
    assert (out / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()
    parts = [results.read_records(out / f"per_view.{i}.jsonl").records for i in (0, 1)]
    assert sorted(map(str, parts[0] + parts[1])) == sorted(map(str, results.read_all(finished)))
    assert len(parts[0]) == len(parts[1])


def test_eight_devices_and_larger_batches_equal_one(pipe, weights, request_for, tmp_path):
    """Scenes over two groups of devices, views over the four of each, a batch that is not full."""
    request = request_for(tmp_path / "out", batch_size=2, view_devices=4)
    assert request.scene_devices() == 2
    protocol = request.source.open()
    cases = [protocol.read(scene, 2, SIDE, "6dof") for scene in SCENES]
    settings = sampling.Sampling(num_steps=2, guidance_scale=1.0)
    alone = [sampling.sample_cases(pipe, [case], settings, 1)[0] for case in cases]
    many = run.load(request, weights)
    together = sampling.sample_cases(many, cases[:2], settings, 2)
    together += sampling.sample_cases(many, cases[2:], settings, 2)
    for one, other in zip(alone, together, strict=True):
        # float32: sums over views and channels are added in another order
        np.testing.assert_allclose(one, other, atol=2e-5)
        assert one.std() > 0.01
    assert np.abs(alone[0] - alone[1]).max() > 0.1


@pytest.mark.slow
def test_cases_of_unequal_numbers_of_targets_share_a_batch(pipe, request_for, tmp_path):
    protocol = request_for(tmp_path).source.open()
    cases = [protocol.read(scene, 2, SIDE, "6dof") for scene in SCENES[:2]]
    cases[0] = dataclasses.replace(cases[0], target_c2w=cases[0].target_c2w[:1])
    settings = sampling.Sampling(num_steps=2, guidance_scale=1.0)
    alone = [sampling.sample_cases(pipe, [case], settings, 1)[0] for case in cases]
    together = sampling.sample_cases(pipe, cases, settings, 2)
    assert [len(views) for views in together] == [1, 3]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)  # float32, as above


def test_guidance_is_what_the_weights_were_trained_for_unless_told(
    finished, pipe, request_for, evaluated, tmp_path
):
    unguided = copy.copy(pipe)
    unguided.facts = dataclasses.replace(pipe.facts, guidance_scale=1.0)
    request = request_for(tmp_path / "out", sampling=sampling.Sampling(num_steps=2))
    assert evaluated(request, pipe=unguided)
    assert json.loads((tmp_path / "out/settings.json").read_text()) == json.loads(
        (finished / "settings.json").read_text()
    )
    scores = [(out / "per_view.jsonl").read_bytes() for out in (tmp_path / "out", finished)]
    assert scores[0] == scores[1]


def test_other_settings_are_refused_with_the_list(finished, request_for, evaluated, tmp_path):
    with pytest.raises(UserError) as refusal:
        other = sampling.Sampling(num_steps=3, guidance_scale=1.0, seed=5)
        evaluated(request_for(finished, sampling=other))
    text = str(refusal.value)
    assert "sampling.num_steps: 3 was 2" in text and "sampling.seed: 5 was 0" in text
    assert "guidance" not in text
    (tmp_path / "photo.png").touch()
    with pytest.raises(UserError, match="not an evaluation to continue"):
        evaluated(request_for(tmp_path))


def test_a_scene_that_cannot_be_read_is_named_and_counted(
    data, request_for, evaluated, tmp_path, caplog
):
    broken = tmp_path / "scenes"
    shutil.copytree(data, broken)
    (broken / "box" / "002.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert evaluated(request_for(out, folder=broken, references=(2,)))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_skipped"] == 1 and summary["skipped"][0]["scene"] == "box"
    assert "002.png" in summary["skipped"][0]["reason"] and "'box'" in caplog.text
    assert summary["results"]["samples"]["2"]["num_scenes"] == 2
    assert "1 case could not be used" in (out / "report.html").read_text()
    # Mended, it is tried again
    shutil.copy(data / "box" / "002.png", broken / "box" / "002.png")
    assert evaluated(request_for(out, folder=broken, references=(2,)))
    assert json.loads((out / "summary.json").read_text())["num_skipped"] == 0


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--data", "nowhere"], "nowhere is not a directory"),
        (["--metrics", "psnr,beauty"], "psnr, ssim, lpips.*beauty"),
        (["--references", "1,9"], "no scene could be evaluated.*has 5 views"),
        (["--references", "0"], "at least 1"),
        (["--protocol", "gso26"], "gso25"),
        (["--mode", "lenient"], "faithful, corrected"),
        (["--batch-size", "0", "--limit", "0"], "--batch-size must.* got 0.*--limit must.* got 0"),
        (["--follow", "runs/x"], "one of --weights W and --follow WORKDIR must be given"),
        (["--merge"], "--merge takes no weights"),
        (["--weights", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_refused(pipe, weights, data, tmp_path, monkeypatch, more, reason):
    if "nowhere" not in reason:
        monkeypatch.setattr(loading, "load", lambda *_, **__: pipe)
    with pytest.raises(UserError, match=f"(?s){reason}"):
        evaluate.main(arguments(weights, data, tmp_path / "out", *more))


def follow_arguments(workdir, data, out, *more):
    return [
        "--follow",
        str(workdir),
        "--data",
        str(data),
        "--protocol",
        "heldout",
        "--references",
        "2",
        "--metrics",
        "psnr",
        "--steps",
        "2",
        "--guidance",
        "1",
        "--batch-size",
        "1",
        "--follow-poll-sec",
        "0.01",
        "--out",
        str(out),
        *more,
    ]


@pytest.fixture(scope="module")
def followed(workdir, pipe, data, tmp_path_factory):
    """(output folder, log) of a run followed to step 4; checkpoint 3 was deleted half."""
    out = tmp_path_factory.mktemp("evaluate") / "followed"
    shutil.copytree(workdir / "checkpoints" / "2", workdir / "checkpoints" / "3")
    shutil.rmtree(workdir / "checkpoints" / "3" / "weights")

    def load(*given, really=loading.load, **more):
        loaded, fresh = copy.copy(pipe), really(*given, **more)  # with its compiled programs
        loaded.params, loaded.facts = fresh.params, fresh.facts
        return loaded

    log = logging.getLogger("escherjax.evaluate")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log.addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", load)
        assert evaluate.main(follow_arguments(workdir, data, out, "--follow-until-step", "4")) == 0
    log.removeHandler(handler)
    shutil.rmtree(workdir / "checkpoints" / "3")
    return out, said


def test_every_whole_checkpoint_is_evaluated_once(followed):
    out, said = followed
    rows = [json.loads(line) for line in (out / "follow.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    values = []
    for row in rows:
        summary = json.loads((out / row["folder"] / "summary.json").read_text())
        assert summary["settings"]["weights"]["trained_steps"] == row["step"]
        assert row["results"] == summary["results"]
        values.append(row["results"]["samples"]["2"]["psnr"]["mean"])
    assert values[0] != values[1]  # of other weights, though the programs are the same
    assert any("checkpoints/3 is damaged; skipped" in line for line in said)
    page = (out / "report.html").read_text()
    assert "over training" in page and '"step_00000002/report.html"' in page
    assert "http" not in page.replace("http-equiv", "")


def test_followed_again_nothing_is_computed(followed, workdir, data, monkeypatch):
    out, _ = followed
    before = (out / "follow.jsonl").read_bytes()

    def load(*_):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(run, "load", load)
    assert evaluate.main(follow_arguments(workdir, data, out, "--follow-until-step", "4")) == 0
    assert (out / "follow.jsonl").read_bytes() == before


def test_other_settings_do_not_join_the_curve(followed, workdir, data):
    out, _ = followed
    with pytest.raises(UserError, match="sampling.num_steps: 7 was 2"):
        evaluate.main(follow_arguments(workdir, data, out, "--steps=7", "--follow-until-step=4"))


def test_a_checkpoint_deleted_before_it_is_read_is_skipped(workdir, data, tmp_path, caplog):
    source = Source("heldout", data, reference_counts=(1,))
    request = sampling.Request(source, tmp_path / "out", metrics=("psnr",))
    follower = follow._Follower(request, workdir, Stop())
    assert not follower.evaluate(77)
    assert "77 was deleted before it could be read; skipped" in caplog.text


def test_waiting_for_a_checkpoint_ends_with_a_signal(followed, workdir, data, monkeypatch):
    """Step 6, the training's last, is not there yet."""
    out, _ = followed
    waits = []

    def wait(stop, seconds):
        waits.append(seconds)
        stop.notice(15, None)
        return True

    monkeypatch.setattr(Stop, "wait", wait)
    assert evaluate.main(follow_arguments(workdir, data, out)) == EXIT_PREEMPTED
    assert waits == [0.01]
