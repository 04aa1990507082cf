"""What looks after a run: losses, metrics, progress, a watchdog for stalls, a profiler window."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from escherjax.devices import chips, mesh
from escherjax.errors import TrainingError, UserError
from escherjax.train import perf
from escherjax.train.writers import MetricWriter

log = logging.getLogger("escherjax.train")
_POLL_SECONDS = 0.5
MOST_IDLE = 0.1  # share of the time, beyond which a run is warned that its host is too slow


class Work(NamedTuple):
    """What one update does; updates of different view counts differ in it."""

    target_views: int  # over all devices
    flops: float  # of the model, 0 where not counted


class Watch:
    """Reads the metrics of step n - 1 while the device computes step n, without stalling it.

    It checks every loss, writes metrics to `writer`, shows progress and tells `watchdog` what the
    run is doing.
    """

    def __init__(
        self, config: ConfigDict, writer: MetricWriter, start_step: int, watchdog: Watchdog
    ):
        self._config, self._writer, self._watchdog = config, writer, watchdog
        self._peak = chips.peak_flops()
        self._pending: tuple[int, dict[str, Any], list[str], Work] | None = None
        self._warm = self._warned = False
        self._idle = perf.IdleTime()
        self._start_window(start_step)
        self._bar = tqdm(
            total=config.num_steps,
            initial=start_step,
            desc="train",
            unit="step",
            dynamic_ncols=True,
            disable=None if jax.process_index() == 0 else True,
        )

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """A phase beside the steps, such as "saving checkpoint 10", whose time is in no rate.

        The update in flight is settled first.
        """
        self.settle()
        self._watchdog.note(what)
        start = time.perf_counter()
        yield
        self._window_start += time.perf_counter() - start
        self._idle.forget()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """A phase that counts as waiting for data."""
        self._watchdog.note(what)
        start = time.perf_counter()
        yield
        self._data_wait_sec += time.perf_counter() - start

    def computing(self, what: str) -> None:
        """An update is about to be given to the device."""
        self._watchdog.note(what)
        self._idle.handing_over()

    def dispatched(
        self, step: int, metrics: dict[str, Any], scene_ids: list[str], work: Work
    ) -> None:
        """Takes the metrics of the update that makes `step` updates, and settles the one before.

        scene_ids: the scenes of this host's part of the batch, to name if the loss breaks.
        """
        self._idle.handed_over(metrics["loss"])
        self.settle()
        self._pending = (step, metrics, scene_ids, work)

    def settle(self) -> None:
        """Waits for the update in flight.

        Raises TrainingError if its loss is not finite, UserError if all its scenes were left out.
        """
        if self._pending is None:
            return
        step, metrics, scene_ids, work = self._pending
        self._pending = None
        valid, loss, grad_norm = (
            float(x)
            for x in jax.device_get(
                [metrics[name] for name in ("valid_scenes", "loss", "grad_norm")]
            )
        )
        if valid == 0:
            raise UserError(
                f"every scene of the batch for update {step} was left out as a bad record, so "
                "there is nothing to learn from; the reasons are named above. Mend the data."
            )
        if not (np.isfinite(loss) and np.isfinite(grad_norm)):
            raise TrainingError(_describe_break(step, loss, grad_norm, metrics, scene_ids))
        self._work_done.append(work)
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if step % self._config.log_every_steps == 0 or step == self._config.num_steps:
            self._log(step, metrics)
        if not self._warm:  # the first update was compiled; keep that out of the rates to come
            self._warm = True
            self._start_window(step)

    def close(self) -> None:
        self._bar.close()
        self._idle.close()

    def _start_window(self, step: int) -> None:
        self._window_start, self._window_step = time.perf_counter(), step
        self._data_wait_sec = self._idle.seconds = 0.0
        self._work_done: list[Work] = []

    def _log(self, step: int, metrics: dict[str, Any]) -> None:
        elapsed = max(time.perf_counter() - self._window_start, 1e-9)
        rate = (step - self._window_step) / elapsed
        hidden = ("scene_losses", "valid_scenes")
        values = {k: float(v) for k, v in metrics.items() if k not in hidden}
        values["steps_per_sec"] = rate
        target_views, flops = (sum(column) for column in zip(*self._work_done, strict=True))
        values["target_views_per_sec"] = target_views / elapsed
        if self._peak:
            values["mfu"] = flops / elapsed / self._peak
        values["data_wait_frac"] = self._data_wait_sec / elapsed
        values["host_bound_frac"] = self._idle.seconds / elapsed
        slow = values["host_bound_frac"] > MOST_IDLE and jax.default_backend() != "cpu"
        if slow and not self._warned:
            self._warned = True
            log.warning(
                "the device had nothing to do for %.0f%% of the time up to step %d: it waits for "
                "this host (for data: %.0f%%). See config.data.num_workers, or make steps larger.",
                100 * values["host_bound_frac"],
                step,
                100 * values["data_wait_frac"],
            )
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            values["peak_device_memory_gib"] = memory["peak_bytes_in_use"] / 2**30
        values.update(perf.host_memory())
        self._writer.write(step, values)
        if self._bar.disable:  # no terminal: a line in the log instead of a bar
            log.info(
                "step %d of %d, loss %.4f, %.2f steps/s, %.0f s left",
                step,
                self._config.num_steps,
                values["loss"],
                rate,
                (self._config.num_steps - step) / rate,
            )
        self._start_window(step)


def _describe_break(
    step: int, loss: float, grad_norm: float, metrics: dict[str, Any], scene_ids: list[str]
) -> str:
    losses = mesh.local_rows(metrics["scene_losses"])
    broken = [name for name, value in zip(scene_ids, losses, strict=True) if not np.isfinite(value)]
    scenes = broken or scene_ids
    kind = "with a loss that is not finite" if broken else "in the batch (each with a finite loss)"
    return (
        f"update {step} gave loss {loss} and gradient norm {grad_norm}; nothing was saved after "
        f"it. Scenes {kind}: {', '.join(scenes)}. Look at these records, or lower "
        "config.optimizer.peak_lr, and start again to continue from the last checkpoint."
    )


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


class ProfileWindow:
    """Writes updates `config.profile.start_step` and following to `WORKDIR/profile`, on each host.

    Their number is `config.profile.num_steps`; the first update of all is 1, start_step 0 is never.
    done: updates that a run which continues has behind it; a window that began there is reported.
    """

    def __init__(self, config: ConfigDict, workdir: Path, done: int = 0):
        self._folder = workdir / "profile"
        first = config.profile.start_step
        self._begin, self._end = first - 1, first - 1 + config.profile.num_steps
        self._open = False
        if first and self._begin < done:
            log.warning(
                "no profile is written: config.profile.start_step = %d, and %d updates are done "
                "already; it must be at least %d",
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
        """Ends the window if it is open; one that cannot be written is logged and no failure."""
        if self._open:
            self._open = False
            try:
                jax.profiler.stop_trace()
            except Exception as error:  # whatever the disk did: the run does not depend on it
                log.warning("the profile could not be written to %s: %s", self._folder, error)
                return
            log.info("profile: tensorboard --logdir %s", self._folder)
