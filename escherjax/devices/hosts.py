"""What hosts of a run do for each other: one works for all, all report, one's failure ends all."""

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

# The key-value store of jax.distributed has no public name. It is wanted because it works while no
# device can compute. The client's methods are those that Orbax uses for its barriers.
from jax._src import distributed

from escherjax.errors import TrainingError, UserError, report

T = TypeVar("T")
_ERRORS = {error.__name__: error for error in (UserError, TrainingError)}
# A host that learns of another's failure ends in order, or, being in a computation, after this.
# Below the heartbeat of jax.distributed, which would abort it with a stack trace.
_GRACE_SECONDS = 15
_POLL_SECONDS = 1.0
_LEFT = "escherjax/left"
_MESSAGE_LENGTH = 2**16
_exchanges = itertools.count()  # numbers them alike on all hosts
_leaving = threading.Lock()  # taken for good by the thread that ends the process


def on_first_host(work: Callable[..., T], *arguments: Any) -> T:
    """`work(*arguments)` of the first host, on every host; called by all of them at the same place.

    The result must be JSON. A UserError or TrainingError of the first host is raised on all, so
    that none waits for it in vain; any other exception is a TrainingError to the rest.
    """
    if jax.process_count() == 1:
        return work(*arguments)
    key = f"escherjax/first/{next(_exchanges)}"
    if jax.process_index() == 0:
        try:
            _send(key, {"result": work(*arguments)})
        except Exception as error:
            _send(key, _described(error))
            raise
    sent = _receive(key)
    if "error" in sent:
        raise _ERRORS[sent["error"]](f"host 0: {sent['message']}")
    return sent["result"]


def gather(place: str, value: Any = None) -> list[Any]:
    """The JSON value of each host, in their order; all of them call it at the same places.

    If a host leaves by `failing_at_once` instead of coming here, its failure is raised on the
    others.
    """
    if jax.process_count() == 1:
        return [value]
    folder = f"escherjax/gathered/{next(_exchanges)} {place}"
    _send(f"{folder}/{jax.process_index()}", value)
    return [_receive(f"{folder}/{host}") for host in range(jax.process_count())]


def _store() -> Any:
    """What the first host keeps for all, by name."""
    return distributed.global_state.client


def _send(key: str, value: Any) -> None:
    _store().key_value_set(key, json.dumps(value))


def _receive(key: str) -> Any:
    while True:
        if left := _left_by_others():
            raise _error(left)
        try:
            return json.loads(_store().blocking_key_value_get(key, int(1000 * _POLL_SECONDS)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _described(error: BaseException) -> dict[str, str]:
    kind = type(error).__name__
    message = str(error)[:_MESSAGE_LENGTH] or kind
    return {"error": kind if kind in _ERRORS else "TrainingError", "message": message}


def unequal_devices(devices: Sequence[Any]) -> list[str]:
    """What is wrong if hosts have different numbers of `devices`; [] if they have equal ones."""
    owners = [device.process_index for device in devices]
    counts = {host: owners.count(host) for host in sorted(set(owners))}
    if len(set(counts.values())) == 1:
        return []
    listed = ", ".join(f"host {host} has {count}" for host, count in counts.items())
    return [f"hosts have different numbers of devices ({listed}); they must have equal ones"]


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
    that is the failure) or wait in a computation for this one. The others learn why; one that was
    killed they notice within the heartbeat of jax.distributed.
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
    is_cause = isinstance(error, (*_ERRORS.values(), KeyboardInterrupt))
    left = _left_by_others()
    end = time.monotonic() + 3 * _POLL_SECONDS
    while not (is_cause or left) and time.monotonic() < end:  # broken by another's end?
        time.sleep(_POLL_SECONDS / 5)
        left = _left_by_others()
    if left and left["is_cause"] and not is_cause:
        error = _error(left)
    known = left is not None and str(error) == left["message"]
    code = report(error)
    index, count = jax.process_index(), jax.process_count()
    if not known and not isinstance(error, UserError):
        print(
            f"host {index} of {count} leaves at once. If its own message does not say why, another "
            "host died: see the others' logs. Start the same command again on all hosts to "
            "continue from the newest checkpoint.",
            file=sys.stderr,
            flush=True,
        )
    sent = _described(error) | {"is_cause": is_cause}
    if not known:
        sent["message"] = f"host {index}: {sent['message']}"
    with suppress(Exception):  # without the first host there is nobody to inform
        _send(f"{_LEFT}/{index}", sent)
    if index == 0:  # the store is kept in this process
        end = time.monotonic() + (_GRACE_SECONDS + 5 if is_cause else 3) * _POLL_SECONDS
        while len(_left()) < count and time.monotonic() < end:
            time.sleep(_POLL_SECONDS / 5)
        time.sleep(_POLL_SECONDS / 5)  # for the last one's answer to reach it
    sys.stderr.flush()
    os._exit(code)


def _watch(done: threading.Event) -> None:
    while not done.wait(_POLL_SECONDS):
        if left := _left_by_others():
            if not done.wait(_GRACE_SECONDS):
                _leave(_error(left))
            return


def _left() -> dict[str, Any]:
    """What hosts sent that left by a failure, by their number."""
    with suppress(Exception):  # the first host, which keeps it, may be gone
        found = _store().key_value_dir_get(_LEFT)
        return {key.rpartition("/")[2]: json.loads(text) for key, text in found}
    return {}


def _left_by_others() -> dict[str, Any] | None:
    """What another host sent, rather one that knows the cause, or None while there is none."""
    left = [sent for host, sent in _left().items() if int(host) != jax.process_index()]
    return max(left, key=lambda sent: sent["is_cause"], default=None)


def _error(left: dict[str, Any]) -> Exception:
    return _ERRORS[left["error"]](left["message"])
