"""Drawings wait in line: one at a time, each visitor sees his place, any can be cancelled."""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from escherjax.demo.limits import Limits
from escherjax.demo.session import Request
from escherjax.errors import UserError

log = logging.getLogger("escherjax.demo")

Status = Literal["waiting", "running", "done", "failed", "cancelled"]


class Cancelled(Exception):
    """Raised inside a drawing that is to stop; the message says why."""


@dataclasses.dataclass(eq=False)
class Job:
    """One drawing and how far it is; changed by the queue alone, read by anyone.

    ahead: drawings before it. step of num_steps. preview, views: uint8 [M, R, R, 3] or None.
    message: why it ended otherwise than by being done.
    """

    request: Request
    on_change: Callable[[Job], None]
    status: Status = "waiting"
    ahead: int = 0
    step: int = 0
    num_steps: int = 0
    preview: np.ndarray | None = None
    views: np.ndarray | None = None
    message: str = ""
    seconds: float = 0.0
    _stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    _deadline: float = float("inf")

    def check(self) -> None:
        """Raises Cancelled if the visitor does not want it any more, or its time is over."""
        if self._stop.is_set():
            raise Cancelled("cancelled")
        if time.monotonic() > self._deadline:
            raise Cancelled("it took longer than this page allows; ask for fewer views or steps")

    def report(self, step: int, num_steps: int, preview: np.ndarray | None = None) -> None:
        """Says that `step` of `num_steps` are done; raises Cancelled as `check` does."""
        self.check()
        self.step, self.num_steps = step, num_steps
        if preview is not None:
            self.preview = preview
        self.announce()

    def announce(self) -> None:
        """Tells the page; what goes wrong there does not stop the drawing."""
        try:
            self.on_change(self)
        except Exception:
            log.exception("showing a drawing's progress failed")


class JobQueue:
    """Runs drawings one after the other on a thread of its own.

    draw(job) returns the views, uint8 [M, R, R, 3], calling `job.report` as it goes.
    """

    def __init__(self, draw: Callable[[Job], np.ndarray], limits: Limits):
        self._draw, self._limits = draw, limits
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="escherjax-drawing", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_change: Callable[[Job], None]) -> Job:
        """Puts a drawing in line. on_change(job) is called, from any thread, whenever it changes.

        Raises UserError where too many wait.
        """
        job = Job(request, on_change)
        with self._changed:
            if self._closed:
                raise UserError("the page is shutting down.")
            if len(self._waiting) >= self._limits.waiting:
                raise UserError(
                    f"{len(self._waiting)} drawings are waiting already; try again in a while."
                )
            job.ahead = len(self._waiting) + (self._running is not None)
            self._waiting.append(job)
            self._changed.notify_all()
        job.announce()
        return job

    def cancel(self, job: Job) -> None:
        """Stops a drawing: one that waits leaves the line, one that runs ends at its next step."""
        with self._changed:
            job._stop.set()
            waited = job in self._waiting
            if waited:
                self._waiting.remove(job)
                job.status, job.message = "cancelled", "cancelled"
        if waited:
            job.announce()
            self._announce_places()

    def close(self, timeout_sec: float = 10.0) -> None:
        """Cancels everything and waits for the thread to end."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            self._changed.notify_all()
        for job in jobs:
            self.cancel(job)
        self._thread.join(timeout_sec)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._waiting.popleft()
                self._running = job
                job.status, job.ahead = "running", 0
            job.announce()
            self._announce_places()
            started = time.monotonic()
            job._deadline = started + self._limits.drawing_sec
            outcome = self._outcome(job)
            with self._changed:
                self._running = None
                job.seconds = time.monotonic() - started
                for name, value in outcome.items():
                    setattr(job, name, value)
            job.announce()

    def _outcome(self, job: Job) -> dict[str, Any]:
        try:
            views = self._draw(job)
            job.check()
            return {"views": views, "status": "done"}
        except Cancelled as stop:
            return {"status": "cancelled", "message": str(stop)}
        except UserError as error:
            return {"status": "failed", "message": str(error)}
        except Exception:
            log.exception("a drawing failed")
            return {
                "status": "failed",
                "message": "the drawing failed; the log of the page's server says how.",
            }

    def _announce_places(self) -> None:
        with self._changed:
            moved = list(self._waiting)
            for place, job in enumerate(moved):
                job.ahead = place + (self._running is not None)
        for job in moved:
            job.announce()
