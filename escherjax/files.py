"""Writes files that are whole or absent, creates output folders, and explains disk failures.

A path is a pathlib.Path, or an etils.epath.Path for an address such as gs://bucket/folder, which
needs the fsspec package of that address (gcsfs, s3fs).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
import tempfile
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from escherjax.errors import DISK_FULL, TrainingError, UserError

# By errno, and by what the libraries below Orbax write instead of one; DISK_FULL likewise.
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large")
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_REFUSED_TEXTS = ("Permission denied", "Read-only file system", "Operation not permitted")


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` is an address (gs://bucket/folder), not a place in the local file system."""
    return "://" in os.fspath(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a local path to write to, and moves the file to `path` unless something is raised.

    Otherwise nothing of it is left. Names in between are new each time and end in ".tmp", so that
    two writers of one file do no harm.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    if not is_remote(path):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return
    from etils import epath

    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / path.name
        yield local
        epath.Path(local).copy(temporary)
    temporary.replace(path)


def file_size(path: Path) -> int:
    """Bytes of a file, local or not."""
    from etils import epath

    return epath.Path(path).stat().length


@contextmanager
def explained(workdir: Path, what: str) -> Iterator[None]:
    """Turns a disk's failure to write `what` into a readable TrainingError; others pass."""
    try:
        yield
    except (UserError, TrainingError):
        raise
    except Exception as error:
        reason = _reason(error, workdir)
        if not reason and not (workdir / "config.json").is_file():
            raise _gone(workdir) from error  # even if Orbax made the folder anew
        if not reason:
            raise
        raise TrainingError(
            f"{what} could not be written to {workdir}: {reason}. Checkpoints that were whole are "
            "untouched. Fix that, then start the same command again to continue from the newest."
        ) from error


@contextmanager
def usable(workdir: Path, option: str = "--workdir") -> Iterator[None]:
    """Turns a failure to create or use the folder of `option` at the start into one message.

    A UserError where another folder, or rights, are required; a TrainingError where the disk fails.
    """
    try:
        yield
    except OSError as error:
        refused = error.errno in _REFUSED | _NO_FOLDER
        raise (UserError if refused else TrainingError)(
            f"{option} {workdir} cannot be used: {_reason(error, workdir) or error}. Nothing was "
            f"started. Fix that or name another {option}, then start the same command again."
        ) from error


@contextmanager
def output_folder(folder: Path, option: str = "--out") -> Iterator[None]:
    """Creates the output folder that is filled inside, and removes it again if it stays empty.

    Args:
        folder: to create, with those above it.
        option: the flag that named it, for messages.

    Raises:
        UserError: it cannot be created or written to.
        TrainingError: the disk below it fails.
    """
    with usable(folder, option):
        check_no_file(folder, option)
        made = make(folder)
    try:
        yield
    finally:
        remove(made)


@contextmanager
def output_file(file: Path, option: str = "--out") -> Iterator[None]:
    """Creates the folder of an output file that is written after the work; see `output_folder`.

    Raises UserError also if the file is a folder or cannot be written.
    """
    if file.is_dir():
        raise UserError(f"{option} {file} is a folder; name a file in it.")
    if file.exists() and not os.access(file, os.W_OK):
        raise UserError(f"{option} {file} exists and may not be written; name another file.")
    with output_folder(file.parent, option):
        yield


def check_no_file(folder: Path, option: str = "--workdir") -> None:
    """Raises UserError if the folder of `option`, or one above it, is a file."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        found = "is a file" if there == folder else f"leads through {there}, which is a file"
        raise UserError(f"{option} {folder} {found}; name a folder that exists or can be created.")


def make(folder: Path) -> list[str]:
    """Creates a folder and those above it; returns which were missing, the innermost first.

    Raises OSError if it cannot be created or written to, and then leaves none behind.
    """
    missing = [str(path) for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"  # rights alone do not show a read-only disk
        probe.touch()
        probe.unlink()
    except OSError:
        remove(missing)
        raise
    return missing


def remove(folders: list[str]) -> None:
    """Removes what `make` created, as far as it is empty."""
    with suppress(OSError):  # one that is in use is not empty
        for folder in folders:
            if Path(folder).exists():
                Path(folder).rmdir()


def report_failed_saves_once() -> None:
    """Silences, from here on, what a failed save of Orbax leaves behind in its event loop.

    Orbax raises one failure, which is reported. That of every other array (hundreds) would be
    printed when its task is thrown away, or when a thread of tensorstore reports to the loop that
    was closed; seen up to Orbax 0.12.8, whose tasks nobody awaits after the first failure
    (https://docs.python.org/3/library/asyncio-dev.html, "Detect never-retrieved exceptions").
    """
    logger = logging.getLogger("asyncio")
    if _is_news in logger.filters:
        return
    logger.addFilter(_is_news)
    hook = sys.unraisablehook

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        closed = isinstance(unraisable.exc_value, RuntimeError) and (
            str(unraisable.exc_value) == "Event loop is closed"
        )
        if not (closed and unraisable.object is None):
            hook(unraisable)

    sys.unraisablehook = report


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of asyncio's log is about anything but an unawaited save of Orbax.

    Its tasks failed in code of Orbax; futures that tensorstore fills failed in no Python code.
    """
    error = record.exc_info[1] if record.exc_info else None
    if error is None or "exception was never retrieved" not in record.getMessage():
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return not any(words in str(error) for words in (*_FULL_TEXTS, *_REFUSED_TEXTS))
    return not any("orbax" in Path(frame.filename).parts for frame in frames)


def check_there(workdir: Path) -> None:
    """Raises TrainingError if the work directory is gone, before anything creates it again."""
    if not (workdir / "config.json").is_file():
        raise _gone(workdir)


def _gone(workdir: Path) -> TrainingError:
    return TrainingError(
        f"the work directory {workdir} is gone, or its config.json: moved, deleted or unmounted "
        "while the run was on. Nothing more is written. Bring it back, then start the same command "
        "again to continue from the newest checkpoint in it."
    )


def _reason(error: BaseException | None, workdir: Path) -> str:
    """What went wrong on the disk, "" if neither the error nor its causes say so."""
    while error is not None:
        number, text = getattr(error, "errno", None), str(error)
        if number in DISK_FULL or any(words in text for words in _FULL_TEXTS):
            return f"no space is left there, or a quota or limit is reached ({_free(workdir)} free)"
        if number in _REFUSED or any(words in text for words in _REFUSED_TEXTS):
            return f"writing is not allowed there ({text.splitlines()[0]})"
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            return text if (workdir / "config.json").is_file() else ""
        error = error.__cause__ or error.__context__
    return ""


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB"
    except OSError:
        return "unknown"
