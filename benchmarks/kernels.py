"""Which GPU kernels a piece of work spends its time in, from a trace of the profiler."""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def busiest_kernels(work: Callable[[], Any], repeats: int = 2, count: int = 40) -> dict[str, Any]:
    """Runs `work` under the profiler and adds up kernel times by name.

    Returns {"busy_ms": all kernels, "kernels": [[name, ms, launches], ...]}, each for one repeat,
    longest first; nothing on a platform whose traces have no GPU streams.
    """
    milliseconds: collections.Counter[str] = collections.Counter()
    launches: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                jax.block_until_ready(work())
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                for line in plane.lines if "GPU" in plane.name else ():
                    for event in line.events if line.name.startswith("Stream") else ():
                        milliseconds[event.name] += event.duration_ns / 1e6 / repeats
                        launches[event.name] += 1
    return {
        "busy_ms": sum(milliseconds.values()),
        "kernels": [
            [name, round(ms, 3), launches[name] / repeats]
            for name, ms in milliseconds.most_common(count)
        ],
    }
