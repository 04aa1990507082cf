"""The training run, top to bottom: mesh, data, model, state, restore, loop."""

from __future__ import annotations

import dataclasses
import logging
import os
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from orbax.checkpoint import CheckpointManager
from tqdm.contrib.logging import logging_redirect_tqdm

from escherjax import errors, files
from escherjax.data import training_cameras
from escherjax.data.batch import Batch
from escherjax.devices import chips, hosts
from escherjax.devices import mesh as mesh_lib
from escherjax.devices.stopping import Stop, stop_signals
from escherjax.models import eschernet
from escherjax.models.eschernet import EscherNet, Params
from escherjax.train import checks, perf, sources, starting_points, writers
from escherjax.train.heldout import HeldOut
from escherjax.train.state import TrainState, abstract_state, create_state
from escherjax.train.step import make_train_step
from escherjax.train.watch import ProfileWindow, Watch, Watchdog, Work
from escherjax.train.writers import MetricWriter
from escherjax.weights import integrity, runs
from escherjax.weights.names import count_parameters

log = logging.getLogger("escherjax.train")


@dataclasses.dataclass
class Setup:
    """What a run needs before its first step."""

    config: ConfigDict
    workdir: Path
    mesh: Mesh
    model: EscherNet
    abstract: TrainState  # ShapeDtypeStructs with shardings
    source: Any  # the scenes to train on
    heldout: HeldOut | None  # None where nothing is evaluated
    initial: Params | None  # host arrays a new run starts from; None where it continues


def prepare(config: ConfigDict, workdir: Path) -> Setup:
    """Opens all that a run of `config` reads; it computes and writes nothing.

    Raises UserError for whatever of it cannot work.
    """
    writers.check_available(config)
    mesh = checks.training_mesh(config)
    share = mesh_lib.host_share(mesh)
    model = eschernet.from_config(config)
    abstract = abstract_state(model, mesh, config)
    source, heldout, initial = sources.open_training_source(config), None, None
    if config.eval_every_steps or config.sample_every_steps:
        heldout = HeldOut(model, config, mesh, sources.heldout_batches(config, share))
    if not runs.has_checkpoint(workdir):
        shapes = {**abstract.params, **abstract.frozen}
        initial, table = starting_points.initial_params(config, model, shapes)
        log.info("starting points:\n%s", starting_points.format_table(table))
        sources.check_vae(config, initial["vae"])
    _log_setup(mesh, abstract)
    return Setup(config, workdir, mesh, model, abstract, source, heldout, initial)


def train(config: ConfigDict, workdir: Path, stop: Stop | None = None) -> int:
    """Runs or continues the training of `config` in `workdir`.

    Args:
      config: a config that `checks.check_config` accepts.
      workdir: where checkpoints, metrics and pictures go; it is made if need be.
      stop: signals that are listened to already; None listens from here on.

    Returns:
      The exit code: 0 done, 75 stopped by SIGTERM, SIGHUP or Ctrl-C after saving.

    Raises:
      UserError: the input cannot work, or another run is in `workdir`.
      TrainingError: the loss stops being finite, or the disk below `workdir` fails.
      Preempted: a signal came before anything could be lost.
    """
    enable_compilation_cache()
    files.report_failed_saves_once()
    with stop_signals(stop) as stop, hosts.failing_together():
        checks.check_hosts_agree(config)
        with checks.workdir_held(workdir, config):
            with stop.leaving_at_once():
                beyond = hosts.on_first_host(_step_beyond, workdir, config.num_steps)
                if beyond is not None:
                    log.info(
                        "nothing to do: %s is already at step %d, and config.num_steps = %d; set "
                        "it above %d to train on",
                        *(workdir, beyond, config.num_steps, beyond),
                    )
                    return errors.EXIT_OK
                setup = prepare(config, workdir)
                hosts.on_first_host(runs.check_space, workdir, setup.abstract.stored())
            hosts.gather("ready")  # nor does any go on where another was refused
            if stop.requested():
                log.info("stopped by a signal before the first update; start again to continue")
                return errors.EXIT_PREEMPTED
            step = _run(setup, stop)
    if step < config.num_steps:
        log.info("stopped by a signal at step %d; start again to continue", step)
        return errors.EXIT_PREEMPTED
    log.info("done: %s", workdir)
    return errors.EXIT_OK


def _run(setup: Setup, stop: Stop) -> int:
    """Trains until the last step or a signal; returns how many updates are done and saved."""
    config, workdir = setup.config, setup.workdir
    with (
        runs.open_run(workdir, config) as manager,
        Watchdog(workdir, config.stall_seconds) as watchdog,
        logging_redirect_tqdm(),
        hosts.failing_at_once(),
        ExitStack() as stack,
    ):
        with stop.leaving_at_once():
            watchdog.note("restoring a checkpoint or making the first state")
            state, position = _first_state(setup, manager)
            share = mesh_lib.host_share(setup.mesh)
            loader = sources.training_batches(setup.source, config, position, share)
            batches = stack.enter_context(closing(loader))
        start = saved = int(state.step)
        writer = stack.enter_context(closing(MetricWriter(workdir, start, config)))
        watch = stack.enter_context(closing(Watch(config, writer, start, watchdog)))
        profile = stack.enter_context(closing(ProfileWindow(config, workdir, start)))
        train_step = StepCache(setup, watch)
        num_bad = 0

        def save(step: int) -> int:
            with watch.phase(f"saving checkpoint {step}"):
                runs.save(manager, state.stored(), config)
            return step

        for step in range(start, config.num_steps + 1):  # `step` updates are done
            stopping = stop.requested()
            last = stopping or step == config.num_steps
            if step > saved and (last or step % config.checkpoint_every_steps == 0):
                saved = save(step)
            if setup.heldout and not stopping and any(due := _reports_due(config, step)):
                with watch.phase(f"evaluating step {step}"):
                    _report(setup, setup.heldout, writer, step, state.sampling_params(), *due)
            profile.at(step, state)
            if last:
                break
            runs.check_saved(manager)
            with watch.waiting(f"waiting for the data of update {step + 1}"):
                batch = next(batches)
            num_bad = _log_bad_records(batches.bad_records, num_bad)
            # Compiling can take longer than a scheduler waits.
            if train_step.must_compile(batch) and stop.requested():
                saved = save(step) if step > saved else saved
                break
            state = train_step(step + 1, state, batch)
        with watch.phase("finishing the last checkpoint"):
            runs.check_saved(manager, wait=True)
        writer.plot_loss()
    if num_bad:
        log.warning("%d rows were left out for bad records, named above", num_bad)
    return step


def _first_state(setup: Setup, manager: CheckpointManager) -> tuple[TrainState, int]:
    """(state, data position) of the newest whole checkpoint, or of a new run."""
    config, workdir = setup.config, setup.workdir
    if restored := runs.restore(manager, setup.abstract.stored()):
        trees, position = restored
        state = TrainState.from_stored(trees)
        log.info("continuing from checkpoint %d of %s", position, workdir)
    else:
        state, position = create_state(setup.model, setup.mesh, config, setup.initial), 0
    setup.initial = None  # gigabytes, which are on the devices now
    if jax.process_index() == 0:
        with files.explained(workdir, training_cameras.FILE_NAME):
            training_cameras.keep(workdir, setup.source, config)
    return state, position


class StepCache:
    """The training step: it compiles once for each (N, M), outside of all rates."""

    def __init__(self, setup: Setup, watch: Watch):
        self._setup, self._watch = setup, watch
        self._step = make_train_step(setup.model, setup.mesh, setup.config)
        self._work: dict[tuple[int, int], Work] = {}

    def must_compile(self, batch: Batch) -> bool:
        return batch.view_counts not in self._work

    def __call__(self, number: int, state: TrainState, batch: Batch) -> TrainState:
        """The state after update `number`, whose metrics go to the watch."""
        arrays = batch.on_mesh(self._setup.mesh)
        if self.must_compile(batch):
            with self._watch.phase(f"compiling the step of update {number}"):
                self._work[batch.view_counts] = self._work_of(batch.view_counts)
                state, metrics = self._step(state, arrays)
        else:
            self._watch.computing(f"computing update {number}")
            state, metrics = self._step(state, arrays)
        work = self._work[batch.view_counts]
        self._watch.dispatched(number, metrics, batch.scene_ids, work)
        return state

    def _work_of(self, view_counts: tuple[int, int]) -> Work:
        config = self._setup.config
        log.info(
            "compiling the training step for N = %d, M = %d: seconds if small, minutes for the "
            "full network",
            *view_counts,
        )
        flops = 0.0  # only MFU needs it, and tracing the full network takes seconds
        if chips.peak_flops():
            model, abstract = self._setup.model, self._setup.abstract
            flops = perf.train_step_flops(model, abstract, config, view_counts)
        return Work(config.batch_size * view_counts[1], flops)


def _reports_due(config: ConfigDict, step: int) -> tuple[bool, bool]:
    """Whether held-out figures and the sample picture are due; the final step gets both."""
    final = step == config.num_steps
    evaluate, sample = (
        bool(every) and step > 0 and (final or step % every == 0)
        for every in (config.eval_every_steps, config.sample_every_steps)
    )
    return evaluate, sample


def _report(
    setup: Setup,
    heldout: HeldOut,
    writer: MetricWriter,
    step: int,
    params: Params,
    evaluate: bool,
    sample: bool,
) -> None:
    """Held-out PSNR and the sample picture, where due.

    What is there already is left out: a run that was stopped between saving and reporting catches
    up when it continues.
    """
    picture = setup.workdir / "samples" / f"step_{step:08d}.png"
    evaluated, sampled = hosts.on_first_host(lambda: [writer.has_heldout(step), picture.exists()])
    if evaluate and not evaluated:
        values = heldout.evaluate(params)
        writer.write(step, values)
        for count in setup.config.eval.num_references:
            log.info(
                "step %d, held-out PSNR with %d references: %.2f dB (nearest reference copied: "
                "%.2f dB)",
                step,
                count,
                values[f"heldout/psnr_n{count}"],
                values[f"heldout/nearest_reference_psnr_n{count}"],
            )
    if sample and not sampled:
        with files.explained(setup.workdir, str(picture.relative_to(setup.workdir))):
            heldout.write_picture(params, picture)
        log.info("step %d, held-out samples: %s", step, picture)


def _log_bad_records(bad_records: list[tuple[str, str]], known: int) -> int:
    """Logs the bad records that are new; returns how many there are now."""
    for scene_id, reason in bad_records[known:]:
        log.warning("scene %s is left out of its batch: %s", scene_id, reason)
    return len(bad_records)


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
    elif not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "escherjax" / "xla"))


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
        mesh_lib.describe(abstract.params, mesh_lib.state_shardings(mesh, abstract.params)),
    )
