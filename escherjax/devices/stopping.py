"""Signals to stop (SIGTERM, SIGHUP, Ctrl-C): noticed at once, obeyed by all hosts together.

No JAX at import, so that a command can listen before its slow imports.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from escherjax.errors import Preempted


class Stop:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self._noticed = threading.Event()
        self._passed_on = False
        self._asked = 0
        self._nothing_to_save = False

    def notice(self, number: int, _: object) -> None:
        """The signal handler. A second Ctrl-C interrupts at once."""
        if number == signal.SIGINT and self._noticed.is_set():
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        self._noticed.set()
        self._pass_on()
        self._leave_if_nothing_is_lost()

    @contextmanager
    def leaving_at_once(self) -> Iterator[None]:
        """Inside, where nothing can be lost, a signal (an earlier one too) raises Preempted.

        Not under jax.distributed, where one process that left would break the others: there all
        stop together, before the first update.
        """
        self._nothing_to_save = True
        try:
            self._pass_on()
            self._leave_if_nothing_is_lost()
            yield
        finally:
            self._nothing_to_save = False

    def _leave_if_nothing_is_lost(self) -> None:
        if self._noticed.is_set() and self._nothing_to_save and not _jax_listens():
            raise Preempted("stopped by a signal before the first update; start again to continue")

    @property
    def heard(self) -> bool:
        """Whether this process got a signal, whatever others did."""
        return self._noticed.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleeps, or until a signal comes; whether one did."""
        return self._noticed.wait(seconds)

    def requested(self) -> bool:
        """Whether to save and leave now; every host calls it at the same places, often.

        Under jax.distributed the answer is the same on all hosts: its coordinator hears of a
        SIGTERM to any of them, within a second or two, and names a call that none has made yet.
        """
        from jax.experimental import multihost_utils

        if not _jax_listens():
            return self._noticed.is_set()
        self._pass_on()
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)

    def _pass_on(self) -> None:
        """Hands jax.distributed a signal that came here: a Ctrl-C, or one before it began."""
        if self._noticed.is_set() and not self._passed_on and _jax_listens():
            self._passed_on = True
            signal.raise_signal(signal.SIGTERM)


@contextmanager
def stop_signals(already: Stop | None = None) -> Iterator[Stop]:
    """Listens for SIGTERM, SIGHUP and Ctrl-C while inside; not for a SIGHUP that nohup ignores.

    already: the listener of a caller, which is returned then; None listens from here on.
    """
    if already is not None:
        yield already
        return
    stop = Stop()
    numbers = [signal.SIGINT] if _jax_listens() else [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, stop.notice) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave_closed_terminal() -> None:
    """Turns output to a terminal that is gone, where writing fails, to nowhere."""
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:  # of what is no terminal: ENOTTY
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def _jax_listens() -> bool:
    """Whether jax.distributed has begun, which takes SIGTERM for itself."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
