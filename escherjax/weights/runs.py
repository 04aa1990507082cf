"""Saves and restores the checkpoints and the config of a training work directory.

`checkpoints/STEP/` holds what samples need (`weights/`: parameters and average), what only training
needs (`optimizer/`: its state and the step), a JSON record (`record/`) and checksums
(`manifest.json`). Orbax saves it asynchronously and renames it when whole. The record says step,
data position, config, versions and commit. The data position is the number of batches drawn, so
that any number of hosts can go on from it; random draws follow from config.seed and the step.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import math
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from escherjax import config as config_lib
from escherjax import files
from escherjax.devices import hosts
from escherjax.errors import UNREADABLE, TrainingError, UserError
from escherjax.weights import integrity, lock, ownership
from escherjax.weights.integrity import OPTIMIZER, RECORD, WEIGHTS

log = logging.getLogger("escherjax.checkpoint")
# Orbax measures it by the wall clock, whose jumps would end good saves. Twenty days in milliseconds
# still fit 31 bits, for its barriers between hosts; a save that stands still is the watchdog's.
_SAVE_TIMEOUT_SECONDS = 20 * 86400
# Replicas write a part each of an array from so many bytes a part. Orbax would cut every one, down
# to norm scales, by a compiled slice for each shape and device, while training waits.
_MIN_PART_BYTES = 2**20
# A run's state by the item it is saved in: {"weights": {"params", "frozen", "ema"}, "optimizer":
# {"step", "opt_state"}}, each entry a pytree of arrays or ShapeDtypeStructs.
Trees = dict[str, dict[str, Any]]
_VERSIONED = ("escherjax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Checks that a run of `config` may start or continue in `workdir`; changes nothing.

    Raises UserError if it holds something else, a checkpoint of another run, or one of a config
    that differs in more than the fields that may change (`config.differences`).
    """
    files.check_no_file(workdir)
    _check_places(workdir / "checkpoints")
    if (workdir / "config.json").exists():
        if not has_checkpoint(workdir):
            return  # a run that never got anywhere; nothing to protect
        changes = config_lib.differences(read_config(workdir), config)
        if changes:
            listed = "\n  ".join(changes)
            raise UserError(
                f"--workdir {workdir} holds a run of another config:\n  {listed}\n"
                "Take another --workdir, or set these fields back to continue that run."
            )
        if foreign := ownership.foreign(workdir, integrity.steps(workdir), config):
            listed = "\n  ".join(foreign)
            raise UserError(
                f"--workdir {workdir} holds checkpoints of another run:\n  {listed}\n"
                "Nothing was changed. Move them back to the work directory of their run."
            )
    elif workdir.exists() and any(path.name != lock.FILE_NAME for path in workdir.iterdir()):
        raise UserError(
            f"--workdir {workdir} is not empty and holds no config.json, so it is not a training "
            "run to continue; take an empty or a new folder." + _way_back(workdir)
        )


def _check_places(checkpoints: Path) -> None:
    """Raises UserError where no checkpoint could be saved: a file, a link that leads nowhere."""
    if os.path.lexists(checkpoints) and not checkpoints.is_dir():
        raise UserError(f"{checkpoints} must be a folder; move what is there out of the way.")
    if checkpoints.is_dir() and not os.access(checkpoints, os.W_OK | os.X_OK):
        raise UserError(f"{checkpoints} must be writable by this user; change its permissions.")
    for path in checkpoints.glob("*"):
        if integrity.step_of(path.name) is not None and not path.is_dir():
            raise UserError(
                f"{path} has the name of a checkpoint and must be a folder (it is a file or a link "
                "that leads to none), so that step could not be saved; move it out of the way."
            )


def check_space(workdir: Path, trees: Trees) -> None:
    """Raises TrainingError if the disk of a work directory has no room for one checkpoint."""
    needed = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(trees))
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise TrainingError(
            f"the disk of {workdir} has {free / 2**20:,.0f} MiB free, and a checkpoint takes "
            f"{needed / 2**20:,.0f} MiB. Make room, or take another --workdir, then start the same "
            "command again."
        )


def prepare_workdir(workdir: Path, config: ConfigDict) -> None:
    """Makes the work directory; writes its config.json, whole or not at all, and its run's id."""
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "config.json"
        partial = path.with_suffix(".json.tmp")
        partial.write_text(config_lib.to_json(config))
        partial.replace(path)
        ownership.keep_id(workdir)


def read_config(workdir: Path) -> ConfigDict:
    """The config of a work directory. Raises UserError if there is none."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(
            f"{workdir} has no config.json; expected a training work directory."
            + _way_back(workdir)
        )
    try:
        return config_lib.from_json(path.read_text())
    except UNREADABLE as error:
        raise UserError(
            f"{path} is not readable JSON ({error}); restore it or retrain." + _way_back(workdir)
        ) from error


def _way_back(workdir: Path) -> str:
    """How a lost config.json comes back, "" where there is no checkpoint that has one."""
    step = max(integrity.steps(workdir), default=None)
    if step is None:
        return ""
    record = workdir / "checkpoints" / str(step) / RECORD / "metadata"
    code = "import json, sys; print(end=json.load(open(sys.argv[1]))['config'])"
    line = f'python -c "{code}" {shlex.quote(str(record))}'
    return (
        " Every checkpoint has the config in its record; if this is such a run, get it back by\n  "
        f"{line} > {shlex.quote(str(workdir / 'config.json'))}"
    )


def locate(path: Path) -> tuple[Path, int | None] | None:
    """(work directory, step) of a work directory or of one checkpoint in it, else None.

    The step is None for a work directory: its newest checkpoint.
    """
    if (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        return path, None
    step = integrity.step_of(path.name)
    if path.parent.name == "checkpoints" and step is not None:
        return path.parent.parent, step
    return None


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run in `workdir` would continue rather than start."""
    return bool(integrity.steps(workdir))


@contextmanager
def open_run(workdir: Path, config: ConfigDict) -> Iterator[ocp.CheckpointManager]:
    """Writes the config of a run to `workdir`, which is `claim.held`, and opens its checkpoints.

    Logs what it changes in how a run goes on. Raises TrainingError if it cannot be written to.
    """
    if jax.process_index() == 0 and has_checkpoint(workdir):
        for line in config_lib.adjustments(read_config(workdir), config):
            log.warning("this run continues with another value of config.%s", line)
    with files.explained(workdir, "config.json"):
        prepare_workdir(workdir, config)
    keep, keep_every = config.keep_checkpoints, config.keep_every_steps
    with open_manager(workdir, keep, keep_every) as manager:
        yield manager


@contextmanager
def open_manager(
    workdir: Path, keep: int | None = None, keep_every: int = 0
) -> Iterator[ocp.CheckpointManager]:
    """The manager that saves to `workdir/checkpoints`; at the end it waits for the last save.

    keep: how many of the newest to keep, None for all; keep_every: those of steps divisible by it
    stay beside them, 0 for none. What a killed run left unfinished is removed. Raises TrainingError
    if the last save failed.
    """
    folder = (workdir / "checkpoints").resolve()
    ocp.type_handlers.register_type_handler(
        jax.Array,
        ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_MIN_PART_BYTES),
        override=True,
    )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        keep_period=keep_every or None,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
        async_options=ocp.options.AsyncOptions(
            timeout_secs=_SAVE_TIMEOUT_SECONDS,
            create_directories_asynchronously=False,  # waiting for them goes by that clock too
            post_finalization_callback=lambda: _write_manifest(folder),
        ),
    )
    with files.explained(workdir, "checkpoints"):
        manager = ocp.CheckpointManager(folder, options=options)
    try:
        yield manager
    except BaseException:
        with suppress(Exception):  # the first failure is the one to report
            manager.close()
        raise
    with files.explained(workdir, "the last checkpoint"):
        manager.close()


def _write_manifest(checkpoints: Path) -> None:
    """In Orbax's saving thread of the first host, when all is written and before it is renamed."""
    # Orbax does not pass the step to its callback: it is the newest, as one save waits for another.
    saved = {
        step: path
        for path in checkpoints.glob(f"*{integrity.UNFINISHED}*")
        if (step := integrity.step_of(path.name.split(".")[0])) is not None
    }
    saved = saved or {step: checkpoints / str(step) for step in integrity.steps(checkpoints.parent)}
    integrity.write_manifest(saved[max(saved)])


def save(manager: ocp.CheckpointManager, trees: Trees, config: ConfigDict) -> None:
    """Starts saving; training may go on at once. Waits for the save before it.

    Raises TrainingError if that one failed, or the work directory is gone.
    """
    step, workdir = int(trees[OPTIMIZER]["step"]), Path(manager.directory).parent
    config_json = config_lib.to_json(config)
    record = {
        "step": step,
        "data_position": step,
        "config": config_json,
        **ownership.identity(workdir, config_json),
        "versions": versions(),
        "commit": commit(),
    }
    arguments = ocp.args.Composite(
        **{
            WEIGHTS: ocp.args.StandardSave(trees[WEIGHTS]),
            OPTIMIZER: ocp.args.StandardSave(trees[OPTIMIZER]),
            RECORD: ocp.args.JsonSave(record),
        }
    )
    files.check_there(workdir)
    with files.explained(workdir, "a checkpoint"):
        manager.save(step, args=arguments, force=True)


def check_saved(manager: ocp.CheckpointManager, wait: bool = False) -> None:
    """Raises TrainingError if the save under way has failed; waits for its end if asked to."""
    with files.explained(Path(manager.directory).parent, "a checkpoint"):
        if wait:
            manager.wait_until_finished()
        else:
            manager.check_for_errors()


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a step computes, of those installed as such."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


@functools.cache
def commit() -> str:
    """The git commit of this code, with "+" where files were changed; "" outside git."""
    package = Path(config_lib.__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent:
            return ""  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def restore(manager: ocp.CheckpointManager, abstract: Trees) -> tuple[Trees, int] | None:
    """(trees, data position) of the newest whole checkpoint, or None where there is none yet.

    abstract: ShapeDtypeStructs with shardings, so that any mesh opens any checkpoint. Every byte is
    checked first. Damaged checkpoints are renamed STEP.damaged, and the one before them is taken.
    Raises UserError if all are damaged; then nothing is renamed.
    """
    step = hosts.on_first_host(_newest_whole, Path(manager.directory).parent)
    if step is None:
        return None
    manager.reload()
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            **{
                WEIGHTS: ocp.args.StandardRestore(abstract[WEIGHTS]),
                OPTIMIZER: ocp.args.StandardRestore(abstract[OPTIMIZER]),
                RECORD: ocp.args.JsonRestore(),
            }
        ),
    )
    trees = {item: restored[item] for item in (WEIGHTS, OPTIMIZER)}
    return trees, restored[RECORD]["data_position"]


def _newest_whole(workdir: Path) -> int | None:
    """The step to continue from; moves damaged checkpoints after it out of the way."""
    damaged: dict[Path, list[str]] = {}
    for step in reversed(integrity.steps(workdir)):
        folder = workdir / "checkpoints" / str(step)
        problems = integrity.find_problems(folder)
        if not problems:
            break
        damaged[folder] = problems
    else:
        if not damaged:
            return None
        listed = "\n  ".join(line for problems in damaged.values() for line in problems)
        if not any(integrity.has_manifest(folder) for folder in damaged):
            listed += f"\nNot one has a {integrity.MANIFEST}, so none can be checked."
        raise UserError(
            f"no checkpoint of {workdir} is whole:\n  {listed}\nNothing was changed. Bring these "
            "files back from a copy, or take another --workdir."
        )
    for bad, problems in damaged.items():
        log.error("checkpoint %s is damaged:\n  %s", bad, "\n  ".join(problems))
        log.error("it is kept as %s; going back to checkpoint %d", _set_aside(bad), step)
    return step


def _set_aside(folder: Path) -> Path:
    """Renames a damaged checkpoint, to a name that is free."""
    aside = folder.with_name(f"{folder.name}.damaged")
    count = 1
    while aside.exists():
        count += 1
        aside = folder.with_name(f"{folder.name}.damaged{count}")
    return folder.rename(aside)
