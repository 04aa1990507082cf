"""The one exception that means: the user's input is wrong, here is what to do."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75


class UserError(Exception):
    """Input that cannot be used: the message says what was found, what was needed, what to do."""


class StoppedError(Exception):
    """Work that cannot go on through no wrong input: the message says where it stopped."""


class TrainingError(StoppedError):
    """A training run that cannot go on."""


def run_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> None:
    """Runs a command's `main(argv)` and exits: 0 done, 2 for a `UserError`, whatever main returns.

    A `UserError` or `StoppedError` (exit 1) is printed to stderr as one message without a
    traceback. Any other exception propagates with its traceback, and Python exits with 1.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s")
    for noisy in ("absl", "orbax", "jax", "grain", "apache_beam"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except StoppedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    sys.exit(EXIT_OK if code is None else code)
