"""Hosts of a run among themselves: what the first does for all, and what a failure of one means."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from escherjax.errors import TrainingError, UserError, report

T = TypeVar("T")
_MESSAGE_BYTES = 2**16
_ERRORS = {error.__name__: error for error in (UserError, TrainingError)}


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


@contextmanager
def failing_at_once() -> Iterator[None]:
    """With several hosts, a failure inside is reported and ends this process there and then.

    An orderly end would wait for the others, who may be dead (then a computation fails here, and
    that is the failure) or wait in a computation for this one. They notice within the heartbeat of
    jax.distributed.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        code = report(error)
        print(
            f"host {jax.process_index()} of {jax.process_count()} leaves at once. If its own "
            "message does not say why, another host died: see the others' logs. Start the same "
            "command again on all hosts to continue from the newest checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(code)
