"""Several hosts, as processes with one device each: what is wrong on one of them ends all, told."""

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from escherjax.data.procedural import ProceduralSource
from tests.helpers.patience import PATIENCE_SEC
from tests.helpers.scenes import write_shards
from tests.helpers.training_process import arguments, finish, one_device_environment, wait_for

REPOSITORY = Path(__file__).resolve().parent.parent
FIELDS = {"num_steps": 2, "mesh__fsdp": -1}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return one_device_environment(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def start(tmp_path, environment):
    """A function that starts host `index` of two; what is left of them is ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []

    def start_host(index, code=REPOSITORY, cwd=REPOSITORY, variables=None, **changes):
        fields = arguments(tmp_path / "run", **{**FIELDS, **changes})
        fields[1] = str(REPOSITORY / fields[1])
        together = {
            "ESCHERJAX_COORDINATOR": f"127.0.0.1:{port}",
            "ESCHERJAX_NUM_PROCESSES": "2",
            "ESCHERJAX_PROCESS_ID": str(index),
            "PYTHONPATH": str(code),
            "PYTHONSAFEPATH": "1",  # code comes from there, not from cwd
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "escherjax.train", *fields],
            env=environment | together | (variables or {}),
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        processes.append(process)
        return process

    yield start_host
    for process in processes:
        process.kill()
        process.communicate()


def refusal(process):
    """The message of a process that refuses, without a traceback, before it is too late."""
    output, _ = process.communicate(timeout=PATIENCE_SEC)
    assert process.returncode == 2, output
    assert "Traceback" not in output and "compiling" not in output
    assert output.count("error: ") == 1, output
    return output


def test_hosts_with_other_configs_are_refused_with_the_fields_that_differ(tmp_path, start):
    for process in [start(0), start(1, seed=7, num_steps=3)]:
        output = refusal(process)
        assert "host 0 -> host 1, config.num_steps: 2 -> 3" in output
        assert "host 0 -> host 1, config.seed: 42 -> 7" in output
    assert not (tmp_path / "run").exists()


def test_hosts_with_other_code_are_refused(tmp_path, start):
    for folder in ("escherjax", "configs"):
        shutil.copytree(REPOSITORY / folder, tmp_path / "copy" / folder)
    with (tmp_path / "copy" / "escherjax" / "cape.py").open("a") as file:
        file.write("# changed\n")
    for process in [start(0), start(1, code=tmp_path / "copy")]:
        assert "host 0 -> host 1, source of the code: " in refusal(process)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("refused", [0, 1])
def test_a_user_error_of_one_host_ends_all_with_its_message(tmp_path, start, refused):
    """A data set that one of them does not see."""
    scenes = ProceduralSource(seed=0, num_scenes=16, num_views=6, resolution=16)
    write_shards(tmp_path / "sees" / "data", scenes)
    (tmp_path / "blind").mkdir()
    cwds = [tmp_path / ("blind" if index == refused else "sees") for index in range(2)]
    processes = [start(index, cwd=cwd, data__source="data") for index, cwd in enumerate(cwds)]
    outputs = [refusal(process) for process in processes]
    own = outputs[refused].partition("error: ")[2].strip()
    assert own.startswith("data "), own
    assert f"error: host {refused}: {own}" in outputs[1 - refused]
    assert not (tmp_path / "run").exists()


def test_a_host_that_is_busy_for_long_is_ended_with_the_message_of_the_one_that_failed(
    tmp_path, start
):
    """One renders scenes for minutes, the other does not see the data beside them."""
    scenes = ProceduralSource(seed=0, num_scenes=16, num_views=6, resolution=16)
    write_shards(tmp_path / "sees" / "data", scenes)
    (tmp_path / "blind").mkdir()
    fields = {"data__source": "data,procedural", "data__num_scenes": 100_000}
    processes = [
        start(index, cwd=tmp_path / name, **fields) for index, name in enumerate(("sees", "blind"))
    ]
    busy, failed = (refusal(process) for process in processes)
    assert "error: data " in failed and "error: host 1: data " in busy


def test_hosts_with_other_numbers_of_devices_are_refused(start):
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    for process in [start(0), start(1, variables=two)]:
        assert "different numbers of devices (host 0 has 1, host 1 has 2)" in refusal(process)


@pytest.mark.parametrize("index", [0, 1])
def test_a_host_that_never_comes_is_told_at_once_and_when_it_is_too_late(start, index):
    process = start(index, variables={"ESCHERJAX_JOIN_SECONDS": "3"})
    output = refusal(process)
    waiting, _, late = output.partition("error: ")
    assert "waiting for 2 processes at 127.0.0.1:" in waiting
    assert "waited 3 s for 2 processes at 127.0.0.1:" in late


def test_a_stop_while_scenes_are_rendered_ends_all_hosts_before_they_compile(tmp_path, start):
    hosts = [start(index, data__num_scenes=300) for index in range(2)]
    wait_for(tmp_path / "run" / "run.lock", hosts[0])
    hosts[1].send_signal(signal.SIGTERM)
    for process in hosts:
        code, output = finish(process)
        assert code == 75, output
        assert "compiling" not in output and "before the first update" in output
    assert not (tmp_path / "run").exists()
