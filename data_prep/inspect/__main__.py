"""Looks at shards: statistics, bad records, and a page with thumbnails and cameras to turn.

    python -m data_prep.inspect shards --out page.html

Every record of a split is read. Broken ones are counted and named, and reading goes on. The page is
one file that needs no network; scenes with faults or warnings come first on it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from escherjax.errors import UserError, run_command

if TYPE_CHECKING:
    from data_prep.inspect.epipolar import Agreement
    from data_prep.inspect.survey import Finding, Survey

LINES_PRINTED = 20
BAR_WIDTH = 40


def argument_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.inspect",
        description="Looks at shards: statistics, bad records, a page with thumbnails and cameras.",
    )
    parser.add_argument(
        "shards",
        help="folder that a data_prep command made, or its address (gs://, s3://, http://)",
    )
    parser.add_argument("--split", default="train", help="name of the split (default %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("page.html"),
        help="the page to write (default %(default)s)",
    )
    parser.add_argument(
        "--scenes",
        type=int,
        default=12,
        help="scenes on the page; 0 writes no page (default %(default)s)",
    )
    parser.add_argument(
        "--views",
        type=int,
        default=48,
        help="at most so many views of a scene on the page, evenly spread (default %(default)s)",
    )
    parser.add_argument("--limit", type=int, help="read only so many records, evenly spread")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="read only the headers of pictures: "
        "faster, but a picture that is cut off is not found",
    )
    parser.add_argument(
        "--epipolar",
        action="store_true",
        help="match neighbouring views (SIFT) "
        "and list those whose cameras do not explain the matches; needs the extra 'prep', and "
        "some seconds a scene",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads")
    return parser


def main(argv: Sequence[str]) -> None:
    """Runs the command; see --help."""
    args = argument_parser().parse_args(argv)
    for name, lowest in (("scenes", 0), ("views", 1), ("limit", 1), ("workers", 1)):
        value = getattr(args, name)
        if value is not None and value < lowest:
            raise UserError(f"--{name} must be at least {lowest}, got {value}.")
    if args.scenes and not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: {args.out.parent} is not a directory; make it first.")

    import numpy as np
    from tqdm import tqdm

    from data_prep.inspect import epipolar, survey
    from data_prep.inspect import page as inspect_page
    from escherjax.data import shards
    from escherjax.data.read_ahead import map_ahead

    if args.epipolar:
        epipolar.load_opencv()  # before the long reading
    source = shards.open_shards(args.shards, args.split)
    count = len(source) if args.limit is None else min(args.limit, len(source))
    places = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()

    def look(index: int) -> tuple[Finding, Agreement | None]:
        finding = survey.examine(source, index, decode=not args.quick)
        if not args.epipolar or finding.faults:
            return finding, None
        try:
            return finding, epipolar.check_scene(source[index])
        except UserError as error:  # a picture whose header alone was read before
            fault = shards.Fault("unreadable picture", str(error))
            return survey.Finding(index, finding.scene_id, [fault]), None

    total, agreements, usable = survey.Survey(), {}, []
    bar = tqdm(total=count, desc=f"{args.shards} {args.split}", unit="scene", mininterval=1)
    with bar:
        for _, (finding, agreement) in map_ahead(look, places, args.workers, 2 * args.workers):
            bar.update()
            total.add(finding)
            if not finding.faults:
                usable.append(finding.index)
            if agreement is not None:
                agreements[finding.index] = (str(finding.scene_id), agreement)

    rows, lists = total.table(), findings_as_text(total, source.shard_of)
    if args.epipolar:
        epipolar_rows, lists["epipolar"] = agreements_as_text(agreements)
        rows += epipolar_rows
    print_report(rows, total.histograms(), lists)
    if not args.scenes:
        return
    broken = [finding for finding in total.faulty if survey.can_be_shown(finding)]
    noted = [finding.index for finding in (*broken, *total.warned)]
    noted += [i for i, (_, a) in agreements.items() if a.scene_warning or a.outliers]
    notes = {finding.index: finding.warnings for finding in total.warned}
    notes |= {finding.index: [fault.text for fault in finding.faults] for finding in broken}
    shown = []
    for index in choose_scenes(usable, noted, args.scenes):
        agreement = agreements[index][1] if index in agreements else None
        scene = source.read_unchecked(index)
        try:
            shown.append(
                inspect_page.scene_data(scene, args.views, notes.get(index, []), agreement)
            )
        except UserError as error:  # --quick has not seen more than the header of its pictures
            lists["bad records"].append(f"record {index}, scene {scene.scene_id!r}: {error}")
            print(f"not shown: {lists['bad records'][-1]}")
    title = f"{args.shards} {args.split}"
    inspect_page.write(args.out, title, rows, total.histograms(), lists, shown)
    print(args.out)


def choose_scenes(usable: Sequence[int], noted: Sequence[int], number: int) -> list[int]:
    """At most `number` of the records `usable`: up to half of them noted ones, the rest spread.

    Noted scenes come first, then the others in order.
    """
    first = list(dict.fromkeys(noted))[: max(1, number // 2)]
    others = [index for index in usable if index not in set(first)]
    number = min(number - len(first), len(others))
    step = len(others) / number if number else 1
    return first + [others[int(i * step)] for i in range(number)]


def findings_as_text(total: Survey, shard_of: Callable[[int], str]) -> dict[str, list[str]]:
    """Title -> one line for each fault and each warning, all of them."""
    bad = [
        f"record {finding.index} ({shard_of(finding.index)})"
        f"{'' if finding.scene_id is None else f', scene {finding.scene_id!r}'}: "
        f"[{fault.kind}] {fault.text}"
        for finding in total.faulty
        for fault in finding.faults
    ]
    odd = [
        f"record {finding.index}, scene {finding.scene_id!r}: {text}"
        for finding in total.warned
        for text in finding.warnings
    ]
    return {"bad records": bad, "warnings": odd}


def agreements_as_text(
    agreements: dict[int, tuple[str, Agreement]],
) -> tuple[list[tuple[str, str]], list[str]]:
    """(rows for the table, one line for each scene and view that disagrees)."""
    import numpy as np

    lines = []
    parts = [agreement.distance for _, agreement in agreements.values()]
    distance = np.concatenate(parts) if parts else np.zeros(0)
    for index, (scene_id, agreement) in agreements.items():
        where = f"record {index}, scene {scene_id!r}"
        if agreement.scene_warning:
            lines.append(f"{where}: {agreement.scene_warning}")
        measured = np.isfinite(agreement.distance)
        lines += [
            f"{where}: view {view} disagrees with the others, "
            f"median epipolar distance {agreement.distance[view]:.1f} px; {measured.sum()} of "
            f"{len(measured)} views could be measured."
            for view in agreement.outliers
        ]
    known = distance[np.isfinite(distance)]
    median = f"{np.median(known):.2f} px (median over views)" if len(known) else "none"
    unknown = f"{len(distance) - len(known)} of {len(distance)}"
    return [("epipolar distance", median), ("  views with too few matches", unknown)], lines


def print_report(
    rows: Sequence[tuple[str, str]],
    histograms: Sequence[tuple[str, Sequence[tuple[float, float, int]]]],
    lists: dict[str, list[str]],
) -> None:
    """Prints statistics, histograms and the first lines of each list of findings."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")
    for title, bins in histograms:
        if bins:
            print(f"\n{title} (views)")
        most = max((count for _, _, count in bins), default=1)
        for low, high, count in bins:
            bar = "#" * -(-BAR_WIDTH * count // most)
            print(f"  {low:9.3f} - {high:9.3f}  {bar:{BAR_WIDTH}}  {count}")
    for title, lines in lists.items():
        if lines:
            print(f"\n{title}: {len(lines)}")
        for line in lines[:LINES_PRINTED]:
            print(f"  {line}")
        if len(lines) > LINES_PRINTED:
            print(f"  ... and {len(lines) - LINES_PRINTED} more, on the page")
    print()


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
