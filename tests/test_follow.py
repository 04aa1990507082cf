"""Following a training run: each checkpoint is evaluated, and those that vanish are passed over."""

import json
import logging
import shutil

import pytest
from noise_scenes import write_scene
from tiny_workdir import write_workdir

from escherjax import evaluate
from escherjax.errors import EXIT_PREEMPTED, UserError
from escherjax.evaluation import follow, run
from escherjax.training.stopping import Stop


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("follow") / "scenes"
    for seed in range(2):
        write_scene(folder / f"scene{seed}", seed)
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Checkpoints 2 and 4 that are whole, 3 that was deleted half, as a reader may find it."""
    folder = tmp_path_factory.mktemp("follow") / "run"
    write_workdir(folder, latents__kind="pixels", latents__patch=4)
    shutil.copytree(folder / "checkpoints" / "2", folder / "checkpoints" / "3")
    shutil.rmtree(folder / "checkpoints" / "3" / "weights")
    return folder


def arguments(workdir, data, out, *more):
    return ["--follow", str(workdir), "--data", str(data), "--protocol", "heldout",
            "--references", "1", "--metrics", "psnr", "--steps", "1", "--batch-size", "1",
            "--follow-poll-sec", "0.01", "--out", str(out), *more]  # fmt: skip


@pytest.fixture(scope="module")
def followed(workdir, data, tmp_path_factory):
    """(output folder, log) of a run followed to step 4."""
    out = tmp_path_factory.mktemp("follow") / "out"
    log = logging.getLogger("escherjax.evaluate")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log.addHandler(handler)
    assert evaluate.main(arguments(workdir, data, out, "--follow-until-step", "4")) == 0
    log.removeHandler(handler)
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
        values.append(row["results"]["samples"]["1"]["psnr"]["mean"])
    assert values[0] != values[1]  # of other weights, though the programs are the same
    assert any("checkpoints/3 is damaged; skipped" in line for line in said)
    page = (out / "report.html").read_text()
    assert "over training" in page and 'href="step_00000002/report.html"' in page
    assert "http" not in page.replace("http-equiv", "")


def test_followed_again_nothing_is_computed(followed, workdir, data, monkeypatch):
    out, _ = followed
    before = (out / "follow.jsonl").read_bytes()

    def load(*_):
        raise AssertionError("weights were loaded")

    shutil.rmtree(workdir / "checkpoints" / "3")
    monkeypatch.setattr(run, "load", load)
    assert evaluate.main(arguments(workdir, data, out, "--follow-until-step", "4")) == 0
    assert (out / "follow.jsonl").read_bytes() == before


def test_other_settings_do_not_join_the_curve(followed, workdir, data):
    out, _ = followed
    with pytest.raises(UserError, match="sampling.num_steps: 7 was 1"):
        evaluate.main(arguments(workdir, data, out, "--follow-until-step", "4", "--steps", "7"))


def test_a_checkpoint_deleted_before_it_is_read_is_skipped(workdir, data, tmp_path, caplog):
    request = run.Request("heldout", str(data), tmp_path / "out", references=(1,),
                          metrics=("psnr",))  # fmt: skip
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
    assert evaluate.main(arguments(workdir, data, out)) == EXIT_PREEMPTED
    assert waits == [0.01]


def test_a_folder_that_is_no_training_run_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="needed a training work directory"):
        evaluate.main(arguments(tmp_path, data, tmp_path / "out"))
