"""Two processes with four devices each, as two hosts: the numbers of one process with eight."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from escherjax.train.loop import train
from tests.helpers.finished_runs import final_state
from tests.helpers.patience import PATIENCE_SEC, wait_until
from tests.helpers.tiny import tiny_arguments, tiny_config

SCRIPT = "launch/local_multiprocess.sh"
FIELDS = {
    "num_steps": 4,
    "num_targets": 4,
    "unet__attention": "(False,)",
    "optimizer__eps": 1e-4,
    "optimizer__initial_lr": 1e-3,
    "mesh__data": 2,
    "mesh__fsdp": 2,
    "mesh__view": 2,
}
HELDOUT = {"sample_every_steps": 4, "eval_every_steps": 4, "eval__num_sampling_steps": 1}


def start(num_processes, devices_each, workdir, logs, **changes):
    command = [
        SCRIPT,
        str(num_processes),
        str(devices_each),
        "--",
        "--config",
        "configs/6dof.py:smoke",
        "--workdir",
        str(workdir),
        *tiny_arguments(**changes),
    ]
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "LOGS": str(logs),
        "XLA_FLAGS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def metrics(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    names = ("step", "loss", "grad_norm", "lr", "heldout/psnr_n2")
    return [{name: row[name] for name in names if name in row} for row in rows]


def trainers_of(process):
    """Process ids of the training processes that the script has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [pid for pid in children.read_text().split() if is_training(pid)]


def is_training(pid):
    command = Path(f"/proc/{pid}/cmdline")
    return command.exists() and b"escherjax.train" in command.read_bytes()


@pytest.mark.usefixtures("compiled_fast")
@pytest.mark.parametrize("heldout", [{}, pytest.param(HELDOUT, marks=pytest.mark.slow)], ids=len)
def test_two_processes_compute_what_one_does(tmp_path, heldout):
    """And what they saved together opens in one. Tolerance: float32 sums in another order."""
    fields = {**FIELDS, **heldout}
    process = start(2, 4, tmp_path / "two", tmp_path / "logs", **fields, mesh__dcn_data=2)
    assert train(tiny_config(**fields), tmp_path / "one") == 0
    _, errors = process.communicate(timeout=PATIENCE_SEC)
    assert process.returncode == 0, errors
    assert "2 hosts x 4 devices" in (tmp_path / "logs" / "process_0.log").read_text()

    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [row["step"] for row in two] == ([1, 2, 3, 4, 4] if heldout else [1, 2, 3, 4])
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert (tmp_path / "two/samples/step_00000004.png").exists() == bool(heldout)
    saved, expected = (final_state(tmp_path / name) for name in ("two", "one"))
    for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_when_one_process_dies_the_others_are_ended(tmp_path):
    process = start(2, 1, tmp_path / "run", tmp_path / "logs", num_steps=10**6, mesh__data=2)
    while len(trainers := trainers_of(process)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(int(trainers[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE_SEC)
    assert process.returncode == 128 + signal.SIGKILL
    assert "a process ended with exit code 137; ending the others" in errors
    wait_until(lambda: not any(is_training(pid) for pid in trainers))


def test_a_wrong_call_of_the_script_shows_how_to_call_it():
    done = subprocess.run([SCRIPT, "two", "4"], capture_output=True, text=True)
    assert done.returncode == 2 and "N_PROCESSES DEVICES_EACH" in done.stderr
