"""Joins the processes of a run, whoever started them, and checks that all of them arrived.

One program serves one machine and many: the environment that a launcher leaves tells them apart.
JAX's own cluster detection finds addresses and numbers; this module decides whether there is
anything to join, and compares what was promised with what was found.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from escherjax.devices import hosts
from escherjax.errors import UserError, report

log = logging.getLogger("escherjax.startup")

ENV_VARS = ("ESCHERJAX_COORDINATOR", "ESCHERJAX_NUM_PROCESSES", "ESCHERJAX_PROCESS_ID")
HEARTBEAT_SECONDS = 30  # silence after which a process counts as dead
EXPECTED_DEVICES = "ESCHERJAX_EXPECTED_DEVICES"
JOIN_SECONDS = "ESCHERJAX_JOIN_SECONDS"


@dataclasses.dataclass(frozen=True)
class Launch:
    """How this process was started."""

    by: str  # the launcher, for people
    arguments: dict[str, Any] | None = None  # of jax.distributed.initialize; None: nothing to join
    num_processes: int | None = None  # promised by the launcher; None where it promised nothing
    num_devices: int | None = None  # promised, of all processes together
    join_seconds: int = 300  # how long to wait for the others


def initialize() -> Launch:
    """Joins the other processes of this run, if any; call it before any other use of JAX.

    Logs processes and devices. If the others have not all arrived in time, that is reported and
    this process ends with exit code 2: JAX, which waits in C++, would abort it.

    Raises:
      UserError: the environment contradicts itself, the others cannot be reached, or processes or
        devices are not as many as promised.
    """
    launch = detect(os.environ, has_tpu=_has_tpu())
    if launch.arguments is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for CPUs alone
        try:
            with _in_time(launch):
                jax.distributed.initialize(
                    **launch.arguments,
                    initialization_timeout=launch.join_seconds + 60,  # ours comes first
                    heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                    shutdown_timeout_seconds=2 * HEARTBEAT_SECONDS,
                )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the processes of this run, started by {launch.by}, could not be joined: {error}. "
                "Check that all of them run and reach the first one's address."
            ) from error
    check_arrivals(launch)
    return launch


@contextmanager
def _in_time(launch: Launch) -> Iterator[None]:
    """Ends this process with a message unless what is inside is through in `join_seconds`."""
    count = f"{launch.num_processes} processes" if launch.num_processes else "the other processes"
    address = (launch.arguments or {}).get("coordinator_address")
    where = f"{count} at {address}" if address else f"{count}, started by {launch.by}"
    log.info("waiting for %s, %d s at most (%s)", where, launch.join_seconds, JOIN_SECONDS)

    def give_up() -> None:
        code = report(
            UserError(
                f"waited {launch.join_seconds} s for {where}, and not all came. Check in the logs "
                "of the others that each was started, was not refused, has a number of its own and "
                "reaches the first one's address. If they only start late, raise "
                f"{JOIN_SECONDS}. Then start all of them again."
            )
        )
        sys.stderr.flush()
        os._exit(code)

    timer = threading.Timer(launch.join_seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def detect(environment: Mapping[str, str], has_tpu: bool = False) -> Launch:
    """What launched a process with this environment; nothing is contacted.

    Known, the first that fits: the variables of ENV_VARS, Slurm, Open MPI, TPU hosts of GKE
    (JobSet), Cloud TPU VMs, indexed jobs of Kubernetes; otherwise a single process with all local
    devices.

    Args:
      environment: variables by name.
      has_tpu: whether the machine has TPU chips, which may be a pod's where no variable says so.

    Raises:
      UserError: listing every problem, if variables are incomplete or not numbers.
    """
    numbers = _Numbers(environment)
    promised, join_seconds = numbers.get(EXPECTED_DEVICES), numbers.get(JOIN_SECONDS)
    launch = (
        _own_variables(environment, numbers)
        or _slurm(environment, numbers)
        or _open_mpi(numbers)
        or _tpu(environment, numbers, has_tpu)
        or _kubernetes(environment, numbers)
        or Launch("itself, a single process", num_processes=1)
    )
    if numbers.problems:
        raise UserError("; ".join(numbers.problems) + ".")
    return dataclasses.replace(
        launch,
        num_devices=launch.num_devices if promised is None else promised,
        join_seconds=join_seconds or launch.join_seconds,
    )


def check_arrivals(launch: Launch) -> None:
    """Logs processes and devices.

    Raises UserError if they are not what the launcher promised, or hosts have unequal numbers.
    """
    processes, devices = jax.process_count(), jax.device_count()
    log.info(
        "started by %s: %d processes x %d devices (%s)",
        launch.by,
        processes,
        jax.local_device_count(),
        jax.devices()[0].device_kind,
    )
    problems = hosts.unequal_devices(jax.devices())
    if launch.num_processes not in (None, processes):
        problems.append(f"{launch.num_processes} processes were promised, {processes} came")
    if launch.num_devices not in (None, devices):
        problems.append(
            f"{launch.num_devices} devices were promised, {devices} came "
            f"({jax.local_device_count()} in this process)"
        )
    if problems:
        raise UserError(
            f"started by {launch.by}: {'; '.join(problems)}. Look for a process that did not "
            "start, for drivers, and for variables that hide devices; or correct the launcher."
        )


class _Numbers:
    """Whole numbers of an environment; collects the problems of those that are not."""

    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment
        self.problems: list[str] = []

    def get(self, name: str, lowest: int = 1) -> int | None:
        """The value, or None where the variable is missing or wrong."""
        text = self._environment.get(name)
        if text is None:
            return None
        if not text.isdecimal() or int(text) < lowest:
            self.problems.append(f"{name} must be a whole number from {lowest} on, got {text!r}")
            return None
        return int(text)


def _own_variables(environment: Mapping[str, str], numbers: _Numbers) -> Launch | None:
    if not any(name in environment for name in ENV_VARS):
        return None
    coordinator, count_name, id_name = ENV_VARS
    count, index = numbers.get(count_name), numbers.get(id_name, lowest=0)
    if count == 1:
        return Launch(count_name, num_processes=1)
    missing = [name for name in ENV_VARS if name not in environment]
    if missing:
        numbers.problems.append(
            f"{', '.join(missing)} missing; set all of {', '.join(ENV_VARS)}, or none of them"
        )
    if count is not None and index is not None and index >= count:
        numbers.problems.append(f"{id_name} must be below {count_name} = {count}, got {index}")
    address = environment.get(coordinator, "")
    if coordinator in environment and not address.rpartition(":")[2].isdecimal():
        numbers.problems.append(f"{coordinator} must be HOST:PORT, got {address!r}")
    arguments = {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }
    return Launch(", ".join(ENV_VARS), arguments, count)


def _slurm(environment: Mapping[str, str], numbers: _Numbers) -> Launch | None:
    if "SLURM_JOB_ID" not in environment:
        return None
    tasks = numbers.get("SLURM_NTASKS")
    if tasks is None or tasks == 1:
        return None
    if "SLURM_STEP_NODELIST" not in environment:
        numbers.problems.append(
            f"a Slurm job of {tasks} tasks, but this process is none of them; start it by srun, or "
            f"unset SLURM_NTASKS to run alone"
        )
        return None
    gpus, nodes = numbers.get("SLURM_GPUS_ON_NODE"), numbers.get("SLURM_STEP_NUM_NODES")
    return Launch("Slurm", {}, tasks, gpus * nodes if gpus and nodes else None)


def _open_mpi(numbers: _Numbers) -> Launch | None:
    size = numbers.get("OMPI_COMM_WORLD_SIZE")
    return Launch("Open MPI", {}, size) if size and size > 1 else None


def _tpu(environment: Mapping[str, str], numbers: _Numbers, has_tpu: bool) -> Launch | None:
    slices = numbers.get("MEGASCALE_NUM_SLICES") or 1
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if names:
        count = len(names.split(",")) * slices
        return Launch("GKE on TPU", {} if count > 1 else None, count)
    platforms = environment.get("JAX_PLATFORMS", "")
    if not has_tpu or (platforms and "tpu" not in platforms.split(",")):
        return None
    if "TPU_SKIP_MDS_QUERY" in environment:  # and no other hosts are named
        return Launch("itself, on one TPU host", num_processes=1)
    # How many hosts there are, only the cloud's metadata server knows; JAX asks it.
    return Launch("Cloud TPU", {})


def _kubernetes(environment: Mapping[str, str], numbers: _Numbers) -> Launch | None:
    if "KUBERNETES_SERVICE_HOST" not in environment or "JOB_COMPLETION_INDEX" not in environment:
        return None
    if importlib.util.find_spec("kubernetes") is None:
        numbers.problems.append(
            "an indexed job of Kubernetes, whose size JAX asks by the package kubernetes; run "
            f"pip install 'jax[k8s]', or set {', '.join(ENV_VARS)} in the manifest (only "
            f"{ENV_VARS[1]}=1 for a single process)"
        )
        return None
    return Launch("Kubernetes", {})


def _has_tpu() -> bool:
    """Whether TPU chips and their library are on this machine; starts neither."""
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
