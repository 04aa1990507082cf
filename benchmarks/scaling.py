"""Times training and sampling on 1, 2, 4, ... devices of this machine and prints one JSON object.

    python -m benchmarks.scaling --config configs/6dof.py --devices 1,2,4 --out runs/scaling

Training: the same batch on each device, split over `fsdp` and over `data`; its efficiency is
scenes per second over n times those of one device. Sampling: the same scene, its targets shared by
the devices (axis `view`); its speed-up is over one device. Each case is a process of its own
(`benchmarks.train_step`, `benchmarks.sample`) that sees no other devices, and leaves CASE.json and
CASE.log in --out; the same command again goes on where it was stopped. Cases run one after another;
with --side-by-side also at the same time, on devices that they do not share: a quarter of an hour
less for four GPUs, as most of the time is compilation. Without a GPU, devices of the CPU are
simulated, which shows whether everything runs, and nothing of speed.
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

from benchmarks import harness
from escherjax.errors import EXIT_ERROR, EXIT_OK, UserError, run_command
from escherjax.files import whole_file

FEWER_STEPS_FROM = 200  # targets, from which a scene is timed with at most 20 steps


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement, in a process of its own, with its files in `out`."""

    out: Path
    kind: str  # "fsdp", "data", "sample100", ...
    num_devices: int
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.num_devices}"

    def file(self, suffix: str) -> Path:
        """The result (json), the result of a case that still runs (part), or the log."""
        return self.out / f"{self.name}.{suffix}"

    def result(self) -> dict[str, Any] | None:
        """What was measured; None while there is nothing yet."""
        file = self.file("json")
        return json.loads(file.read_text()) if file.is_file() else None

    def start(self, gpus: Sequence[str] | None) -> subprocess.Popen[bytes]:
        """Starts the measurement on these GPUs, or on simulated devices for None."""
        environment = dict(os.environ)
        if gpus is None:
            simulated = f"--xla_force_host_platform_device_count={self.num_devices}"
            environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": simulated}
        else:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        command = [sys.executable, "-m", *self.command]
        with self.file("part").open("wb") as stdout, self.file("log").open("wb") as stderr:
            return subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)

    def finish(self, exit_code: int) -> bool:
        """Keeps the result of an ended process. Returns whether there is one."""
        part = self.file("part")
        if not exit_code:
            result = {"command": self.command, **json.loads(part.read_text())}
            with whole_file(self.file("json")) as file:
                file.write_text(json.dumps(result, indent=2))
        part.unlink()
        return not exit_code


def main(argv: Sequence[str]) -> int:
    """Runs what has no result yet; see --help."""
    parser = harness.config_parser(__doc__)
    add, numbers = parser.add_argument, harness.positive_numbers
    add("--out", required=True, type=Path, metavar="DIR", help="results and logs of all cases")
    devices_help = "how many devices, from 1 (default 1,2,4)"
    add("--devices", type=numbers, default=[1, 2, 4], metavar="N,N,...", help=devices_help)
    add("--batch-per-device", type=int, default=32, help="scenes (default %(default)s)")
    targets_help = "target views to sample from 3 references (default 100,200)"
    add("--targets", type=numbers, default=[100, 200], metavar="M,M,...", help=targets_help)
    add("--train-steps", type=int, default=20, help="timed (default %(default)s)")
    steps_help = f"of DDIM; 20 at most from {FEWER_STEPS_FROM} targets (default %(default)s)"
    add("--sampling-steps", type=int, default=50, help=steps_help)
    add("--side-by-side", action="store_true", help="fill the devices with cases")
    arguments, _, overrides = harness.parse_config(parser, argv)  # refuses what no case could run
    if 1 not in arguments.devices:
        raise UserError(
            f"--devices must contain 1, which all are compared with, got {arguments.devices}."
        )
    gpus = _gpus()
    if gpus is not None and max(arguments.devices) > len(gpus):
        raise UserError(f"--devices {max(arguments.devices)}: this machine has {len(gpus)} GPUs.")

    cases = _cases(arguments, overrides)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for case in cases:
        result = case.result()
        if result is not None and result["command"] != list(case.command):
            raise UserError(
                f"{case.file('json')} was measured with other settings; give a new --out, or the "
                "same settings again."
            )
    failed = _run(cases, gpus, arguments.side_by_side)
    head = {
        "config": arguments.config,
        "overrides": overrides,
        "side_by_side": arguments.side_by_side,
    }
    harness.print_result("scaling", head, summarize(cases), {"failed": failed})
    return EXIT_ERROR if failed else EXIT_OK


def _cases(arguments: argparse.Namespace, overrides: Sequence[str]) -> list[Case]:
    """All cases, those that need most devices first."""
    cases = []

    def add(kind: str, count: int, module: str, *options: str) -> None:
        command = (f"benchmarks.{module}", "--config", arguments.config, *overrides, *options)
        cases.append(Case(arguments.out, kind, count, command))

    for count in sorted(set(arguments.devices), reverse=True):
        batch = count * arguments.batch_per_device
        for axis, other in (("fsdp", "data"), ("data", "fsdp"))[: 1 if count == 1 else 2]:
            mesh = f"--config.mesh.{axis}={count}", f"--config.mesh.{other}=1"
            steps = f"--steps={arguments.train_steps}"
            add(axis, count, "train_step", steps, f"--config.batch_size={batch}", *mesh)
        for targets in arguments.targets:
            most = 20 if targets >= FEWER_STEPS_FROM else arguments.sampling_steps
            steps = f"--steps={min(arguments.sampling_steps, most)}"
            views = f"--targets={targets}", steps, f"--view-parallel={count}"
            add(f"sample{targets}", count, "sample", "--exact", "--repeats=2", *views)
    return cases


def _run(cases: Sequence[Case], gpus: Sequence[str] | None, side_by_side: bool) -> list[str]:
    """Runs the cases without a result, each as soon as its devices are free; names of failures."""
    waiting = [case for case in cases if case.result() is None]
    devices = list(gpus) if gpus is not None else [str(i) for i in range(os.cpu_count() or 1)]
    free, failed = list(devices), []
    running: dict[Case, tuple[subprocess.Popen[bytes], list[str]]] = {}
    with tqdm(total=len(waiting), desc="cases") as bar:
        while waiting or running:
            for case in list(waiting):
                needed = case.num_devices if gpus is not None else len(devices)
                if needed <= len(free) and (side_by_side or not running):
                    mine, free = free[:needed], free[needed:]
                    waiting.remove(case)
                    bar.write(f"{case.name}: {' '.join(case.command)}", file=sys.stderr)
                    running[case] = case.start(mine if gpus is not None else None), mine
            time.sleep(0.5)
            for case, (process, mine) in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[case]
                free += mine
                bar.update()
                if not case.finish(code):
                    failed.append(case.name)
                    text = f"{case.name}: exit code {code}, see {case.file('log')}"
                    bar.write(text, file=sys.stderr)
    return failed


def _gpus() -> list[str] | None:
    """The GPUs that a process here sees, by number or id; None for a machine without."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    if shutil.which("nvidia-smi") is None:
        return None
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    count = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    return [str(i) for i in range(count)] or None


def summarize(cases: Sequence[Case]) -> dict[str, Any]:
    """Speeds beside those of one device, of the cases that have a result; and all results."""
    results = {case: result for case in cases if (result := case.result()) is not None}
    single = {case.kind: result for case, result in results.items() if case.num_devices == 1}
    training, sampling = [], []
    for case, result in sorted(results.items(), key=lambda item: item[0].num_devices):
        count = case.num_devices
        memory = result["peak_device_memory_gib"]
        row = {"case": case.name, "devices": count, "peak_memory_gib": memory}
        if "scenes_per_sec" in result:
            alone = single.get("fsdp", {}).get("scenes_per_sec")
            row |= {name: result[name] for name in ("step_ms_median", "scenes_per_sec")}
            row["efficiency"] = alone and result["scenes_per_sec"] / (count * alone)
            training.append(row)
        else:
            alone = single.get(case.kind, {}).get("scene_ms_median")
            row["scene_ms_median"] = result["scene_ms_median"]
            row["speed_up"] = alone and alone / result["scene_ms_median"]
            sampling.append(row)
    named = {case.name: result for case, result in results.items()}
    return {"training": training, "sampling": sampling, "results": named}


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
