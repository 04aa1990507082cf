"""Evaluates weights on a data set: figures with intervals, and a report to look at.

    python -m escherjax.evaluate --weights W --data SHARDS --protocol heldout \\
        --references 1,2,3,5 --out eval/
    python -m escherjax.evaluate --weights W --data GSO30 --protocol gso25 --out eval/
    python -m escherjax.evaluate --follow runs/6dof --data SHARDS --protocol heldout --out eval/

Every case, one scene seen through its first N references, is sampled and scored beside copying
the nearest reference. --out gets per_view.jsonl, summary.json and report.html. A job that was
killed continues when started again; --shard i/n on several machines with one --out does the i-th
part, i from 0, and the last to finish writes the summary. --follow evaluates each checkpoint that a
training run saves, until its last, and needs nothing of it but its folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from escherjax import files
from escherjax.devices.stopping import Stop, stop_signals
from escherjax.errors import EXIT_OK, EXIT_PREEMPTED, UserError, listed, run_command
from escherjax.models.diffusion import sampling
from escherjax.models.diffusion.sampling import Sampling

# Flags that only one protocol takes; fields of evaluate.protocol.Source.
SOURCE_FLAGS = ("index_path", "split", "num_targets", "fov_deg", "max_radius")


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    _check(arguments)

    with stop_signals() as stop:
        # After parsing, so that --help answers at once.
        from escherjax.devices import startup
        from escherjax.evaluate import cases, follow, run
        from escherjax.evaluate.protocol import Source

        if arguments.merge:
            return _finish(run.merge(arguments.out), arguments.out, stop)
        startup.initialize()
        source = Source(
            arguments.protocol,
            arguments.data,
            arguments.mode,
            arguments.references,
            arguments.limit,
            **{name: getattr(arguments, name) for name in SOURCE_FLAGS},
        )
        request = cases.Request(
            source=source,
            out=arguments.out,
            metrics=tuple(arguments.metrics.split(",")),
            sampling=Sampling.from_arguments(arguments),
            dtype=arguments.dtype,
            cape=arguments.cape,
            params=arguments.params,
            batch_size=arguments.batch_size,
            view_devices=arguments.view_parallel,
            shard=arguments.shard or cases.default_shard(),
            report_scenes=arguments.report_scenes,
            save_views=arguments.save_views,
        )
        with files.output_folder(arguments.out):
            if arguments.follow is not None:
                finished = follow.follow(
                    request,
                    arguments.follow,
                    stop,
                    until_step=arguments.follow_until_step,
                    poll_sec=arguments.follow_poll_sec,
                )
            else:
                finished = run.evaluate(request, arguments.weights, stop)
        return _finish(finished, arguments.out, stop)


def _finish(finished: bool, out: Path, stop: Stop) -> int:
    if not finished and stop.heard:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return EXIT_PREEMPTED
    print(out / "report.html" if finished else out)
    return EXIT_OK


def _check(arguments: argparse.Namespace) -> None:
    problems = []
    if arguments.merge:
        if arguments.weights or arguments.follow:
            problems.append("--merge takes no weights: it makes the summary of what is in --out.")
    else:
        if (arguments.weights is None) == (arguments.follow is None):
            problems.append("one of --weights W and --follow WORKDIR must be given.")
        if arguments.data is None:
            problems.append("--data is missing.")
        if arguments.protocol is None:
            problems.append("--protocol is missing, such as heldout.")
    for name, lowest in (("batch_size", 1), ("limit", 1), ("report_scenes", 0)):
        value = getattr(arguments, name)
        if value is not None and value < lowest:
            option = "--" + name.replace("_", "-")
            problems.append(f"{option} must be at least {lowest}, got {value}.")
    if arguments.follow is None and arguments.follow_until_step is not None:
        problems.append("--follow-until-step goes with --follow WORKDIR.")
    if problems:
        raise UserError(listed(problems))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m escherjax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what is evaluated").add_argument
    what(
        "--weights",
        metavar="W",
        help="work directory, checkpoint in it, pipeline folder, or hub id owner/name",
    )
    what(
        "--follow",
        type=Path,
        metavar="WORKDIR",
        help="each checkpoint of this training run as it is saved",
    )
    what(
        "--params",
        choices=("ema", "raw"),
        help="of a work directory: averaged or last (default: the average if kept)",
    )
    what("--cape", help="camera encoding of a folder whose name does not say it")
    on = parser.add_argument_group("on what").add_argument
    on("--protocol", help="gso25, gso3d, gso100, rtmv, nerf, franka, mvdream, text2img, heldout")
    on("--data", metavar="DIR", help="shards or scene folders, as the protocol says")
    on(
        "--mode",
        default="faithful",
        help="faithful: the published rules, oddities included; corrected: true alpha, one resize, "
        "matched field of view (default %(default)s)",
    )
    on(
        "--references",
        type=_counts,
        metavar="N,N,...",
        help="numbers of references (default: the protocol's)",
    )
    on(
        "--metrics",
        default="psnr,ssim,lpips",
        help="of psnr, ssim, lpips, and consistency: of a scene's views with each other, no truth "
        "required, but the extra 'prep' (default %(default)s)",
    )
    on("--limit", type=int, metavar="n", help="only the first n scenes")
    on("--split", help="of shards or transforms_SPLIT.json, for heldout")
    on("--num-targets", type=int, help="most targets of a scene, for heldout")
    on(
        "--max-radius",
        type=float,
        metavar="R",
        help="for heldout: scale scenes so that the farthest camera stands there",
    )
    on(
        "--fov-deg",
        type=float,
        metavar="DEG",
        help="for heldout, corrected: pad with white or cut to this field of view",
    )
    on("--index-path", type=Path, metavar="DIR", help="index lists, for nerf")
    sampling.add_arguments(parser)
    how = parser.add_argument_group("how views are sampled").add_argument
    how("--dtype", default="float32", help="compute: float32 or bfloat16")
    work = parser.add_argument_group("where the work is done").add_argument
    work("--out", required=True, type=Path, metavar="DIR")
    work(
        "--batch-size",
        type=int,
        metavar="n",
        help="cases sampled at a time (default: one a device)",
    )
    work(
        "--view-parallel",
        type=int,
        default=1,
        metavar="n",
        help="devices that share the views of a case (default %(default)s)",
    )
    work(
        "--shard",
        type=_shard,
        metavar="i/n",
        help="this process's part, i from 0 (default: as jax.distributed numbers it)",
    )
    work(
        "--merge",
        action="store_true",
        help="summary and report of what all shards left in --out, complete or not",
    )
    work(
        "--save-views",
        action="store_true",
        help="every view as a PNG, with cameras: views/SCENE/N3/000.png, transforms.json",
    )
    work(
        "--report-scenes",
        type=int,
        default=30,
        metavar="n",
        help="scenes with pictures in the report (default %(default)s)",
    )
    work(
        "--follow-until-step",
        type=int,
        metavar="STEP",
        help="with --follow: end after this step (default: the training's last)",
    )
    work(
        "--follow-poll-sec",
        type=float,
        default=20.0,
        metavar="SEC",
        help="with --follow: how often to look (default %(default)s)",
    )
    return parser


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers such as 1,2,3,5, got {text!r}") from None


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(
            f"must be i/n with i from 0 to n - 1, such as 0/4, got {text!r}"
        )
    return int(index), int(count)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
