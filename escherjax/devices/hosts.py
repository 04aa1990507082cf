"""Hosts of a run among themselves: what the first does for all, and what a failure of one means."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src import distributed  # its key-value store has no public name
from jax.experimental import multihost_utils

from escherjax.errors import TrainingError, UserError, report

T = TypeVar("T")
_MESSAGE_BYTES = 2**16
_ERRORS = {error.__name__: error for error in (UserError, TrainingError)}
# A host that is told of another's failure ends in order, or, being in a computation, after this.
# Below the heartbeat of jax.distributed, which would abort it with a stack trace.
_GRACE_SECONDS = 15
_POLL_SECONDS = 1.0
_LEFT = "escherjax/left"
_gathered = itertools.count()
_leaving = threading.Lock()  # taken for good by the thread that ends the process


def on_first_host(work: Callable[..., T], *arguments: Any) -> T:
    """`work(*arguments)` of the first host, on every host; called by all of them at the same place.

    The result must be JSON. A UserError or TrainingError of the first host is raised on all, so
    that none waits for it in vain; any other exception is a TrainingError to the rest.
    """
    if jax.process_count() == 1:
        return work(*arguments)
    said: dict[str, Any] = {}
    failure: Exception | None = None
    if jax.process_index() == 0:
        try:
            said = {"result": work(*arguments)}
        except Exception as error:
            failure = error
            kind = type(error).__name__
            said = {"error": kind if kind in _ERRORS else "TrainingError", "message": str(error)}
    said = _broadcast(said)
    if failure is not None:
        raise failure
    if "error" in said:
        raise _ERRORS[said["error"]](f"host 0: {said['message']}")
    return said["result"]


def _broadcast(said: dict[str, Any]) -> dict[str, Any]:
    if "message" in said:
        said["message"] = said["message"][: _MESSAGE_BYTES // 8]  # a character is 6 bytes at most
    text = json.dumps(said).encode()
    padded = np.frombuffer(text.ljust(_MESSAGE_BYTES), np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def gather(place: str, said: Any = None) -> list[Any]:
    """What each host said, in their order; all of them call it at the same places.

    said: JSON. No device takes part. If a host leaves by `failing_at_once` instead of coming here,
    its failure is raised on the others.
    """
    if jax.process_count() == 1:
        return [said]
    folder = f"escherjax/gathered/{next(_gathered)} {place}"
    _store().key_value_set(f"{folder}/{jax.process_index()}", json.dumps(said))
    return [_wait_for(f"{folder}/{host}") for host in range(jax.process_count())]


def _wait_for(key: str) -> Any:
    while True:
        left = _left_by_others()
        if left:
            raise _error(left)
        try:
            return json.loads(_store().blocking_key_value_get(key, int(1000 * _POLL_SECONDS)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def unequal_devices(devices: Sequence[Any]) -> list[str]:
    """What is wrong if hosts have different numbers of `devices`; [] if they have equal ones."""
    owners = [device.process_index for device in devices]
    counts = {host: owners.count(host) for host in sorted(set(owners))}
    if len(set(counts.values())) == 1:
        return []
    listed = ", ".join(f"host {host} has {count}" for host, count in counts.items())
    return [f"hosts have different numbers of devices ({listed}), needed equal ones"]


@contextmanager
def failing_together() -> Iterator[None]:
    """`failing_at_once`, and what so ended another host ends this one too, wherever it is."""
    if jax.process_count() == 1:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(done,), name="other hosts", daemon=True)
    watcher.start()
    try:
        with failing_at_once():
            yield
    finally:
        done.set()
        watcher.join()


@contextmanager
def failing_at_once() -> Iterator[None]:
    """With several hosts, a failure inside is reported and ends this process there and then.

    An orderly end would wait for the others, who may be dead (then a computation fails here, and
    that is the failure) or wait in a computation for this one. The others are told why; one that
    was killed they notice within the heartbeat of jax.distributed.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        _leave(error)


def _leave(error: BaseException) -> NoReturn:
    """Reports `error`, or what another host says caused it, and ends this process."""
    _leaving.acquire()
    ours = isinstance(error, (*_ERRORS.values(), KeyboardInterrupt))
    left = _left_by_others()
    end = time.monotonic() + 3 * _POLL_SECONDS
    while not (ours or left) and time.monotonic() < end:  # a computation broken by another's end?
        time.sleep(_POLL_SECONDS / 5)
        left = _left_by_others()
    if left and left["known"] and not ours:
        error = _error(left)
    told = left is not None and str(error) == left["message"]
    code = report(error)
    index, count = jax.process_index(), jax.process_count()
    if not told and not isinstance(error, UserError):
        print(
            f"host {index} of {count} leaves at once. If its own message does not say why, another "
            "host died: see the others' logs. Start the same command again on all hosts to "
            "continue from the newest checkpoint.",
            file=sys.stderr,
            flush=True,
        )
    kind = type(error).__name__
    said = {
        "error": kind if kind in _ERRORS else "TrainingError",
        "message": str(error) if told else f"host {index}: {str(error)[:_MESSAGE_BYTES] or kind}",
        "known": ours,
    }
    with suppress(Exception):  # without the first host there is nobody to tell
        _store().key_value_set(f"{_LEFT}/{index}", json.dumps(said))
    if index == 0:  # what it says is kept in this process
        end = time.monotonic() + (_GRACE_SECONDS + 5 if ours else 3) * _POLL_SECONDS
        while len(_left()) < count and time.monotonic() < end:
            time.sleep(_POLL_SECONDS / 5)
        time.sleep(_POLL_SECONDS / 5)  # for the last one's answer to reach it
    sys.stderr.flush()
    os._exit(code)


def _watch(done: threading.Event) -> None:
    while not done.wait(_POLL_SECONDS):
        left = _left_by_others()
        if left:
            if not done.wait(_GRACE_SECONDS):
                _leave(_error(left))
            return


def _left() -> dict[str, Any]:
    """What hosts said that left by a failure, by their number."""
    with suppress(Exception):  # the first host, which keeps it, may be gone
        found = _store().key_value_dir_get(_LEFT)
        return {key.rpartition("/")[2]: json.loads(text) for key, text in found}
    return {}


def _left_by_others() -> dict[str, Any] | None:
    """What another host said, rather one that knows why, or None while there is none."""
    left = [said for host, said in _left().items() if int(host) != jax.process_index()]
    return max(left, key=lambda said: said["known"], default=None)


def _store() -> Any:
    """What the first host keeps for all, by name: works while no host can compute."""
    return distributed.global_state.client


def _error(left: dict[str, Any]) -> Exception:
    return _ERRORS[left["error"]](left["message"])
