"""A web page that generates new views of pictures.

    python -m escherjax.demo --weights runs/demo

Drop pictures, set their cameras, choose a path, generate, turn the result, download it. Listens on
this machine alone unless --host says otherwise: whoever reaches the page can use it. Without
--weights the page opens, but cannot generate views; `make demo` trains a small network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from escherjax.errors import UserError, run_command


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.max_views < 1 or not arguments.max_seconds > 0:
        raise UserError(
            "--max-views must be at least 1 and --max-seconds positive, got "
            f"{arguments.max_views} and {arguments.max_seconds}."
        )

    # After parsing, so that --help answers at once.
    import dataclasses
    import logging
    from pathlib import PurePath

    from escherjax.demo.limits import Limits
    from escherjax.demo.server import DemoServer

    logging.getLogger("websockets").setLevel(logging.WARNING)
    pipe = None
    if arguments.weights is not None:
        from escherjax.sample import loading

        pipe = loading.load(arguments.weights, arguments.dtype, arguments.cape)
    limits = dataclasses.replace(
        Limits(), targets=arguments.max_views, job_sec=arguments.max_seconds
    )
    name = PurePath(arguments.weights).name if arguments.weights is not None else ""
    server = DemoServer(pipe, name, arguments.host, arguments.port, limits)
    if pipe is None:
        from escherjax.demo.panels import ADVICE

        print(ADVICE, file=sys.stderr)
    shown = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    print(f"http://{shown}:{server.port}", flush=True)
    try:
        server.wait()
    except KeyboardInterrupt:
        print("closing", file=sys.stderr)
    finally:
        server.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m escherjax.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--weights",
        metavar="W",
        help="work directory, checkpoint in it, pipeline folder, or hub id owner/name",
    )
    add("--port", type=int, default=7860, help="0 for a free one (default %(default)s)")
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on, 0.0.0.0 for all (default %(default)s)",
    )
    add("--dtype", default="float32", help="compute: float32 or bfloat16")
    add("--cape", help="camera encoding of a pipeline folder that does not name it")
    add("--max-views", type=int, default=48, help="views of one request (default %(default)s)")
    add(
        "--max-seconds",
        type=float,
        default=900.0,
        help="time of one request, its compilation included (default %(default)s)",
    )
    return parser


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
