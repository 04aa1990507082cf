"""Who started this process: by environment, and by real processes that join."""

import socket
import subprocess
import sys

import pytest

from escherjax.devices import startup
from escherjax.devices.startup import Launch, check_arrivals, detect
from escherjax.errors import UserError
from tests.helpers.patience import PATIENCE_SEC

OURS = {
    "ESCHERJAX_COORDINATOR": "host0:1234",
    "ESCHERJAX_NUM_PROCESSES": "4",
    "ESCHERJAX_PROCESS_ID": "0",
}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NODELIST": "gpu[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
}
GKE = {
    "TPU_WORKER_HOSTNAMES": "a,b,c,d",
    "TPU_WORKER_ID": "1",
    "JOB_COMPLETION_INDEX": "1",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"ESCHERJAX_NUM_PROCESSES": "1"},
        {"SLURM_JOB_ID": "7"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
    ],
)
def test_one_process_joins_nothing(environment):
    launch = detect(environment)
    assert launch.arguments is None
    assert launch.num_processes == 1


def test_our_variables_are_passed_on_and_go_before_a_scheduler():
    launch = detect({**SLURM, **OURS})
    assert launch.num_processes == 4
    assert launch.arguments == {
        "coordinator_address": "host0:1234",
        "num_processes": 4,
        "process_id": 0,
        "cluster_detection_method": "deactivate",
    }


@pytest.mark.parametrize(
    ("environment", "by", "processes"),
    [
        (SLURM, "Slurm", 16),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI", 2),
        (GKE, "GKE on TPU", 4),
        ({**GKE, "MEGASCALE_NUM_SLICES": "3"}, "GKE on TPU", 12),
    ],
)
def test_launchers_are_known_by_what_they_leave(environment, by, processes):
    assert detect(environment) == Launch(by, {}, processes)


def test_a_tpu_machine_asks_the_cloud_unless_another_platform_is_wanted():
    assert detect({}, has_tpu=True) == Launch("Cloud TPU", {})
    for variables in ({"JAX_PLATFORMS": "cpu"}, {"TPU_SKIP_MDS_QUERY": "1"}):
        assert detect(variables, has_tpu=True).arguments is None


ONE_GKE_HOST = {
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_SKIP_MDS_QUERY": "true",
    "JOB_COMPLETION_INDEX": "0",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
}


def test_a_tpu_slice_of_one_host_is_no_job_that_kubernetes_must_be_asked_about(monkeypatch):
    monkeypatch.setattr(startup.importlib.util, "find_spec", lambda name: None)
    for has_tpu in (True, False):
        assert detect(ONE_GKE_HOST, has_tpu) == Launch("GKE on TPU", None, 1)
    unnamed = {k: v for k, v in ONE_GKE_HOST.items() if k != "TPU_WORKER_HOSTNAMES"}
    assert detect(unnamed, has_tpu=True) == Launch("itself, on one TPU host", None, 1)
    with pytest.raises(UserError, match="pip install"):  # processes on CPUs are not the slice
        detect({**unnamed, "JAX_PLATFORMS": "cpu"}, has_tpu=True)


def test_promised_devices_are_slurms_or_ours():
    assert detect({**SLURM, "SLURM_GPUS_ON_NODE": "8"}).num_devices == 16
    assert detect({"ESCHERJAX_EXPECTED_DEVICES": "4"}).num_devices == 4


def test_a_slurm_job_without_srun_is_refused():
    with pytest.raises(UserError, match="16 tasks.*start it by srun"):
        detect({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"})


def test_a_job_of_kubernetes_without_its_package_is_refused(monkeypatch):
    monkeypatch.setattr(startup.importlib.util, "find_spec", lambda name: None)
    pods = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    with pytest.raises(UserError, match="pip install"):
        detect(pods)
    assert detect({**pods, "ESCHERJAX_NUM_PROCESSES": "1"}).arguments is None


def test_every_contradiction_is_named():
    with pytest.raises(UserError) as error:
        detect(
            {
                "ESCHERJAX_NUM_PROCESSES": "x",
                "ESCHERJAX_PROCESS_ID": "-1",
                "ESCHERJAX_EXPECTED_DEVICES": "0",
            }
        )
    for part in (
        "NUM_PROCESSES must be a whole number from 1 on, got 'x'",
        "PROCESS_ID must be a whole number from 0 on, got '-1'",
        "EXPECTED_DEVICES must be a whole number from 1 on, got '0'",
        "ESCHERJAX_COORDINATOR missing",
    ):
        assert part in str(error.value)
    with pytest.raises(UserError, match="PROCESS_ID must be below .*got 4"):
        detect({**OURS, "ESCHERJAX_PROCESS_ID": "4"})
    with pytest.raises(UserError, match="must be HOST:PORT, got 'host0'"):
        detect({**OURS, "ESCHERJAX_COORDINATOR": "host0"})


def test_what_came_is_compared_with_what_was_promised():
    check_arrivals(Launch("a test", num_processes=1, num_devices=8))
    with pytest.raises(UserError, match="2 processes were promised, 1 came; 4 devices .* 8 came"):
        check_arrivals(Launch("a test", num_processes=2, num_devices=4))


PROGRAM = """
import os, sys
from escherjax.errors import run_command

def main(argv):
    from escherjax.devices import startup
    startup.initialize()
    import jax
    from jax.experimental import multihost_utils
    print(int(multihost_utils.process_allgather(jax.numpy.array(jax.process_index() + 1)).sum()))

run_command(main, [])
"""


@pytest.mark.parametrize(("expected", "code"), [(2, 0), (3, 2)])
def test_two_processes_join_and_miss_a_third_device(expected, code):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": ":".join(sys.path),
                "JAX_PLATFORMS": "cpu",
                "ESCHERJAX_COORDINATOR": f"localhost:{port}",
                "ESCHERJAX_NUM_PROCESSES": "2",
                "ESCHERJAX_PROCESS_ID": str(index),
                "ESCHERJAX_EXPECTED_DEVICES": str(expected),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=PATIENCE_SEC)
        assert process.returncode == code, err
        assert "2 processes x 1 devices" in err
        if code:
            assert "3 devices were promised, 2 came" in err
        else:
            assert out.strip().endswith("3")  # (0 + 1) + (1 + 1)
