"""Says when a run stands still, and where: stacks of all threads, by themselves or on SIGUSR1."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax

log = logging.getLogger("escherjax.train")
_POLL_SECONDS = 0.5


class Watchdog:
    """A context. Inside, SIGUSR1 appends the stacks of all threads to `WORKDIR/stacks_hostN.txt`.

    They come to stderr too. So they do, once, when nothing was noted for `stall_seconds` (0:
    never). It never ends a run. The signal is served below Python, so that it also works while a
    library hangs.
    """

    def __init__(self, workdir: Path, stall_seconds: float):
        self._path = workdir / f"stacks_host{jax.process_index()}.txt"
        self._stall_seconds = stall_seconds
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._closed = threading.Event()
        self._note = (time.monotonic(), "starting")
        self._stalled: tuple[float, str] | None = None  # the note at which it was reported

    def note(self, what: str) -> None:
        """The run is moving, and goes on to `what`."""
        self._note = (time.monotonic(), what)

    def __enter__(self) -> Watchdog:
        self._file = self._path.open("a+b", buffering=0)
        self._shown = os.fstat(self._file.fileno()).st_size
        faulthandler.register(signal.SIGUSR1, file=self._file, all_threads=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        faulthandler.unregister(signal.SIGUSR1)
        self._show()
        if os.fstat(self._file.fileno()).st_size == 0:
            self._path.unlink(missing_ok=True)
        self._file.close()

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            self._report_stall()
            self._show()

    def _report_stall(self) -> None:
        note = self._note
        still = time.monotonic() - note[0]
        if self._stalled is not None and note is not self._stalled:
            log.warning("moving again, after %.0f s", note[0] - self._stalled[0])
            self._stalled = None
        if self._stall_seconds and still > self._stall_seconds and self._stalled is None:
            self._stalled = note
            log.warning(
                "no progress for %.0f s (config.stall_seconds) while %s; stacks of all threads are "
                "in %s. The run is left alone.",
                still,
                note[1],
                self._path,
            )
            faulthandler.dump_traceback(self._file, all_threads=True)

    def _show(self) -> None:
        """Copies to stderr what came to the file since."""
        size = os.fstat(self._file.fileno()).st_size
        if size > self._shown:
            new = os.pread(self._file.fileno(), size - self._shown, self._shown)
            sys.stderr.write(new.decode(errors="replace"))
            sys.stderr.flush()
            self._shown = size
