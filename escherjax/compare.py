"""Sets evaluations side by side, with paired differences over the scenes that they share.

    python -m escherjax.compare eval/a eval/b eval/c --out compare.html

Each is the --out of escherjax.evaluate, or a summary.json. Differences are to the first one, scene
by scene, with 95% bootstrap intervals over scenes: much narrower than those of the means, since how
hard a scene is cancels out. Evaluations of different protocols, modes or metric conventions are
refused, for their figures mean different things.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from escherjax import files
from escherjax.errors import UserError, run_command


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m escherjax.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="two at least")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write a page, .html")
    arguments = parser.parse_args(argv)
    if len(arguments.runs) < 2:
        raise UserError("one evaluation was named; needed two or more to compare.")

    # After parsing, so that --help answers at once.
    from escherjax.reports import compare_report, comparison

    page = arguments.out
    with contextlib.nullcontext() if page is None else files.output_file(page):
        found = comparison.compare(arguments.runs)
        print(compare_report.as_text(found))
        if page is not None:
            compare_report.write(page, found)
            print(page)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
