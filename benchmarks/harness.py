"""What the benchmarks share: arguments, timing, GPU kernels, the machine's description, and JSON.

Progress goes to stderr; the result is one JSON object on stdout.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it is written."""
    return argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def config_parser(description: str | None) -> argparse.ArgumentParser:
    """An `argument_parser` with --config; see `parse_config`."""
    parser = argument_parser(description)
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]")
    return parser


def parse_config(
    parser: argparse.ArgumentParser, argv: Sequence[str], *more_overrides: str
) -> tuple[argparse.Namespace, ConfigDict, list[str]]:
    """(arguments, config, the overrides on the command line), for a `config_parser`.

    Whatever the parser does not know overrides a field of the config. `more_overrides` go after
    those, with {name} replaced by the argument of that name.
    """
    from escherjax.config import load_config
    from escherjax.train.checks import check_config

    arguments, overrides = parser.parse_known_args(argv)
    added = [text.format_map(vars(arguments)) for text in more_overrides]
    config = load_config(arguments.config, [*overrides, *added], check_config)
    return arguments, config, overrides


def positive_numbers(text: str) -> list[int]:
    """An argparse type: whole numbers from 1, with commas between them."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"must be whole numbers such as 1,2,4, got {text!r}")
    return numbers


def note(text: str) -> None:
    """Prints a line about the progress of a benchmark."""
    print(text, file=sys.stderr, flush=True)


def print_result(benchmark: str, *parts: dict[str, Any]) -> None:
    """Prints the result of a benchmark, whose entries may come in several parts."""
    result: dict[str, Any] = {"benchmark": benchmark}
    for part in parts:
        result |= part
    print(json.dumps(result, indent=2))


def times(work: Callable[[], Any], count: int, warm_up: int = 0) -> list[float]:
    """Seconds of each of `count` runs, after `warm_up` that are not counted.

    JAX arrays that `work` returns are waited for.
    """
    import jax

    seconds = []
    for _ in range(warm_up + count):
        started = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - started)
    return seconds[warm_up:]


def spread(values: Sequence[float], name: str, scale: float = 1e3) -> dict[str, float]:
    """{name_median, name_min, name_max} of values; by default of seconds, in milliseconds."""
    return {
        f"{name}_median": scale * statistics.median(values),
        f"{name}_min": scale * min(values),
        f"{name}_max": scale * max(values),
    }


def rates(seconds: Sequence[float], count: int, name: str) -> dict[str, float]:
    """Things a second by the median, slowest and fastest time that `count` of them took."""
    return {
        name: round(count / statistics.median(seconds), 1),
        "slowest": round(count / max(seconds), 1),
        "fastest": round(count / min(seconds), 1),
    }


def machine(devices: Sequence[Any] | None = None) -> dict[str, Any]:
    """The devices (default: all), processor and versions that the times are of."""
    import jax

    devices = devices or jax.devices()
    return {
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "jax": jax.__version__,
        "platform": devices[0].client.platform_version.splitlines()[0],
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
    }


def cpu_name() -> str:
    """The processor's name as the system reports it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_gib(devices: Sequence[Any]) -> float:
    """The most memory that was in use on any of the devices, 0 where it is not counted."""
    stats = [device.memory_stats() or {} for device in devices]
    return max(each.get("peak_bytes_in_use", 0) for each in stats) / 2**30


def busiest_kernels(
    work: Callable[[], Any], repeats: int = 2, most: int = 40
) -> dict[str, float | list[list[Any]]]:
    """Runs `work` under the profiler and adds up the times of GPU kernels by name.

    Returns {"busy_ms": all kernels, "kernels": [[name, ms, launches], ...]}, each for one repeat,
    longest first; no kernels on a platform whose traces have no GPU streams.
    """
    import jax

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
    kernels = [
        [name, round(ms, 3), launches[name] / repeats]
        for name, ms in milliseconds.most_common(most)
    ]
    return {"busy_ms": sum(milliseconds.values()), "kernels": kernels}
