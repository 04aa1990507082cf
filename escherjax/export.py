"""Writes weights as a PyTorch pipeline folder, and checks it against PyTorch.

    python -m escherjax.export --weights runs/6dof --out exported/
    python -m escherjax.export --weights runs/6dof/checkpoints/100000 --params raw --out exported/
    python -m escherjax.export --weights runs/6dof --out exported/ --push-to-hub OWNER/NAME

W is a training work directory, one checkpoint in it, a pipeline folder, or a hub id. Where PyTorch
is installed (extra `torch`), the folder is read there, fixed inputs go through both, and the
deviation of each part is printed and written to --out/parity.json; too large a one exits with 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from escherjax.errors import EXIT_ERROR, EXIT_OK, UserError, run_command

if TYPE_CHECKING:
    from escherjax.sample.pipeline import Pipeline

log = logging.getLogger("escherjax.export")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m escherjax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--weights", required=True, metavar="W", help="what to export")
    add("--out", required=True, type=Path, metavar="DIR", help="new or empty folder")
    add(
        "--params",
        choices=("ema", "raw"),
        help="of a work directory: averaged or last (default: the average if kept)",
    )
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="round the weights to this (default: as they are)",
    )
    add("--cape", help="camera encoding, where the folder does not say it or is wrong")
    add("--no-check", action="store_true", help="do not compare with PyTorch")
    add("--push-to-hub", metavar="OWNER/NAME", help="upload the folder once it is checked")
    add("--private", action="store_true", help="of the hub: make the repository a private one")
    add("--revision", help="of the hub: the branch to upload to (default: the main one)")
    arguments = parser.parse_args(argv)
    if (arguments.private or arguments.revision) and not arguments.push_to_hub:
        raise UserError("--private and --revision go with --push-to-hub OWNER/NAME; add it.")

    from escherjax.sample import loading
    from escherjax.weights import hub, writing

    writing.check_target(arguments.out)
    if arguments.push_to_hub:
        hub.check_upload(arguments.push_to_hub)
    pipe = loading.load(arguments.weights, cape=arguments.cape, weights=arguments.params)
    pipe.save_torch(arguments.out, arguments.dtype)
    described = _described(pipe)
    print(f"{arguments.out}: {described}", file=sys.stderr)
    if arguments.dtype in ("float16", "bfloat16"):
        pipe = loading.load(arguments.out)  # to compare what was written, rounded
    if not _check(pipe, arguments.out, arguments.no_check):
        print(
            f"error: PyTorch computes something else from {arguments.out}; do not use it, and "
            "please report it with its parity.json.",
            file=sys.stderr,
        )
        return EXIT_ERROR
    if arguments.push_to_hub:
        print(
            hub.push(
                arguments.out,
                arguments.push_to_hub,
                private=arguments.private,
                revision=arguments.revision,
                message=f"Export of {described}",
            )
        )
    print(arguments.out)
    return EXIT_OK


def _described(pipe: Pipeline) -> str:
    facts = pipe.facts
    steps = "" if facts.trained_steps is None else f", {facts.trained_steps:,} updates"
    weights = facts.weights or "weights as they are"
    return f"EscherNet {facts.cape}, {facts.resolution} px, {weights}{steps}"


def _check(pipe: Pipeline, folder: Path, skip: bool) -> bool:
    """Compares, prints and writes parity.json; False if the two are too far apart."""
    from escherjax.weights import parity

    report = folder / "parity.json"
    if skip or not parity.has_torch():
        reason = "--no-check" if skip else "PyTorch is not installed (pip install escherjax[torch])"
        log.warning("not compared with PyTorch: %s", reason)
        report.write_text(json.dumps({"checked": False, "reason": reason}, indent=2) + "\n")
        return True
    print("comparing with PyTorch", file=sys.stderr)
    found = parity.compare(pipe, folder)
    print(parity.table(found), file=sys.stderr)
    report.write_text(
        json.dumps(
            {
                "checked": True,
                "allowed_relative": parity.ALLOWED,
                "parts": {
                    d.part: {
                        "largest": d.largest,
                        "rms": d.rms,
                        "relative": d.relative,
                        "values": d.values,
                    }
                    for d in found
                },
                "versions": parity.versions(),
            },
            indent=2,
        )
        + "\n"
    )
    return all(d.is_rounding for d in found)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
