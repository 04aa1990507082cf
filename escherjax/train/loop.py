"""The training run, top to bottom: mesh, data, model, state, restore, loop."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm.contrib.logging import logging_redirect_tqdm

from escherjax import errors, files
from escherjax.data import training_cameras
from escherjax.devices import chips, hosts
from escherjax.devices import mesh as sharding
from escherjax.devices.stopping import Stop, stop_signals
from escherjax.models import eschernet
from escherjax.models.eschernet import EscherNet, Params
from escherjax.train import checks, perf, sources, starting_points, writers
from escherjax.train.heldout import HeldOut
from escherjax.train.optimizer import make_optimizer
from escherjax.train.profiling import ProfileWindow
from escherjax.train.state import TrainState, abstract_state, create_state
from escherjax.train.step import make_train_step
from escherjax.train.watch import Watch, Work
from escherjax.train.watchdog import Watchdog
from escherjax.train.writers import MetricWriter
from escherjax.weights import integrity, runs
from escherjax.weights.names import count_parameters

log = logging.getLogger("escherjax.train")


def train(config: ConfigDict, workdir: Path, stop: Stop | None = None) -> int:
    """Runs or continues the training of `config` in `workdir`.

    stop: signals that are listened to already; None listens from here on. Returns the exit code: 0
    done, 75 stopped by SIGTERM or Ctrl-C after saving. Raises UserError for input that cannot work,
    or if another run is in `workdir`; TrainingError if the loss stops being finite, or the disk
    below `workdir` fails; Preempted if a signal comes before anything could be lost.
    """
    enable_compilation_cache()
    files.tell_failed_saves_once()
    with stop_signals(stop) as listening, hosts.failing_together():
        checks.check_hosts_agree(config)
        with checks.workdir_held(workdir, config):
            return _run(config, workdir, listening)


def _run(config: ConfigDict, workdir: Path, stop: Stop) -> int:
    with stop.leaving_at_once():
        writers.check_available(config)
        beyond = hosts.on_first_host(_step_beyond, workdir, config.num_steps)
        if beyond is not None:
            log.info(
                "nothing to do: %s is already at step %d, and config.num_steps = %d; set it above "
                "%d to train on",
                *(workdir, beyond, config.num_steps, beyond),
            )
            return errors.EXIT_OK
        mesh = checks.training_mesh(config)
        share = sharding.host_share(mesh)
        model = eschernet.from_config(config)
        optimizer = make_optimizer(config.optimizer)
        abstract = abstract_state(model, optimizer, mesh, config)
        source = sources.open_training_source(config)
        heldout = _heldout(model, config, mesh)
        loaded = _starting_params(config, workdir, model, abstract)
        _log_setup(mesh, abstract)
    hosts.gather("ready")  # nor does any go on where another was refused
    if stop.requested():
        log.info("stopped by a signal before the first update; start again to continue")
        return errors.EXIT_PREEMPTED

    train_step = make_train_step(model, optimizer, config, mesh)
    compiled: dict[tuple[int, int], Work] = {}  # by N and M
    with (
        runs.open_run(workdir, config) as manager,
        Watchdog(workdir, config.stall_seconds) as watchdog,
        logging_redirect_tqdm(),
        hosts.failing_at_once(),
    ):
        with stop.leaving_at_once():
            watchdog.note("restoring a checkpoint or making the first state")
            if restored := runs.restore(manager, abstract.stored()):
                state, position = TrainState.from_stored(restored[0]), restored[1]
                log.info("continuing from checkpoint %d of %s", position, workdir)
            else:
                state, position = create_state(model, optimizer, mesh, config, loaded), 0
            del loaded
            start = int(state.step)
            if jax.process_index() == 0:
                with files.explained(workdir, training_cameras.FILE_NAME):
                    training_cameras.keep(workdir, source, config)
            batches = sources.training_batches(source, config, position, share)
        writer = MetricWriter(workdir, start, config)
        watch = Watch(config, writer, start)
        profile = ProfileWindow(config, workdir, start)

        num_bad = 0
        try:
            for step in range(start, config.num_steps + 1):  # `step` updates are done
                stopping = stop.requested()
                last = step == config.num_steps or stopping
                if last or _is_due(config, step):
                    with watch.paused():
                        if step > start and (last or step % config.checkpoint_every_steps == 0):
                            watchdog.note(f"saving checkpoint {step}")
                            runs.save(manager, state.stored(), config)
                        if heldout and step > 0 and not stopping:
                            watchdog.note(f"evaluating step {step}")
                            _report(config, step, state, heldout, writer, workdir)
                profile.at(step, state)
                if last:
                    break
                runs.check_saved(manager)
                watchdog.note(f"waiting for the data of update {step + 1}")
                waiting = time.perf_counter()
                batch = next(batches)
                watch.waited_for_data(time.perf_counter() - waiting)
                num_bad = _name_bad_records(batches.bad_records, num_bad)
                scene_ids, counts = batch.scene_ids, batch.view_counts
                arrays = batch.on_mesh(mesh)
                if counts in compiled:
                    watchdog.note(f"computing update {step + 1}")
                    watch.dispatching()
                    state, metrics = train_step(state, arrays)
                else:
                    if stop.requested():  # compiling can take longer than a scheduler waits
                        if step > start and step % config.checkpoint_every_steps:
                            runs.save(manager, state.stored(), config)
                        break
                    watchdog.note(f"compiling the step of update {step + 1}")
                    with watch.paused():
                        compiled[counts] = _work(config, model, abstract, counts)
                        state, metrics = train_step(state, arrays)
                watch.dispatched(step + 1, metrics, scene_ids, compiled[counts])
            watchdog.note("finishing the last checkpoint")
            runs.check_saved(manager, wait=True)
            writer.draw_loss()
        finally:
            profile.close()
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


def _starting_params(
    config: ConfigDict, workdir: Path, model: EscherNet, abstract: TrainState
) -> Params | None:
    """What a new run starts from, on the host; None where it goes on from a checkpoint."""
    if runs.has_checkpoint(workdir):
        return None
    loaded, table = starting_points.initial_params(
        config, model, {**abstract.params, **abstract.frozen}
    )
    log.info("starting points:\n%s", starting_points.format_table(table))
    sources.check_vae(config, loaded["vae"])
    return loaded


def _step_beyond(workdir: Path, num_steps: int) -> int | None:
    """The step from which the run would continue, if that is above `num_steps`."""
    if max(integrity.steps(workdir), default=0) <= num_steps:
        return None  # nothing to read
    newest = integrity.newest_whole(workdir)
    return newest if newest is not None and newest > num_steps else None


def enable_compilation_cache() -> None:
    """Keeps compiled programs across runs, in JAX_COMPILATION_CACHE_DIR or the user's cache.

    Not for several processes on CPUs: only the first one writes the cache, so that at a restart it
    would be through at once, and its wait for the others, who compile, ends after 30 seconds.
    """
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
    elif not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "escherjax" / "xla"))


def _heldout(model: EscherNet, config: ConfigDict, mesh: Mesh) -> HeldOut | None:
    if not (config.eval_every_steps or config.sample_every_steps):
        return None
    batches = sources.heldout_batches(config, sharding.host_share(mesh))
    return HeldOut(model, config, mesh, batches)


def _is_due(config: ConfigDict, step: int) -> bool:
    intervals = (config.checkpoint_every_steps, config.eval_every_steps, config.sample_every_steps)
    return step > 0 and any(every and step % every == 0 for every in intervals)


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
    if chips.peak_flops():
        flops = perf.train_step_flops(model, abstract.params, abstract.frozen, config, *counts)
    return Work(config.batch_size * counts[1], flops)


def _report(
    config: ConfigDict,
    step: int,
    state: TrainState,
    heldout: HeldOut,
    writer: MetricWriter,
    workdir: Path,
) -> None:
    """Held-out PSNR and the sample picture, where due; the final step always gets both.

    What is there already is left out: a run that was stopped between saving and reporting catches
    up when it continues.
    """
    final = step == config.num_steps
    evaluate, draw = (
        bool(every) and (final or step % every == 0)
        for every in (config.eval_every_steps, config.sample_every_steps)
    )
    picture = workdir / "samples" / f"step_{step:08d}.png"
    evaluated, drawn = hosts.on_first_host(lambda: [writer.has_heldout(step), picture.exists()])
    params = state.sampling_params()
    if evaluate and not evaluated:
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
    if draw and not drawn:
        with files.explained(workdir, str(picture.relative_to(workdir))):
            heldout.draw_picture(params, picture)
        log.info("step %d, held-out samples: %s", step, picture)


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
        sharding.describe(abstract.params, sharding.state_shardings(mesh, abstract.params)),
    )
