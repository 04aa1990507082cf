"""Start-up of a run: the processes of several hosts find each other."""

from __future__ import annotations

import os

import jax


def initialize() -> None:
    """Joins the processes that ESCHERJAX_COORDINATOR names; without it there is one process.

    To be called before anything else asks JAX for devices. ESCHERJAX_COORDINATOR: host:port of
    process 0; ESCHERJAX_NUM_PROCESSES, ESCHERJAX_PROCESS_ID: how many there are, and which this is.
    """
    coordinator = os.environ.get("ESCHERJAX_COORDINATOR")
    if not coordinator:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator,
        num_processes=int(os.environ["ESCHERJAX_NUM_PROCESSES"]),
        process_id=int(os.environ["ESCHERJAX_PROCESS_ID"]),
    )
