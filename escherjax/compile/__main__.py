"""Compiles a program ahead of time for a TPU topology and reports what it needs of each chip.

    python -m escherjax.compile --config configs/6dof.py --topology v5e:4x4 --config.remat=True
    python -m escherjax.compile --config configs/6dof.py --topology v5p:2x4x4 --program sample

Runs on any machine with libtpu (pip install 'escherjax[tpu]'); no TPU is used, no array allocated.
Prints memory, FLOPs, collectives, an estimate of time, and warnings. The result is cached, so that
the same command run again only prints it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from escherjax import files
from escherjax.errors import run_command

log = logging.getLogger("escherjax.compile")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m escherjax.compile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.FIELD=VALUE changes any field of the config, such as config.mesh.fsdp.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="config file")
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="generation (v4, v5e, v5p, v6e) and chips, such as v5e:16x16 or v5p:4x4x4",
    )
    parser.add_argument(
        "--program",
        choices=("train", "sample"),
        default="train",
        help="train: one step; sample: new views of config.eval's size (default %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--hlo", type=Path, metavar="FILE", help="write the compiled HLO text here")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="where results are cached (default ~/.cache)"
    )
    arguments, overrides = parser.parse_known_args(argv)

    from escherjax.compile import topology

    topology.parse_topology(arguments.topology)
    with contextlib.ExitStack() as stack:
        for option, file in (("--json", arguments.json), ("--hlo", arguments.hlo)):
            if file is not None:
                stack.enter_context(files.output_file(file, option))
        topology.prepare_environment()

        # After parsing, so that --help answers at once.
        from escherjax.compile import figures
        from escherjax.config import load_config
        from escherjax.train.checks import check_config

        config = load_config(arguments.config, overrides, check_config)
        result = figures.compile_for_topology(
            config, arguments.topology, arguments.program, arguments.cache, arguments.hlo
        )
        result["config"] = {"file": arguments.config, "overrides": list(overrides)}
        print(figures.format_report(result))
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
            print(arguments.json)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
