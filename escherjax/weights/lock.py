"""Keeps a second run out of a work directory, by the file `run.lock`.

On one machine, and wherever the file system carries locks across machines, the kernel keeps the
lock and drops it with the process, however that ends. For file systems that do not, the holder also
counts up a beat inside the file, and a newcomer from another machine watches whether it moves;
clocks, which may differ or jump, play no part.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from escherjax.devices import hosts
from escherjax.errors import UserError

FILE_NAME = "run.lock"
BEAT_SECONDS = 5.0
WATCH_SECONDS = 20.0  # some beats, since network file systems show changes late

log = logging.getLogger("escherjax.train")


@contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Holds `workdir`, which must exist, for this run while inside; the first host does so for all.

    The file stays, empty, when let go. Raises UserError if another run holds it, saying which.
    """
    lock = _Lock(workdir)
    hosts.on_first_host(lock.acquire)
    try:
        yield
    finally:
        if jax.process_index() == 0:
            lock.release()


class _Lock:
    """The lock of one work directory, and the thread that counts its beat."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._fd = -1
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run.lock", daemon=True)

    def acquire(self) -> None:
        self._fd = os.open(self._workdir / FILE_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take()
        except BaseException:
            os.close(self._fd)
            raise
        self._thread.start()

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        with suppress(OSError):  # a disk that failed has been reported by then
            os.ftruncate(self._fd, 0)
        os.close(self._fd)

    def _take(self) -> None:
        locked = True
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refusal(self._read()) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            locked = False  # a file system without locks: only the beat tells
        holder = self._read()
        if holder and not (locked and holder.get("boot") == _boot_id()):
            log.info(
                "%s/%s names process %s on %s; watching for %.0f s whether it is alive",
                self._workdir,
                FILE_NAME,
                holder.get("pid"),
                holder.get("host"),
                WATCH_SECONDS,
            )
            end = time.monotonic() + WATCH_SECONDS
            while time.monotonic() < end:
                time.sleep(BEAT_SECONDS / 5)
                if self._read() != holder:
                    raise self._refusal(holder)
        self._mine = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "boot": _boot_id(),
        }
        try:
            self._write(0)
        except OSError:
            if os.fstat(self._fd).st_size == 0:  # of no run: ours, that a full disk does not take
                (self._workdir / FILE_NAME).unlink(missing_ok=True)
            raise

    def _refusal(self, holder: dict[str, Any]) -> UserError:
        return UserError(
            f"--workdir {self._workdir} is in use by another run: process {holder.get('pid', '?')} "
            f"on {holder.get('host', '?')}, started {holder.get('started', '?')} "
            f"({self._workdir / FILE_NAME}). Two runs would overwrite each other. Wait for it, "
            "stop it, or take another --workdir."
        )

    def _read(self) -> dict[str, Any]:
        # Opened anew: network file systems look for changes of a file when it is opened.
        with suppress(OSError, ValueError):
            return json.loads((self._workdir / FILE_NAME).read_text())
        return {}

    def _write(self, beat: int) -> None:
        text = json.dumps({**self._mine, "beat": f"{beat:012d}"}) + "\n"  # always as long
        os.pwrite(self._fd, text.encode(), 0)
        os.ftruncate(self._fd, len(text.encode()))

    def _beat(self) -> None:
        beat = 0
        while not self._released.wait(BEAT_SECONDS):
            beat += 1
            with suppress(OSError):
                self._write(beat)


def _boot_id() -> str:
    """Tells this start of this machine's kernel from all others; "" where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
