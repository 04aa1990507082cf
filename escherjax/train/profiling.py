"""A window of a run under JAX's profiler, for TensorBoard or Perfetto."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

log = logging.getLogger("escherjax.train")


class ProfileWindow:
    """Writes updates `config.profile.start_step` and following to `WORKDIR/profile`, on each host.

    Their number is `config.profile.num_steps`; the first update of all is 1, start_step 0 is never.
    done: updates that a run which continues has behind it; a window that began there is told.
    """

    def __init__(self, config: ConfigDict, workdir: Path, done: int = 0):
        self._folder = workdir / "profile"
        first = config.profile.start_step
        self._begin, self._end = first - 1, first - 1 + config.profile.num_steps
        self._open = False
        if first and self._begin < done:
            log.warning(
                "no profile is written: config.profile.start_step = %d, and %d updates are done "
                "already; needed at least %d",
                *(first, done, done + 1),
            )

    def at(self, step: int, state: Any) -> None:
        """Begins or ends the window where `step` updates are under way; waits for them if so."""
        if step == self._begin:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._open = True
        elif step == self._end and self._open:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends the window if it is open; one that cannot be written is told, no failure."""
        if self._open:
            self._open = False
            try:
                jax.profiler.stop_trace()
            except Exception as error:  # whatever the disk did: the run does not depend on it
                log.warning("the profile could not be written to %s: %s", self._folder, error)
                return
            log.info("profile: tensorboard --logdir %s", self._folder)
