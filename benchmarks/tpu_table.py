"""The table of docs/tpu.md: the full network compiled for pods of several generations.

    python -m benchmarks.tpu_table                 # prints the table of the kept results
    python -m benchmarks.tpu_table --compile       # first compiles what has no result yet
    python -m benchmarks.tpu_table --write         # puts the table into docs/tpu.md

A case takes ten minutes on eight cores or an hour on two, and some 10 GB, in a process of its own;
those done are kept in docs/tpu, so that the command goes on where it was stopped. Needs libtpu
(pip install 'escherjax[tpu]') only to compile.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from escherjax.errors import run_command

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "tpu.md"
RESULTS = DOCUMENT.with_suffix("")
MARKS = "<!-- table -->\n", "<!-- end of table -->\n"

# Batches are the paper's 672 scenes, or the nearest number that the chips divide. v5e-16 and the
# like are the cloud's names; for v5p they count cores, two to a chip.
CASES = {
    "v5e-16_train": "--topology v5e:4x4 --config.remat=True --config.batch_size=672",
    "v5e-256_train": "--topology v5e:16x16 --config.mesh.data=4 --config.mesh.fsdp=64 "
    "--config.batch_size=768 --config.eval.batch_size=256 --config.eval.num_scenes=256",
    "v5p-64_train": "--topology v5p:2x4x4 --config.batch_size=672 "
    "--config.eval.batch_size=32 --config.eval.num_scenes=32",
    "v6e-64_train": "--topology v6e:8x8 --config.batch_size=704 "
    "--config.eval.batch_size=64 --config.eval.num_scenes=64",
    "v5e-16_sample": "--topology v5e:4x4 --program sample --config.mesh.fsdp=4 "
    "--config.mesh.view=4 --config.num_targets=4 --config.eval.num_targets=24 "
    "--config.eval.batch_size=4 --config.eval.num_scenes=4",
}

HEADER = (
    "| slice | chips | program | mesh | scenes | remat | micro-batches | memory a chip | "
    "TFLOP a chip | GB sent | arithmetic, memory, network (ms) | at best (ms) | MFU at best | "
    "compiled in |"
)


def main(argv: Sequence[str]) -> None:
    """Prints the table; see --help."""
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--compile", action="store_true", help="compile what has no result yet")
    parser.add_argument("--write", action="store_true", help="put the table into docs/tpu.md")
    arguments = parser.parse_args(argv)
    results = {name: RESULTS / f"{name}.json" for name in CASES}
    for name, path in results.items() if arguments.compile else ():
        if not path.is_file():
            harness.note(f"{name}: compiling")
            command = [sys.executable, "-m", "escherjax.compile", "--config", "configs/6dof.py"]
            subprocess.run([*command, "--json", str(path), *CASES[name].split()], check=True)
    lines = [HEADER, "|" + "---|" * HEADER.count(" | ") + "---|"]
    lines += [
        table_row(name, json.loads(path.read_text()))
        for name, path in results.items()
        if path.is_file()
    ]
    table = "\n".join(lines) + "\n"
    print(table, end="")
    if arguments.write:
        before, rest = DOCUMENT.read_text().split(MARKS[0])
        DOCUMENT.write_text(before + MARKS[0] + table + MARKS[1] + rest.split(MARKS[1])[1])
        print(DOCUMENT)


def table_row(name: str, result: dict[str, Any]) -> str:
    """One line of the table; result: what `escherjax.compile --json` writes."""
    memory, times = result["memory"], result["time"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items() if size > 1)
    flops = result["flops"]["xla"] + result["flops"]["attention_kernels"]
    work, best, mfu, arithmetic = "", "", "", ""
    if times is not None:
        arithmetic = f"{flops / 1e12:.1f}"
        work = ", ".join(f"{1e3 * times[part]:.0f}" for part in ("compute", "hbm", "ici"))
        best, mfu = f"{1e3 * times['overlapped']:.0f}", f"{times['mfu_overlapped']:.0%}"
    cells = [
        name.split("_")[0],
        str(result["chips"]),
        result["program"],
        mesh,
        str(result["scenes"]),
        "yes" if result["remat"] else "no",
        str(result["accumulation_steps"]),
        f"{memory['total'] / 2**30:.1f} of {memory['hbm'] / 2**30:.0f} GiB",
        arithmetic,
        f"{result['bytes']['ici'] / 1e9:.1f}",
        work,
        best,
        mfu,
        f"{result['compile_sec'] / 60:.0f} min",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
