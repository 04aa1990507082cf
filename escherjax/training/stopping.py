"""SIGTERM and Ctrl-C: noticed at once, obeyed by all hosts after the same update.

No JAX at import, so that a command can listen before its slow imports.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self._noticed = threading.Event()
        self._passed_on = False

    def notice(self, number: int, _: object) -> None:
        """The signal handler. A second Ctrl-C interrupts at once."""
        if number == signal.SIGINT and self._noticed.is_set():
            raise KeyboardInterrupt
        self._noticed.set()

    def requested(self, step: int) -> bool:
        """Whether to save and leave before update `step` + 1; every host calls it at every step.

        With several hosts the answer is the same on all of them: JAX's coordinator hears of the
        signal to any host and names a step that none has passed yet.
        """
        import jax
        from jax.experimental import multihost_utils

        if jax.process_count() == 1:
            return self._noticed.is_set()
        if self._noticed.is_set() and not self._passed_on:
            # jax.distributed put a SIGTERM handler of its own in the place of ours.
            self._passed_on = True
            signal.raise_signal(signal.SIGTERM)
        return multihost_utils.reached_preemption_sync_point(step)


@contextmanager
def stop_signals(already: Stop | None = None) -> Iterator[Stop]:
    """Listens for SIGTERM and Ctrl-C while inside; `already`: who does so outside."""
    if already is not None:
        yield already
        return
    stop = Stop()
    previous = {n: signal.signal(n, stop.notice) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
