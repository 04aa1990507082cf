"""Trains EscherNet from a config.

    python -m escherjax.train --config demo --workdir runs/demo
    python -m escherjax.train --config 6dof --workdir runs/6dof \\
        --config.data.source=SHARDS --config.batch_size=256

The same command run again continues from the newest checkpoint. SIGTERM, SIGHUP (a closed
terminal) and Ctrl-C save and exit with 75; start again to continue. SIGUSR1 shows what all threads
are doing.
"""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from escherjax.devices.stopping import stop_signals
from escherjax.errors import UserError, run_command


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m escherjax.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.FIELD=VALUE changes any field of the config; see configs/base.py.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME[:ARG]",
        help="shipped config (6dof, 4dof, small, demo) or config file",
    )
    parser.add_argument(
        "--workdir", required=True, help="folder where checkpoints, metrics and pictures go"
    )
    arguments, overrides = parser.parse_known_args(argv)

    if "://" in arguments.workdir:
        raise UserError(
            f"--workdir must be a folder of this file system, got {arguments.workdir}. Mount the "
            "bucket or a shared disk; only shards (config.data.source) are read from addresses."
        )
    faulthandler.register(signal.SIGUSR1)
    with stop_signals() as stop:
        # After parsing, so that --help answers at once.
        from escherjax.config import load_config
        from escherjax.devices import startup
        from escherjax.train.checks import check_config
        from escherjax.train.loop import train

        config = load_config(arguments.config, overrides, check_config)
        startup.initialize()
        return train(config, Path(arguments.workdir), stop)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
