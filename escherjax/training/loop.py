"""The training run, top to bottom: mesh, data, model, state, restore, loop."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm.contrib.logging import logging_redirect_tqdm

from escherjax import errors
from escherjax.data import sources
from escherjax.models import eschernet
from escherjax.models.eschernet import EscherNet
from escherjax.training import checkpoint, perf, sharding, starting_points
from escherjax.training.heldout import HeldOut
from escherjax.training.optimizer import make_optimizer
from escherjax.training.state import TrainState, abstract_state, create_state
from escherjax.training.step import make_train_step
from escherjax.training.watch import Watch, Work
from escherjax.training.writers import MetricWriter
from escherjax.weights.names import count_parameters

log = logging.getLogger("escherjax.train")


def train(config: ConfigDict, workdir: Path) -> int:
    """Runs or continues the training of `config` in `workdir`.

    Returns the exit code: 0 done, 75 stopped by SIGTERM or Ctrl-C after saving. Raises UserError
    for input that cannot work, TrainingError if the loss stops being finite.
    """
    enable_compilation_cache()
    checkpoint.check_workdir(workdir, config)
    # What the first host makes there must not meet the check of a slower one.
    multihost_utils.sync_global_devices("work directory checked")
    mesh = sharding.make_mesh(config)
    share = sharding.host_share(mesh)
    model = eschernet.from_config(config)
    optimizer = make_optimizer(config.optimizer)
    abstract = abstract_state(model, optimizer, mesh, config)
    source = sources.open_training_source(config)
    heldout = _heldout(model, config, mesh)
    loaded = None
    if not checkpoint.has_checkpoint(workdir):
        loaded, table = starting_points.initial_params(
            config, model, {**abstract.params, **abstract.frozen}
        )
        log.info("starting points:\n%s", starting_points.format_table(table))
        sources.check_vae(config, loaded["vae"])
    checkpoint.prepare_workdir(workdir, config)
    _log_setup(mesh, abstract)

    train_step = make_train_step(model, optimizer, config, mesh)
    compiled: dict[tuple[int, int], Work] = {}  # by N and M
    with (
        checkpoint.open_manager(workdir, config.keep_checkpoints) as manager,
        logging_redirect_tqdm(),
        _stop_signals() as stop,
    ):
        restored = checkpoint.restore(manager, abstract)
        if restored:
            state, position = restored
            log.info("continuing from checkpoint %d of %s", position, workdir)
        else:
            state, position = create_state(model, optimizer, mesh, config, loaded), 0
        del loaded
        start = int(state.step)
        batches = sources.training_batches(source, config, position, share)
        writer = MetricWriter(workdir, start)
        watch = Watch(config, writer, start)

        num_bad = 0
        try:
            for step in range(start, config.num_steps + 1):  # `step` updates are done
                last = step == config.num_steps or stop.is_set()
                if step > start and (last or _is_due(config, step)):
                    with watch.paused():
                        _report(config, step, state, heldout, writer, workdir)
                        if last or step % config.checkpoint_every_steps == 0:
                            checkpoint.save(manager, state, config)
                if last:
                    break
                waiting = time.perf_counter()
                batch = next(batches)
                watch.waited_for_data(time.perf_counter() - waiting)
                num_bad = _name_bad_records(batches.bad_records, num_bad)
                scene_ids = batch.pop("scene_ids")
                counts = batch["ref_c2w"].shape[1], batch["target_c2w"].shape[1]
                arrays = sharding.put_batch(mesh, batch)
                if counts in compiled:
                    state, metrics = train_step(state, arrays)
                else:
                    with watch.paused():
                        compiled[counts] = _work(config, model, abstract, counts)
                        state, metrics = train_step(state, arrays)
                watch.dispatched(step + 1, metrics, scene_ids, compiled[counts])
            manager.wait_until_finished()
            writer.draw_loss()
        finally:
            watch.close()
            writer.close()
            batches.close()
    if num_bad:
        log.warning("%d rows were left out for bad records, named above", num_bad)
    if step < config.num_steps:
        log.info("stopped by a signal at step %d; start again to continue", step)
        return errors.EXIT_PREEMPTED
    log.info("done: %s", workdir)
    return errors.EXIT_OK


def enable_compilation_cache() -> None:
    """Keeps compiled programs across runs, in JAX_COMPILATION_CACHE_DIR or the user's cache."""
    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "escherjax" / "xla"))


def _heldout(model: EscherNet, config: ConfigDict, mesh: Mesh) -> HeldOut | None:
    if not (config.eval_every_steps or config.sample_every_steps):
        return None
    batches = sources.heldout_batches(config, sharding.host_share(mesh))
    return HeldOut(model, config, mesh, batches)


def _is_due(config: ConfigDict, step: int) -> bool:
    intervals = (
        config.checkpoint_every_steps, config.eval_every_steps, config.sample_every_steps
    )  # fmt: skip
    return any(every and step % every == 0 for every in intervals)


def _work(
    config: ConfigDict, model: EscherNet, abstract: TrainState, counts: tuple[int, int]
) -> Work:
    """What an update of N and M does, announcing that its step is compiled now."""
    log.info(
        "compiling the training step for N = %d, M = %d: seconds if small, minutes for the full "
        "network",
        *counts,
    )
    flops = 0.0  # only MFU needs it, and tracing the full network takes seconds
    if perf.peak_flops():
        flops = perf.train_step_flops(model, abstract.params, abstract.frozen, config, *counts)
    return Work(config.batch_size * counts[1], flops)


def _report(
    config: ConfigDict,
    step: int,
    state: TrainState,
    heldout: HeldOut | None,
    writer: MetricWriter,
    workdir: Path,
) -> None:
    """Held-out PSNR and the sample picture, where due; the final step always gets both."""
    if heldout is None:
        return
    final = step == config.num_steps
    params = state.sampling_params()
    if config.eval_every_steps and (final or step % config.eval_every_steps == 0):
        values = heldout.evaluate(params)
        writer.write(step, values)
        for count in config.eval.num_references:
            log.info(
                "step %d, held-out PSNR with %d references: %.2f dB (nearest reference copied: "
                "%.2f dB)",
                step,
                count,
                values[f"heldout/psnr_n{count}"],
                values[f"heldout/nearest_reference_psnr_n{count}"],
            )
    if config.sample_every_steps and (final or step % config.sample_every_steps == 0):
        path = workdir / "samples" / f"step_{step:08d}.png"
        heldout.draw_picture(params, path)
        log.info("step %d, held-out samples: %s", step, path)


def _name_bad_records(bad_records: list[tuple[str, str]], known: int) -> int:
    """Logs the bad records that are new; returns how many there are now."""
    for scene_id, reason in bad_records[known:]:
        log.warning("scene %s is left out of its batch: %s", scene_id, reason)
    return len(bad_records)


def _log_setup(mesh: Mesh, abstract: TrainState) -> None:
    log.info(
        "%d hosts x %d devices (%s), mesh %s",
        jax.process_count(),
        jax.local_device_count(),
        jax.devices()[0].device_kind,
        dict(mesh.shape),
    )
    parts = {**abstract.params, **abstract.frozen}
    counts = {name: count_parameters(tree) for name, tree in parts.items()}
    log.info(
        "parameters: %s (vae is not trained)",
        ", ".join(f"{name} {count:,}" for name, count in counts.items()),
    )
    log.info(
        "largest tensors and how they are split:\n%s",
        sharding.describe(
            abstract.params, sharding.state_shardings(mesh, abstract.params)
        ),
    )


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets, so that the loop can save and leave.

    A second Ctrl-C interrupts at once.
    """
    noticed = threading.Event()

    def notice(number: int, _: object) -> None:
        if number == signal.SIGINT and noticed.is_set():
            raise KeyboardInterrupt
        noticed.set()

    previous = {n: signal.signal(n, notice) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noticed
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
