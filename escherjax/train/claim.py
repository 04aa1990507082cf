"""A work directory taken for one run, before the run reads or computes anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import jax
from ml_collections import ConfigDict

from escherjax import files
from escherjax.devices import hosts
from escherjax.weights import lock, runs


@contextmanager
def held(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Takes `workdir`, made if need be, for a run of `config` alone while inside.

    If nothing but the lock came into it, the lock goes again, and the folders made for it. Raises
    UserError if `workdir` cannot be made or written to, another run holds it, or it holds what
    `checkpoint.check_workdir` refuses; TrainingError if the disk below it fails.
    """
    with ExitStack() as stack:
        with files.usable(workdir):
            runs.check_workdir(workdir, config)
            # What the first host makes there must not meet the check of a slower one.
            hosts.gather("work directory checked")
            made = hosts.on_first_host(files.make, workdir)
            first = jax.process_index() == 0
            if first:
                stack.callback(files.remove, made)
            new = hosts.on_first_host(lambda: not (workdir / lock.FILE_NAME).exists())
            stack.enter_context(lock.held(workdir))
            if first and new:
                stack.callback(_remove_lone_lock, workdir)  # before it is let go, so ours
            # Again, now that nobody else changes it.
            hosts.on_first_host(runs.check_workdir, workdir, config)
        yield


def _remove_lone_lock(workdir: Path) -> None:
    with suppress(OSError):  # a folder that vanished has been reported
        if [path.name for path in workdir.iterdir()] == [lock.FILE_NAME]:
            (workdir / lock.FILE_NAME).unlink()
