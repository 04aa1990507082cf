"""Lists and verifies the checkpoints of a work directory.

    python -m escherjax.checkpoints runs/demo
    python -m escherjax.checkpoints runs/demo --verify      # reads every byte of them

Exits with 2 if a checkpoint is damaged, or there is none. Nothing is changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from escherjax.errors import EXIT_OK, EXIT_USER_ERROR, UserError, aligned, run_command


def main(argv: Sequence[str]) -> int:
    """Runs the command; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m escherjax.checkpoints",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", metavar="DIR", type=Path, help="training work directory")
    parser.add_argument("--verify", action="store_true", help="compare every byte with checksums")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)

    workdir = arguments.workdir
    rows, others = list_checkpoints(workdir, arguments.verify), list_others(workdir)
    if arguments.json:
        content = {"workdir": str(workdir), "checkpoints": rows, "not_checkpoints": others}
        print(json.dumps(content, indent=2))
    else:
        print("\n".join([_table(rows), *map(_not_a_checkpoint, others)]))
    return EXIT_USER_ERROR if any(row["problems"] for row in rows) else EXIT_OK


def list_checkpoints(workdir: Path, verify: bool = False) -> list[dict[str, Any]]:
    """A JSON record of each checkpoint, oldest first, then those set aside as damaged.

    Keys: folder (its name), step, saved (ISO 8601, UTC), bytes, config (the first 8 hex digits of
    the SHA-256 of its JSON), commit, whole (the folder has all its parts, and is of the step it is
    named by), checksums ("hold", "differ", "unread" without `verify`, "none" where it has no
    manifest), problems. Without `verify` only presence and sizes of files are looked at, and the
    step in the record. Raises UserError if there is none.
    """
    # After parsing, so that --help answers at once.
    from escherjax.weights.integrity import steps

    checkpoints = workdir / "checkpoints"
    aside = sorted(path for path in checkpoints.glob("*.damaged*") if _is_set_aside(path))
    folders = [checkpoints / str(step) for step in steps(workdir)] + aside
    if not folders:
        others = "".join(f"\n  {_not_a_checkpoint(name)}" for name in list_others(workdir))
        raise UserError(
            f"{workdir} has no checkpoints/STEP; expected a training work directory.{others}"
        )
    return [_describe(folder, verify) for folder in folders]


def list_others(workdir: Path) -> list[str]:
    """Names of folders in `workdir/checkpoints` that are neither checkpoints, by name, nor a save
    under way; training reads none of them."""
    from escherjax.weights.integrity import UNFINISHED, step_of

    return sorted(
        path.name
        for path in (workdir / "checkpoints").glob("*")
        if path.is_dir()
        and step_of(path.name) is None
        and not _is_set_aside(path)
        and UNFINISHED not in path.name
    )


def _is_set_aside(path: Path) -> bool:
    from escherjax.weights.integrity import step_of

    step, _, rest = path.name.partition(".")
    return path.is_dir() and step_of(step) is not None and rest.startswith("damaged")


def _not_a_checkpoint(name: str) -> str:
    return f"not a checkpoint: {name} (a checkpoint is named by its step alone, such as 6)"


def _describe(folder: Path, verify: bool) -> dict[str, Any]:
    import datetime
    import hashlib

    from escherjax.weights import integrity, ownership

    problems = integrity.find_problems(folder, sizes_only=True)
    whole = not problems
    if verify and whole:
        problems = integrity.find_problems(folder)
    checksums = "none"
    if integrity.has_manifest(folder):
        checksums = ("differ" if problems else "hold") if verify else "unread"
    try:
        record = integrity.read_record(folder)
    except (OSError, ValueError):  # which is among the problems
        record = {}
    step = integrity.step_of(folder.name)
    if step is not None and (foreign := ownership.of_other_run(folder.parent.parent, step)):
        problems = [*problems, foreign]
    config = record.get("config", "")
    files = [path for path in folder.rglob("*") if path.is_file()]
    newest = max((path.stat().st_mtime for path in files), default=folder.stat().st_mtime)
    saved = datetime.datetime.fromtimestamp(newest, datetime.UTC)
    return {
        "folder": folder.name,
        "step": int(folder.name.split(".")[0]),
        "saved": saved.isoformat(timespec="seconds"),
        "bytes": sum(path.stat().st_size for path in files),
        "config": hashlib.sha256(config.encode()).hexdigest()[:8] if config else "",
        "commit": record.get("commit", ""),
        "whole": whole,
        "checksums": checksums,
        "problems": problems,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [("checkpoint", "saved", "MiB", "config", "commit", "whole", "checksums")]
    for row in rows:
        saved, size = row["saved"].replace("+00:00", "Z"), f"{row['bytes'] / 2**20:,.1f}"
        whole = "yes" if row["whole"] else "NO"
        cells = row["folder"], saved, size, row["config"], row["commit"][:8], whole
        lines.append((*cells, row["checksums"]))
    damaged = [f"damaged: {line}" for row in rows for line in row["problems"]]
    return "\n".join([aligned(lines), *damaged])


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
