"""The report of an import: what was made, what was skipped and why."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPORT_FILE = "report.json"


def make_report(
    plan: Mapping[str, Any],
    source: str,
    lengths: Mapping[str, Sequence[int]],
    notes: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of report.json.

    plan: its command and options are kept. source: left out of reasons to skip scenes.
    lengths: scenes in each shard of each split; notes: those of the shards, see `ShardTask.run`.
    """
    skipped = [entry for note in notes for entry in note["skipped"]]
    return {
        "command": plan["command"],
        "options": plan["options"],
        "scenes": sum(map(sum, lengths.values())),
        "views": sum(note["views"] for note in notes),
        "bytes": sum(note["bytes"] for note in notes),
        "splits": {split: sum(counts) for split, counts in lengths.items()},
        "num_skipped": len(skipped),
        "skipped_by_reason": _count_reasons(skipped, source),
        "skipped": skipped,
        "notes": {key: value for note in notes for key, value in note["notes"].items()},
    }


def print_summary(report: Mapping[str, Any], out: Path) -> None:
    """Prints the counts of a report, and the first skipped scenes."""
    counts = ", ".join(f"{name} {count}" for name, count in report["splits"].items())
    print(
        f"{report['scenes']} scenes ({counts}), {report['views']} views, "
        f"{report['bytes'] / 1e6:.1f} MB, {report['num_skipped']} skipped"
    )
    for kind, count in report["skipped_by_reason"].items():
        print(f"  skipped {count}: {kind}")
    for entry in report["skipped"][:5]:
        print(f"    {entry['scene_id']}: {entry['reason']}")
    if report["num_skipped"] > 5:
        print(f"    ... and {report['num_skipped'] - 5} more, all in {out / REPORT_FILE}")
    print(out)


def _count_reasons(skipped: Sequence[Mapping[str, str]], source: str) -> dict[str, int]:
    """How often scenes were skipped for each reason, most often first.

    A reason's kind is its first sentence, without names of files and scenes, and numbers.
    """
    kinds: collections.Counter[str] = collections.Counter()
    for entry in skipped:
        text = entry["reason"]
        for name in (source, entry["scene_id"]):
            text = text.replace(name, "/") if " " in name else text  # else it is one word below
        sentence = re.split(r"[;.](?:\s|$)", text, maxsplit=1)[0]
        words = ["..." if re.search("[/']", word) else word for word in sentence.split()]
        kinds[re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", " ".join(words))] += 1
    return dict(kinds.most_common())
