"""Exceptions for input that cannot be used and runs that stop, and how commands report them."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

# What reading a damaged or hostile file, and looking fields up in what it holds, may raise.
UNREADABLE: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    RecursionError,
    MemoryError,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75

TRACEBACK_VARIABLE = "ESCHERJAX_TRACEBACK"  # set, failures of the file system show where
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UserError(Exception):
    """Input that cannot be used: the message has what was found, what was expected, what to do."""


def listed(problems: Sequence[str], most: int = 10) -> str:
    """The first problems in a row, and how many more there are; each is a sentence or more."""
    more = f" ... and {len(problems) - most} more." if len(problems) > most else ""
    return " ".join(problems[:most]) + more


def for_each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results of a function for all items; one UserError lists what it raised for any of them."""
    results, problems = [], []
    for item in items:
        try:
            results.append(function(item))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(listed(problems))
    return results


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Rows of cells as lines of aligned columns; right: indices of those that end at one place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def describe_error(error: Exception) -> str:
    """Why a JSON file could not be used, from the failure to read it or to find a field in it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, KeyError):
        return f"it has no field {error.args[0]!r}"
    if isinstance(error, TypeError):
        return "its content has another form"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"it is not JSON: {error}"
    return str(error)


class StoppedError(Exception):
    """Work that cannot go on although the input was right: the message says where it stopped."""


class TrainingError(StoppedError):
    """A training run that cannot go on."""


class Preempted(BaseException):  # which no `except Exception` may catch
    """A stop signal came while there was nothing to save yet; the message says how to go on."""


def run_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> None:
    """Runs a command's `main(argv)` and exits: 0 done, 2 for a `UserError`, whatever main returns.

    A `UserError`, `StoppedError` (exit 1) or `Preempted` (exit 75) is printed to stderr as one
    message without a traceback, and so are failures of the file system that `report` knows. Any
    other exception propagates with its traceback, and Python exits with 1.
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
    except OSError as error:
        if _file_trouble(error) is None:
            raise
        code = report(error)
    sys.exit(EXIT_OK if code is None else code)


def report(error: BaseException) -> int:
    """Prints what ended a command to stderr, with a traceback only for unexpected exceptions.

    Expected are also a path that may not be used, or not as a file or folder, and a full disk. A
    missing file is not: it may well be a bug, and whoever reads a file that the user names reports
    it. Returns the exit code.
    """
    if isinstance(error, OSError) and (trouble := _file_trouble(error)) is not None:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exception(error)
        error = trouble
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


def _file_trouble(error: OSError) -> UserError | StoppedError | None:
    """What the file system refused, in words; None if that may be a bug of the program."""
    where = f" ({TRACEBACK_VARIABLE}=1 shows where.)"
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
    if error.errno in DISK_FULL:
        at = "" if path is None else f"{path}: "
        return StoppedError(
            f"{at}{error.strerror}. Make room, or name another place, then start the same command "
            f"again.{where}"
        )
    if path is None:
        return None
    if isinstance(error, PermissionError):
        return UserError(
            f"{path} may not be read or written by this user ({error.strerror}). Change its "
            f"permissions, or name another place.{where}"
        )
    if error.errno == errno.EROFS:
        return UserError(f"{path} is on a read-only file system; name another place.{where}")
    if isinstance(error, NotADirectoryError):
        return UserError(f"{path} leads through a file; expected a folder there.{where}")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path} is a folder; expected a file.{where}")
    return None
