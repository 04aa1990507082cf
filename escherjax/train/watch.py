"""Watches a run: checks every loss, writes metrics, shows progress, without stalling the device."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
MOST_IDLE = 0.1  # share of the time, beyond which a run is warned that its host is too slow


class Work(NamedTuple):
    """What one update does: target views over all devices, and model FLOPs (0 where not counted).

    Updates of different view counts differ in both.
    """

    target_views: int
    flops: float


class Watch:
    """Reads the metrics of step n - 1 while the device computes step n.

    writer: where metrics go.
    """

    def __init__(self, config: ConfigDict, writer: MetricWriter, start_step: int):
        self._config, self._writer = config, writer
        self._peak = chips.peak_flops()
        self._pending: tuple[int, dict[str, Any], list[str], Work] | None = None
        self._warm = False
        self._idle, self._warned = perf.IdleTime(), False
        self._start_window(start_step)
        self._bar = tqdm(
            total=config.num_steps,
            initial=start_step,
            desc="train",
            unit="step",
            dynamic_ncols=True,
            disable=None if jax.process_index() == 0 else True,
        )

    def waited_for_data(self, seconds: float) -> None:
        self._data_wait_sec += seconds

    def dispatching(self) -> None:
        """An update is about to be given to the device."""
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

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Settles first, and keeps the time inside (saving, sampling, compiling) out of rates."""
        self.settle()
        start = time.perf_counter()
        yield
        self._window_start += time.perf_counter() - start
        self._idle.forget()

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
