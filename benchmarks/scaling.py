"""Times training and sampling on 1, 2, 4, ... devices of this machine and prints one JSON object.

    python -m benchmarks.scaling --config configs/6dof.py --devices 1,2,4 --out runs/scaling

Training: the same batch on each device, split over `fsdp` and over `data`; its efficiency is
scenes per second over n times those of one device. Sampling: the same scene, its targets shared by
the devices (axis `view`); its speed-up is over one device. Each case is a process of its own
(`benchmarks.train_step`, `benchmarks.sample`) that sees no other devices, and leaves CASE.json and
CASE.log in --out; the same command again goes on where it was stopped. Cases run one after another;
with --side-by-side also at the same time, on devices that they do not share: a quarter of an hour
less for four GPUs, as most of the time is compilation. Without a GPU, devices of the CPU are
simulated, which tells whether everything runs, and nothing of speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from escherjax.errors import EXIT_ERROR, EXIT_OK, UserError, run_command
from escherjax.files import whole_file

_SHORTER_FROM = 200  # targets, from which a scene is timed with fewer steps


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement: its kind ("fsdp", "data", "sample100"), devices, and command."""

    kind: str
    num_devices: int
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.num_devices}"


def main(argv: Sequence[str]) -> int:
    """Runs what has no result yet; see --help."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE[:ARG]")
    add("--out", required=True, type=Path, metavar="DIR", help="results and logs of all cases")
    add(
        "--devices",
        type=_numbers,
        default=[1, 2, 4],
        metavar="N,N,...",
        help="how many devices, from 1 (default 1,2,4)",
    )
    add("--batch-per-device", type=int, default=32, help="scenes (default %(default)s)")
    add(
        "--targets",
        type=_numbers,
        default=[100, 200],
        metavar="M,M,...",
        help="target views to sample from 3 references (default 100,200)",
    )
    add("--train-steps", type=int, default=20, help="timed (default %(default)s)")
    add(
        "--sampling-steps",
        type=int,
        default=50,
        help=f"of DDIM; 20 at most from {_SHORTER_FROM} targets (default %(default)s)",
    )
    add("--side-by-side", action="store_true", help="fill the devices with cases")
    arguments, overrides = parser.parse_known_args(argv)
    if 1 not in arguments.devices:
        raise UserError(f"--devices {arguments.devices}; needed 1 among them, the measure of all.")
    gpus = _gpus()
    if gpus is not None and max(arguments.devices) > len(gpus):
        raise UserError(f"--devices {max(arguments.devices)}: this machine has {len(gpus)} GPUs.")

    from escherjax.config import load_config
    from escherjax.train.checks import check_config

    load_config(arguments.config, overrides, check_config)  # refuses what no case could run
    cases = _cases(arguments, overrides)
    arguments.out.mkdir(parents=True, exist_ok=True)
    _check_same(cases, arguments.out)
    failed = _run(cases, arguments.out, gpus, arguments.side_by_side)
    head = {
        "benchmark": "scaling",
        "config": arguments.config,
        "overrides": overrides,
        "side_by_side": arguments.side_by_side,
    }
    print(json.dumps(head | summarize(cases, arguments.out) | {"failed": failed}, indent=2))
    return EXIT_ERROR if failed else EXIT_OK


def _cases(arguments: argparse.Namespace, overrides: Sequence[str]) -> list[Case]:
    """All cases, those that need most devices first."""
    rest = ("--config", arguments.config, *overrides)
    cases = []
    for count in sorted(set(arguments.devices), reverse=True):
        for axis, other in (("fsdp", "data"), ("data", "fsdp"))[: 1 if count == 1 else 2]:
            cases.append(
                Case(
                    axis,
                    count,
                    (
                        "benchmarks.train_step",
                        *rest,
                        f"--steps={arguments.train_steps}",
                        f"--config.batch_size={count * arguments.batch_per_device}",
                        f"--config.mesh.{axis}={count}",
                        f"--config.mesh.{other}=1",
                    ),
                )
            )
        for targets in arguments.targets:
            steps = arguments.sampling_steps
            steps = min(steps, 20) if targets >= _SHORTER_FROM else steps
            cases.append(
                Case(
                    f"sample{targets}",
                    count,
                    (
                        "benchmarks.sample",
                        *rest,
                        "--exact",
                        "--repeats=2",
                        f"--targets={targets}",
                        f"--steps={steps}",
                        f"--view-parallel={count}",
                    ),
                )
            )
    return cases


def _check_same(cases: Sequence[Case], out: Path) -> None:
    """Raises UserError if a result in the folder is not of the command that a case has now."""
    for case in cases:
        path = out / f"{case.name}.json"
        if path.is_file() and json.loads(path.read_text())["command"] != list(case.command):
            raise UserError(f"{path} is of other settings; needed a new --out, or the same again.")


def _run(
    cases: Sequence[Case], out: Path, gpus: Sequence[str] | None, side_by_side: bool
) -> list[str]:
    """Runs the cases without a result, each as soon as its devices are free; names of failures."""
    waiting = [case for case in cases if not (out / f"{case.name}.json").is_file()]
    devices = list(gpus) if gpus is not None else [str(i) for i in range(os.cpu_count() or 1)]
    free, running, failed = list(devices), {}, []
    with tqdm(total=len(waiting), desc="cases") as bar:
        while waiting or running:
            for case in list(waiting):
                needed = case.num_devices if gpus is not None else len(devices)
                if needed <= len(free) and (side_by_side or not running):
                    mine, free = free[:needed], free[needed:]
                    waiting.remove(case)
                    bar.write(f"{case.name}: {' '.join(case.command)}", file=sys.stderr)
                    running[case] = _start(case, out, mine if gpus is not None else None), mine
            time.sleep(0.5)
            for case, (process, mine) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[case]
                free += mine
                bar.update()
                part = out / f"{case.name}.part"
                if process.returncode:
                    failed.append(case.name)
                    bar.write(
                        f"{case.name}: exit code {process.returncode}, see {out / case.name}.log",
                        file=sys.stderr,
                    )
                else:
                    result = {"command": case.command, **json.loads(part.read_text())}
                    with whole_file(out / f"{case.name}.json") as file:
                        file.write_text(json.dumps(result, indent=2))
                part.unlink()
    return failed


def _start(case: Case, out: Path, gpus: Sequence[str] | None) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if gpus is None:
        simulated = f"--xla_force_host_platform_device_count={case.num_devices}"
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": simulated}
    else:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    result, log = (out / f"{case.name}.{suffix}" for suffix in ("part", "log"))
    with open(result, "wb") as stdout, open(log, "wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", *case.command], env=environment, stdout=stdout, stderr=stderr
        )


def _gpus() -> list[str] | None:
    """The GPUs that a process here sees, by number or id; None for a machine without."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    if shutil.which("nvidia-smi") is None:
        return None
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    count = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    return [str(i) for i in range(count)] or None


def summarize(cases: Sequence[Case], out: Path) -> dict[str, Any]:
    """Speeds beside those of one device, of the cases that have a result; and all results."""
    paths = {case: out / f"{case.name}.json" for case in cases}
    found = {case: json.loads(p.read_text()) for case, p in paths.items() if p.is_file()}
    single = {case.kind: result for case, result in found.items() if case.num_devices == 1}
    training, sampling = [], []
    for case, result in sorted(found.items(), key=lambda item: item[0].num_devices):
        count = case.num_devices
        memory = result["peak_device_memory_gib"]
        row = {"case": case.name, "devices": count, "peak_memory_gib": memory}
        if "scenes_per_sec" in result:
            alone = single.get("fsdp", {}).get("scenes_per_sec")
            training.append(
                row
                | {
                    "step_ms_median": result["step_ms_median"],
                    "scenes_per_sec": result["scenes_per_sec"],
                    "efficiency": alone and result["scenes_per_sec"] / (count * alone),
                }
            )
        else:
            alone = single.get(case.kind, {}).get("scene_ms_median")
            sampling.append(
                row
                | {
                    "scene_ms_median": result["scene_ms_median"],
                    "speed_up": alone and alone / result["scene_ms_median"],
                }
            )
    results = {case.name: result for case, result in found.items()}
    return {"training": training, "sampling": sampling, "results": results}


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; needed numbers such as 1,2,4")
    return numbers


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
