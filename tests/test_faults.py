"""Faults, each by doing it to a run: what it says, how it exits, what is left of its work."""

import asyncio
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from escherjax import files
from escherjax.devices.stopping import Stop, stop_signals
from escherjax.errors import TrainingError, UserError
from escherjax.train.__main__ import main
from escherjax.train.loop import train
from escherjax.train.watch import ProfileWindow
from escherjax.train.writers import MetricWriter
from escherjax.weights import integrity, run_params, runs
from tests.helpers.finished_runs import final_state
from tests.helpers.patience import PATIENCE_SEC, wait_until
from tests.helpers.tiny import tiny_config
from tests.helpers.training_process import (
    arguments,
    finish,
    launch,
    one_device_environment,
    start,
    wait_for,
)

SHORT = {"num_steps": 12, "checkpoint_every_steps": 4}
ENDLESS = {"num_steps": 10**6}
REPORTING = {"num_steps": 4, "log_every_steps": 1, "eval_every_steps": 4, "sample_every_steps": 4}
ON_ALL_DEVICES = {"mesh__data": 1, "mesh__fsdp": -1, "batch_size": 8}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return one_device_environment(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, environment):
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    code, output = finish(start(workdir, environment, **SHORT))
    assert code == 0, output
    return workdir


def params_of(workdir, step):
    stored = run_params.open_checkpoint(workdir, weights="raw")
    assert stored.step == step
    return stored.read(stored.shapes)


def catches(process, number):
    """Whether the process has a handler for the signal (Linux)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


def test_a_stop_while_the_program_still_loads_exits_with_75(tmp_path, environment):
    process = start(tmp_path / "run", environment, **SHORT)
    wait_until(lambda: catches(process, signal.SIGTERM), lambda: process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75 and "stopped by a signal before the first update" in output, output
    assert not (tmp_path / "run").exists()


def test_a_stop_while_scenes_are_rendered_exits_with_75_and_leaves_nothing(tmp_path, environment):
    workdir = tmp_path / "runs" / "run"
    process = start(workdir, environment, data__num_scenes=10**6)  # hours
    wait_for(workdir / "run.lock", process)  # from here on, rendering is what takes time
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75 and "stopped by a signal before the first update" in output, output
    assert "Traceback" not in output and list(tmp_path.iterdir()) == []


# Python, before the command: the terminal becomes that of the process, as of one started in it.
OF_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(2, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def start_in_terminal(workdir, environment, **changes):
    """(process, descriptor whose closing closes the terminal)."""
    master, terminal = os.openpty()
    command = [sys.executable, "-c", OF_TERMINAL, "-m", "escherjax.train"]
    process = subprocess.Popen(
        [*command, *arguments(workdir, **changes)],
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    return process, master


def test_a_closed_terminal_saves_and_exits_with_75(tmp_path, environment):
    workdir = tmp_path / "run"
    process, terminal = start_in_terminal(workdir, environment, **ENDLESS)
    wait_until((workdir / "checkpoints" / "10").exists, lambda: process.poll() is not None)
    os.close(terminal)
    assert process.wait(PATIENCE_SEC) == 75
    (*_, last) = integrity.steps(workdir)
    assert integrity.find_problems(workdir / "checkpoints" / str(last)) == []


def test_a_hangup_that_is_ignored_from_the_start_does_not_stop_a_run():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.heard
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_stop_while_compiling_saves_what_there_is_and_exits_with_75(tmp_path, environment):
    process = start(tmp_path / "run", environment, **SHORT)
    for line in process.stdout:
        if "compiling the training step" in line:
            break
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75, output
    reached = int(output.split("stopped by a signal at step ")[1].split(";")[0])
    assert integrity.steps(tmp_path / "run") == ([reached] if reached else [])


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(
    tmp_path, environment, unbroken
):
    workdir = shutil.copytree(unbroken, tmp_path / "run")
    folder = workdir / "checkpoints" / "12"
    file = max(folder.glob("weights/**/d/*"), key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    code, output = finish(start(workdir, environment, **SHORT))
    assert code == 0, output
    assert f"{file.relative_to(workdir)}: CRC-32" in output
    assert "going back to checkpoint 8" in output and "continuing from checkpoint 8" in output
    assert (workdir / "checkpoints" / "12.damaged").is_dir()
    ours, theirs = params_of(workdir, 12), params_of(unbroken, 12)
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path])


def test_a_second_run_is_refused_and_a_vanished_folder_ends_the_first(tmp_path, environment):
    workdir = tmp_path / "run"
    process = start(workdir, environment, **ENDLESS)
    wait_for(workdir / "checkpoints" / "10", process)
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match=f"in use by another run: process {process.pid} on "):
        main(arguments(workdir, **ENDLESS, **ON_ALL_DEVICES))
    assert (workdir / "config.json").read_bytes() == before and process.poll() is None

    workdir.rename(tmp_path / "moved")
    code, output = finish(process)
    assert code == 1, output
    assert f"stopped: the work directory {workdir} is gone" in output
    assert integrity.steps(workdir) == []  # though folders may have been made anew
    assert integrity.steps(tmp_path / "moved")


def test_a_full_disk_ends_the_run_with_a_message(tmp_path, environment, unbroken):
    """Files above 64 KiB cannot be written, as if the disk were full there."""
    workdir = shutil.copytree(unbroken, tmp_path / "run")
    limited = (
        "import resource, runpy; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, resource.RLIM_INFINITY)); "
        "runpy.run_module('escherjax.train', run_name='__main__')"
    )
    command = [sys.executable, "-c", limited, *arguments(workdir, num_steps=30)]
    code, output = finish(launch(command, environment))
    assert code == 1 and "no space is left there, or a quota or limit" in output, output
    assert integrity.steps(workdir) == integrity.steps(unbroken)
    assert all(
        not integrity.find_problems(workdir / "checkpoints" / str(step))
        for step in integrity.steps(workdir)
    )


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system of 16 MiB on which so many are free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")

    def fill(free_mib):
        with (folder / "fill").open("wb") as file:
            file.write(bytes(shutil.disk_usage(folder).free - int(free_mib * 2**20)))
        return folder

    yield fill
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_by_one_message(small_disk, environment):
    workdir = small_disk(7) / "run"
    code, output = finish(start(workdir, environment, num_steps=12, checkpoint_every_steps=1))
    assert code == 1 and output.count("no space is left there") == 1, output
    assert output.count("Traceback") == output.count("RESOURCE_EXHAUSTED") == 0, output


def test_futures_of_failed_writes_are_not_told_and_others_are(caplog):
    files.report_failed_saves_once()
    loop = asyncio.new_event_loop()
    for text in ("Failed to write to file 8: No space left on device", "of another kind"):
        loop.create_future().set_exception(ValueError(text))  # nobody holds it
    loop.close()
    gc.collect()
    assert [str(record.exc_info[1]) for record in caplog.records] == ["of another kind"]


def test_a_run_refused_by_a_full_disk_leaves_nothing(small_disk):
    folder = small_disk(0)
    with pytest.raises(TrainingError, match="no space is left there"):
        train(tiny_config(**ON_ALL_DEVICES), folder / "run")
    assert [path.name for path in folder.iterdir()] == ["fill"]


def test_an_unusable_place_is_told_before_data_is_looked_for(tmp_path):
    """/sys takes no folders, not even from root."""
    config = tiny_config(**ON_ALL_DEVICES, data__source="nowhere")
    with pytest.raises(UserError, match="/sys/run cannot be used: writing is not allowed there"):
        train(config, Path("/sys/run"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="leads through .*/file, which is a file"):
        train(config, tmp_path / "file" / "run")


def test_a_refused_run_leaves_a_folder_as_it_was(tmp_path):
    config = tiny_config(**ON_ALL_DEVICES, data__source="nowhere")
    (tmp_path / "empty").mkdir()
    for workdir in (tmp_path / "empty", tmp_path / "deep" / "run"):
        with pytest.raises(UserError, match="nowhere"):
            train(config, workdir)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_folder_that_vanished_is_told_at_the_next_line_of_the_log(tmp_path):
    config = tiny_config()
    runs.prepare_workdir(tmp_path / "run", config)
    writer = MetricWriter(tmp_path / "run", 0, config)
    writer.write(1, {"loss": 1.0})
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(TrainingError, match="is gone"):
        writer.write(2, {"loss": 1.0})
    writer.close()


@pytest.mark.parametrize("rotate", [Path.unlink, lambda path: path.rename(f"{path}.1")])
def test_logs_that_are_rotated_or_removed_are_opened_anew_and_that_is_said_once(
    tmp_path, caplog, rotate
):
    config = tiny_config()
    runs.prepare_workdir(tmp_path, config)
    writer = MetricWriter(tmp_path, 0, config)
    writer.write(1, {"loss": 1.0})
    for step in (2, 3):
        for path in (tmp_path / "metrics.jsonl", *tmp_path.glob("events.out.tfevents.*")):
            if not path.name.endswith(".1"):
                rotate(path)
        writer.write(step, {"loss": float(step)})
        assert rows_of(tmp_path) == [{"step": step, "loss": float(step)}]
        boards = [f for f in tmp_path.glob("events*") if not f.name.endswith(".1")]
        assert len(boards) == 1 and boards[0].stat().st_size > 0
    assert caplog.text.count("metrics.jsonl") == 1
    (tmp_path / "metrics.jsonl").unlink()
    assert not writer.has_heldout(3)
    writer.plot_loss()
    writer.close()


def test_a_run_goes_on_where_its_logs_and_pictures_were_removed(tmp_path):
    config = tiny_config(**{**REPORTING, **ON_ALL_DEVICES, "sample_every_steps": 1})
    workdir, seen = tmp_path / "run", []

    class Removing(Stop):
        def requested(self):
            for path in (workdir / "metrics.jsonl", *workdir.glob("events*")):
                path.unlink(missing_ok=True)
            seen.append((workdir / "samples").exists())
            shutil.rmtree(workdir / "samples", ignore_errors=True)
            return super().requested()

    assert train(config, workdir, Removing()) == 0
    assert any(seen) and [f.name for f in (workdir / "samples").iterdir()] == ["step_00000004.png"]
    assert rows_of(workdir)[-1]["step"] == 4


def link_to_itself(path):
    path.symlink_to(path)


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/12"])
@pytest.mark.parametrize("put", [Path.touch, link_to_itself])
def test_what_stands_where_a_checkpoint_will_go_is_refused_at_the_start(tmp_path, name, put):
    config = tiny_config(**ON_ALL_DEVICES)
    runs.prepare_workdir(tmp_path, config)
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    put(place)
    with pytest.raises(UserError, match=f"{place} .*must be a folder"):
        train(config, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_disk_without_room_for_one_checkpoint_is_refused_at_the_start(tmp_path, monkeypatch):
    config = tiny_config(**ON_ALL_DEVICES)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**10))
    with pytest.raises(TrainingError, match="0 MiB free, and a checkpoint takes [1-9]"):
        train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_lines_of_the_log_that_cannot_be_read_are_dropped_and_counted(tmp_path, caplog):
    config = tiny_config()
    runs.prepare_workdir(tmp_path, config)
    whole = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 2, "heldout/psnr_n2": 9.0},
    ]
    lines = [json.dumps(row).encode() for row in whole]
    broken = [b'{"loss": 3.0}', b'{"step": 1, "lo\xff": 1', b"", b"7", b'{"step": "1"}', b'{"st']
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([lines[0], *broken[:5], *lines[1:], b'{"step": 3}', broken[5]]))
    writer = MetricWriter(tmp_path, 2, config)
    assert "6 lines of" in caplog.text and len(caplog.records) == 1
    assert rows_of(tmp_path) == whole
    with path.open("ab") as file:  # while the run is on
        file.write(b"\xff\n[]\n")
    assert writer.has_heldout(2) and not writer.has_heldout(1)
    writer.plot_loss()
    assert (tmp_path / "loss.png").is_file()
    writer.close()


def test_a_profile_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "profile").touch()  # no folder can be made there
    window = ProfileWindow(tiny_config(profile__start_step=1, profile__num_steps=1), tmp_path)
    window.at(0, ())
    window.at(1, ())
    assert "the profile could not be written to" in caplog.text


def test_a_profile_whose_updates_are_done_already_is_told(tmp_path, caplog):
    ProfileWindow(tiny_config(profile__start_step=5), tmp_path, done=4)
    ProfileWindow(tiny_config(profile__start_step=0), tmp_path, done=4)
    assert not caplog.records
    ProfileWindow(tiny_config(profile__start_step=4), tmp_path, done=4)
    assert "4 updates are done already; it must be at least 5" in caplog.text


@pytest.fixture(scope="module")
def watched(tmp_path_factory, environment):
    """A run whose wall clock jumps by days at every look, with all there is to watch."""
    workdir = tmp_path_factory.mktemp("watched") / "run"
    jumping = (
        "import itertools, runpy, time; clock, looks = time.time, itertools.count(); "
        "time.time = lambda: clock() + 86400 * (-1) ** next(looks); "
        "runpy.run_module('escherjax.train', run_name='__main__')"
    )
    fields = arguments(workdir, **REPORTING, profile__start_step=2, profile__num_steps=2)
    code, output = finish(launch([sys.executable, "-c", jumping, *fields], environment))
    assert code == 0, output
    return workdir


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_durations_do_not_follow_the_wall_clock(watched):
    rows = [row for row in rows_of(watched) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        # A jump of a day would make it negative, or below a step in ten minutes.
        assert row["steps_per_sec"] > 1 / 600 and 0 <= row["data_wait_frac"] <= 1
        assert 0 < row["host_memory_gib"] < 1000


@pytest.mark.slow
def test_the_profiler_window_is_written(watched):
    assert list((watched / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_run_killed_between_saving_and_reporting_catches_up(watched, environment, tmp_path):
    workdir = shutil.copytree(watched, tmp_path / "run")
    picture = workdir / "samples" / "step_00000004.png"
    complete, pixels = rows_of(workdir), picture.read_bytes()
    losses = [row for row in complete if "loss" in row]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in losses))
    picture.unlink()
    code, output = finish(start(workdir, environment, **REPORTING))
    assert code == 0, output
    assert rows_of(workdir) == complete
    assert picture.read_bytes() == pixels


def start_two(workdir, environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fields = arguments(workdir, **ENDLESS, mesh__fsdp=-1)
    together = {"ESCHERJAX_COORDINATOR": f"127.0.0.1:{port}", "ESCHERJAX_NUM_PROCESSES": "2"}
    return [
        launch(
            [sys.executable, "-m", "escherjax.train", *fields],
            environment | together | {"ESCHERJAX_PROCESS_ID": str(index)},
        )
        for index in range(2)
    ]


@pytest.mark.slow
def test_two_hosts_stop_after_the_same_update_whichever_is_told(tmp_path, environment):
    workdir = tmp_path / "run"
    hosts = start_two(workdir, environment)
    wait_for(workdir / "checkpoints" / "10", hosts[0])
    hosts[1].send_signal(signal.SIGTERM)
    for process in hosts:
        code, output = finish(process)
        assert code == 75, output
        reached = int(output.split("stopped by a signal at step ")[1].split(";")[0])
        assert reached == integrity.steps(workdir)[-1]
    state = final_state(workdir)  # on one host and one device
    assert int(state.step) == reached


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_host_ends_the_others_with_a_message(tmp_path, environment, victim):
    workdir = tmp_path / "run"
    hosts = start_two(workdir, environment)
    wait_for(workdir / "checkpoints" / "10", hosts[0])
    hosts[victim].kill()
    code, output = finish(hosts[1 - victim])  # which does not wait for ever
    assert code not in (0, 75) and ("another host died" in output or "another task" in output)
    hosts[victim].communicate()
    newest = integrity.steps(workdir)[-1]
    assert not integrity.find_problems(workdir / "checkpoints" / str(newest))
