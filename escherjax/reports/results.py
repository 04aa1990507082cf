"""What has been scored: `per_view.jsonl`, one JSON object a line, appended and synced case by case.

A case is one scene seen through N references. Each line has `scene`, `num_references`, `method`,
`view` (index among the targets), `num_views` (how many lines the case has of that method), and the
metrics by name. One of several processes writes `per_view.SHARD.jsonl`; what could not be read goes
to `skipped.jsonl` beside it, and is tried again when the job is. `consistency.jsonl` has a line a
case, if it was asked for, which is written before the others of the case.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from escherjax.errors import UserError, listed
from escherjax.files import whole_file

PER_VIEW, CONSISTENCY, SKIPPED = "per_view", "consistency", "skipped"
SAMPLES, NEAREST = METHODS = ("samples", "nearest_reference")  # every case is scored by each
TRUE_VIEWS = "true_views"
CONSISTENCY_VALUES = ("tsed", "distance", "track_error", "matches_per_pair")
FIELDS = {"scene": str, "num_references": int, "method": str, "view": int, "num_views": int}
_FIELDS_OF = {
    PER_VIEW: FIELDS,
    CONSISTENCY: {"scene": str, "num_references": int, SAMPLES: dict},
    SKIPPED: {"scene": str, "num_references": int, "reason": str},
}

log = logging.getLogger("escherjax.evaluate")

Record = dict[str, Any]


class CaseName(NamedTuple):
    """One scene with its first N references."""

    scene_id: str
    num_references: int


class Contents(NamedTuple):
    """records: lines of the cases that are whole, in order; problems: what else the file holds."""

    records: list[Record]
    problems: list[str]


class RecordFile:
    """A file of records that one process appends to, as long as it is open.

    What a kill left half done, or a disk damaged, is taken out when it is opened, and logged.
    Raises UserError if another process has it open.
    """

    def __init__(self, path: Path):
        self._file = _open_locked(path)
        contents = read_records(path)
        if contents.problems:
            log.warning("%s: %s These cases are done again.", path, listed(contents.problems))
            with self._file:  # let go of the lock on the damaged file once the new one stands
                write_rows(path, contents.records)
            self._file = _open_locked(path)
        self.cases = case_names(contents.records)

    def append(self, records: Sequence[Record]) -> None:
        """Adds the lines of whole cases; when this returns, the disk has them."""
        self._file.write(as_lines(records).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.cases |= case_names(records)

    def close(self) -> None:
        self._file.close()


def read_records(path: Path) -> Contents:
    """The lines of whole cases in a file, which may be written to at this moment.

    The file's name says what kind of lines it has. Of PER_VIEW a case has one for each method and
    view, of the others one.
    """
    kind = path.name.split(".")[0]
    lines, problems = _read_lines(path, _FIELDS_OF[kind])
    cases = _by_case(lines)
    for name, records in list(cases.items()) if kind == PER_VIEW else ():
        num_views = records[0]["num_views"]
        counts = Counter((record["method"], record["num_views"]) for record in records)
        if counts != {(method, num_views): num_views for method in METHODS}:
            problems.append(f"scene {name.scene_id!r} with N = {name.num_references} is not whole.")
            del cases[name]
    return Contents([record for records in cases.values() for record in records], problems)


def read_all(folder: Path, kind: str = PER_VIEW) -> list[Record]:
    """The lines of whole cases in all files of a kind in a folder, sorted, each case once.

    Of a case that is in two files, the one in the first file counts.
    """
    cases: dict[CaseName, list[Record]] = {}
    for path in sorted(folder.glob(f"{kind}*.jsonl")):
        cases = _by_case(read_records(path).records) | cases
    return sorted(
        (record for records in cases.values() for record in records),
        key=lambda r: (r["num_references"], r["scene"], r.get("method"), r.get("view")),
    )


def read_skipped(folder: Path, scored: Iterable[Record]) -> list[Record]:
    """`scene`, `num_references` and `reason` of every case that could not be read, sorted.

    scored: `read_all` of the folder; what stands there was read after all.
    """
    known = case_names(scored)
    return [row for row in read_all(folder, SKIPPED) if not case_names([row]) & known]


def _by_case(records: Iterable[Record]) -> dict[CaseName, list[Record]]:
    cases: dict[CaseName, list[Record]] = defaultdict(list)
    for record in records:
        cases[CaseName(record["scene"], record["num_references"])].append(record)
    return dict(cases)


def forget_skipped(folder: Path, shard: tuple[int, int]) -> None:
    """Removes what was skipped by this shard before, and in jobs of another number of shards.

    What other shards of this job skip stays.
    """
    mine = shard_file(folder, SKIPPED, shard)
    others = {shard_file(folder, SKIPPED, (index, shard[1])) for index in range(shard[1])} - {mine}
    for path in folder.glob(f"{SKIPPED}*.jsonl"):
        if path not in others:
            path.unlink(missing_ok=True)


def write_rows(path: Path, rows: Iterable[Record]) -> None:
    """Writes a file of JSON lines, whole or not at all."""
    with whole_file(path) as file:
        file.write_text(as_lines(rows))


def as_lines(rows: Iterable[Record]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def shard_file(folder: Path, kind: str, shard: tuple[int, int]) -> Path:
    """The file of `kind` of shard (index, count); one process alone writes without a number."""
    index, count = shard
    return folder / (f"{kind}.jsonl" if count == 1 else f"{kind}.{index}.jsonl")


def case_names(records: Iterable[Record]) -> set[CaseName]:
    return {CaseName(record["scene"], record["num_references"]) for record in records}


def _read_lines(path: Path, fields: Mapping[str, type]) -> Contents:
    """The lines of a file that have these fields."""
    if not path.exists():
        return Contents([], [])
    lines = path.read_bytes().split(b"\n")
    problems, rows = [], []
    if lines.pop():
        problems.append(f"line {len(lines) + 1} is half written.")
    for number, line in enumerate(lines, 1):
        record = _parsed(line, fields)
        if record is None:
            problems.append(f"line {number} is damaged.")
        else:
            rows.append(record)
    return Contents(rows, problems)


def _parsed(line: bytes, fields: Mapping[str, type]) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    fits = all(type(record.get(name)) is kind for name, kind in fields.items())
    return record if fits else None


def _open_locked(path: Path) -> BinaryIO:
    """Opens the file to append; the kernel gives the lock back however this process ends."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(
            f"{path} is being written by another evaluation. Wait for it or stop it; several "
            "processes share one --out only with different numbers in --shard."
        ) from None
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s); see that no other job writes it", path, error)
    return file
