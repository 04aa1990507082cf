"""Kills a training run at random moments, and compares its end with a run that never stopped.

    python -m benchmarks.soak --out runs/soak                       # 50 kills of a tiny network
    python -m benchmarks.soak --out runs/soak --kills 10 --seed 1

Half of the kills are SIGKILL and half SIGTERM, in random order, each at a random moment after the
start of the process: in imports, restoring, compiling, training or saving. On one CPU device.
Prints JSON; exits with 1 if the final parameters differ in a bit, or any exit code is unexpected.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from escherjax.errors import EXIT_ERROR, EXIT_OK, EXIT_PREEMPTED, run_command

# A network that compiles in seconds, whose steps are short beside the time to start.
TINY = """
    resolution=16 num_references=2 num_targets=2 unet.block_channels=(32,) unet.attention=(True,)
    encoder.depths=(1,) encoder.widths=(32,) encoder.patch_size=4 encoder.image_size=16
    data.num_scenes=16 data.num_views=6 eval_every_steps=0 sample_every_steps=0
"""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; see --help."""
    parser = harness.argument_parser(__doc__)
    add = parser.add_argument
    add("--out", required=True, type=Path, help="new folder for both runs")
    add("--kills", type=int, default=50)
    add("--seed", type=int, default=0, help="of moments and signals")
    add("--steps", type=int, default=2000, help="length of the run")
    add("--every", type=int, default=20, help="steps between checkpoints")
    longest_help = "seconds a process lives at most; 0: 1.3 times what the first needed to step 1"
    add("--longest", type=float, default=0.0, help=longest_help)
    arguments = parser.parse_args(argv)

    arguments.out.mkdir(parents=True)
    run = Run(arguments.out, arguments.steps, arguments.every)
    started = time.monotonic()
    unbroken = run.start("unbroken")
    if unbroken.wait() != EXIT_OK:
        raise RuntimeError(f"the unbroken run failed; see {arguments.out}/unbroken.log")
    unbroken_seconds = time.monotonic() - started

    longest = arguments.longest or 1.3 * _seconds_to_first_checkpoint(run)
    draws = random.Random(arguments.seed)
    signals = [(signal.SIGKILL, signal.SIGTERM)[i % 2] for i in range(arguments.kills)]
    draws.shuffle(signals)
    kills: list[dict[str, Any]] = []
    for number in signals:
        process = run.start("killed")
        moment = draws.uniform(0, longest)
        try:
            code = process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            code = process.wait()
        newest = run.newest("killed")
        kill = {"signal": number.name, "after_sec": round(moment, 2), "code": code}
        kills.append(kill | {"newest": newest})
        harness.note(json.dumps(kills[-1]))
        if code == EXIT_OK:
            break  # the run is done; there is nothing left to kill
    finished = run.start("killed").wait()

    differing = _differing_arrays(arguments.out / "unbroken", arguments.out / "killed")
    # SIGTERM before Python listens, in the first instants of the process, ends it as SIGTERM does.
    expected = {EXIT_OK, EXIT_PREEMPTED, -signal.SIGKILL, -signal.SIGTERM}
    unexpected = [kill for kill in kills if kill["code"] not in expected]
    lost = [a["newest"] - b["newest"] for a, b in zip(kills, kills[1:], strict=False)]
    result = {
        "steps": arguments.steps,
        "checkpoint_every_steps": arguments.every,
        "kills": len(kills),
        "by_signal": dict(Counter(kill["signal"] for kill in kills)),
        "exit_codes": dict(Counter(str(kill["code"]) for kill in kills)),
        "unexpected": unexpected,
        "final_exit_code": finished,
        "newest_checkpoint_ever_went_back": max(lost, default=0) > 0,
        "arrays_that_differ": differing,
        "same_bits": not differing and finished == EXIT_OK,
        "unbroken_sec": round(unbroken_seconds, 1),
        "total_sec": round(time.monotonic() - started, 1),
    }
    harness.print_result("soak", result)
    good = result["same_bits"] and not unexpected
    return EXIT_OK if good and not result["newest_checkpoint_ever_went_back"] else EXIT_ERROR


class Run:
    """The training command on one CPU device, in work directories below `out`."""

    def __init__(self, out: Path, steps: int, every: int):
        self._out = out
        fields = (*TINY.split(), f"num_steps={steps}", f"checkpoint_every_steps={every}")
        self._fields = [f"--config.{field}" for field in fields]
        self._environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str((out / "compiled").resolve()),
        }

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Starts or continues the run in the work directory of that name."""
        command = [sys.executable, "-m", "escherjax.train", "--config", "configs/6dof.py:smoke"]
        command += ["--workdir", str(self._out / name), *self._fields]
        with (self._out / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def newest(self, name: str) -> int:
        """The newest checkpoint, 0 for none."""
        folders = (self._out / name / "checkpoints").glob("*")
        return max((int(folder.name) for folder in folders if folder.name.isdigit()), default=0)


def _seconds_to_first_checkpoint(run: Run) -> float:
    """How long a process with a warm compilation cache takes to its first checkpoint."""
    start = time.monotonic()
    process = run.start("timed")
    while not run.newest("timed"):
        if process.poll() is not None:
            raise RuntimeError("the run that is timed ended before its first checkpoint")
        time.sleep(0.05)
    process.kill()
    process.wait()
    return time.monotonic() - start


def _differing_arrays(first: Path, second: Path) -> list[str]:
    """Names of the parameters and averages of the newest checkpoints that are not bit-equal."""
    import numpy as np

    from escherjax.weights import run_params

    names = []
    for weights in ("raw", "ema"):
        stored = [run_params.open_checkpoint(folder, weights=weights) for folder in (first, second)]
        if stored[0].step != stored[1].step or stored[0].shapes != stored[1].shapes:
            return [f"step {stored[0].step} and step {stored[1].step}"]
        ours, theirs = (part.read(part.shapes) for part in stored)
        names += [
            f"{weights} {'/'.join(path)}"
            for path in ours
            if not np.array_equal(ours[path].view(np.uint8), theirs[path].view(np.uint8))
        ]
    return names


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
