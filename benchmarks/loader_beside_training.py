"""How fast the loader feeds a process that hands over steps, and what the steps then take."""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness
from escherjax.data import loader
from escherjax.data.loader_config import LoaderConfig
from escherjax.data.shards import open_shards

VIEWS = 6  # of a scene: three references, three targets


def measure_beside(arguments: argparse.Namespace, folder: Path, resolution: int) -> None:
    """Prints a JSON object with a row for each of `arguments.workers`; see `benchmarks.loader`."""
    config = LoaderConfig(
        resolution, num_references=VIEWS // 2, num_targets=VIEWS // 2, background="zero123"
    )
    step = jax.jit(lambda state: [leaf + 1 for leaf in state], donate_argnums=0)
    state = step([jnp.zeros(8) for _ in range(arguments.leaves)])
    source = open_shards(folder)
    rows = {}
    for count in map(int, arguments.workers.split(",")):
        batches = loader.make_loader(source, config, arguments.batch, num_workers=count)
        for _ in range(2 * max(count, 1)):  # until all processes have started
            next(batches)
        state, rows[count] = _feed(step, state, batches, arguments)
        rows[count]["memory_mib_per_worker"] = _memory_of_workers(batches)
        batches.close()
        harness.note(f"{count} processes: {rows[count]}")
    sizes = [len(view) for index in range(min(64, len(source))) for view in source[index].images]
    harness.print_result(
        "loader beside training",
        harness.machine(),
        {
            "batch": arguments.batch,
            "bytes_per_view": round(statistics.mean(sizes)),
            "step_ms": arguments.step_ms,
            "leaves": arguments.leaves,
            "by_workers": rows,
        },
    )


def _feed(
    step: Callable[[Any], Any], state: Any, batches: Any, arguments: argparse.Namespace
) -> tuple[Any, dict[str, Any]]:
    """(state, views fed a second, and times of a step, its hand-over and its old state's end)."""
    stop, views = threading.Event(), 0

    def take() -> None:
        nonlocal views
        while not stop.is_set():
            views += next(batches).valid.size * VIEWS

    taking = threading.Thread(target=take)
    taking.start()
    times: dict[str, list[float]] = {"step_ms": [], "call_ms": [], "drop_ms": []}
    began = time.perf_counter()
    while time.perf_counter() - began < arguments.seconds:
        started = time.perf_counter()
        new_state = step(state)
        called = time.perf_counter()
        state = new_state
        del new_state
        dropped = time.perf_counter()
        jax.block_until_ready(state[-1])
        time.sleep(max(0.0, arguments.step_ms / 1e3 - (time.perf_counter() - started)))
        spent = (time.perf_counter() - started, called - started, dropped - called)
        for name, seconds in zip(times, spent, strict=True):
            times[name].append(seconds)
    rate = views / (time.perf_counter() - began)
    stop.set()
    taking.join()
    medians = {name: round(1e3 * statistics.median(values), 2) for name, values in times.items()}
    return state, {"views_per_sec": round(rate), **medians}


def _memory_of_workers(batches: loader.BatchIterator) -> float | None:
    """MiB that a reading process adds, with its share of what several map; None for threads."""
    kibibytes = []
    for pid in batches.process_ids():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        kibibytes.append(sizes["Pss"] - sizes.get("Pss_Shmem", 0))
    return round(statistics.mean(kibibytes) / 1024, 1) if kibibytes else None
