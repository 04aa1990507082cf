"""The one exception that means: the user's input is wrong, here is what to do."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Sequence

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75


class UserError(Exception):
    """Input that cannot be used: the message says what was found, what was needed, what to do."""


def listed(problems: Sequence[str], most: int = 10) -> str:
    """The first problems in a row, and how many more there are; each is a sentence or more."""
    more = f" ... and {len(problems) - most} more." if len(problems) > most else ""
    return " ".join(problems[:most]) + more


class StoppedError(Exception):
    """Work that cannot go on through no wrong input: the message says where it stopped."""


class TrainingError(StoppedError):
    """A training run that cannot go on."""


class Preempted(BaseException):  # which no `except Exception` may take
    """Asked to stop by a signal while nothing is there to save yet; says how to go on."""


def run_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> None:
    """Runs a command's `main(argv)` and exits: 0 done, 2 for a `UserError`, whatever main returns.

    A `UserError`, `StoppedError` (exit 1) or `Preempted` (exit 75) is printed to stderr as one
    message without a traceback. Any other exception propagates with its traceback, and Python exits
    with 1.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s")
    for noisy in ("orbax", "jax", "grain", "apache_beam"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax shows failures of its threads there with long tracebacks, and raises them again later.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        code = main(argv)
    except (UserError, StoppedError, Preempted, KeyboardInterrupt) as error:
        code = report(error)
    sys.exit(EXIT_OK if code is None else code)


def report(error: BaseException) -> int:
    """Prints what ended a command to stderr, with a traceback only if it is none of ours.

    Returns the exit code.
    """
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    if isinstance(error, Preempted):
        print(error, file=sys.stderr)
        return EXIT_PREEMPTED
    if isinstance(error, StoppedError):
        print(f"stopped: {error}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        traceback.print_exception(error)
    return EXIT_ERROR
