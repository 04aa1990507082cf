"""Checkpoints and the work directory: what is saved, and how a run finds its place again.

`checkpoints/STEP/` holds the training state (Orbax, saved asynchronously and renamed when whole)
and a JSON record of step, data position, config and versions. The data position is the number of
batches drawn, so that any number of hosts can go on from it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from ml_collections import ConfigDict

from escherjax import config as config_lib
from escherjax.errors import UserError
from escherjax.models.eschernet import Params
from escherjax.training.state import TRAINED, TrainState

_VERSIONED = ("escherjax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Checks that a run of `config` may start or continue in `workdir`; changes nothing.

    Raises UserError if it holds something else, or a checkpoint of a config that differs in more
    than how long it runs and what it reports.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file; name a folder that exists or can be made.")
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
    elif workdir.exists() and any(workdir.iterdir()):
        raise UserError(
            f"--workdir {workdir} is not empty and holds no config.json, so it is not a training "
            "run to continue; take an empty or a new folder."
        )


def prepare_workdir(workdir: Path, config: ConfigDict) -> None:
    """Makes the work directory and writes its config.json, whole or not at all."""
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "config.json"
        partial = path.with_suffix(".json.tmp")
        partial.write_text(config_lib.to_json(config))
        partial.replace(path)


def read_config(workdir: Path) -> ConfigDict:
    """The config of a work directory. Raises UserError if there is none."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} has no config.json; needed a training work directory.")
    try:
        return config_lib.from_json(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON ({error}); restore it or retrain.") from error


def locate(path: Path) -> tuple[Path, int | None] | None:
    """(work directory, step) of a work directory or of one checkpoint in it, else None.

    The step is None for a work directory: its newest checkpoint.
    """
    if (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        return path, None
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return None


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run in `workdir` would continue rather than start."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def open_manager(workdir: Path, keep: int | None = None) -> ocp.CheckpointManager:
    """The manager of `workdir/checkpoints`; keep: how many of the newest to keep, None for all."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    return ocp.CheckpointManager((workdir / "checkpoints").resolve(), options=options)


def save(manager: ocp.CheckpointManager, state: TrainState, config: ConfigDict) -> None:
    """Starts saving; training may go on at once. Waits for the save before it."""
    step = int(state.step)
    record = {
        "step": step,
        "data_position": step,
        "config": config_lib.to_json(config),
        "versions": versions(),
    }
    arguments = ocp.args.Composite(
        state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
    )
    manager.save(step, args=arguments, force=True)


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a step computes, of those installed as such."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def restore(
    manager: ocp.CheckpointManager, abstract: TrainState
) -> tuple[TrainState, int] | None:
    """(state, data position) of the newest whole checkpoint, or None where there is none yet.

    abstract: ShapeDtypeStructs with shardings, so that any mesh opens any checkpoint.
    """
    step = manager.latest_step()
    if step is None:
        return None
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()
        ),
    )
    return restored["state"], restored["record"]["data_position"]


def find_step(workdir: Path, step: int | None = None) -> int:
    """The step of a whole checkpoint, the newest for None.

    Raises UserError if there is no checkpoint, or none of that step.
    """
    with open_manager(workdir) as manager:
        steps = sorted(manager.all_steps())
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet; train until the first is saved.")
    if step not in (None, *steps):
        raise UserError(f"{workdir} has no checkpoint {step}; it has {steps}.")
    return steps[-1] if step is None else step


def restore_sampling_params(
    workdir: Path, abstract: TrainState, step: int, weights: str
) -> Params:
    """All parameters for drawing views; no optimizer bytes read.

    step: of a checkpoint there is (`find_step`). weights: "ema" for the average, "raw".
    Raises UserError if the run kept no average and it is asked for.
    """
    if weights == "ema" and not abstract.ema:
        raise UserError(
            f"{workdir} kept no average of its parameters (config.ema.enabled was off); take the "
            "raw ones."
        )
    trained = {"ema": {"ema": abstract.ema}, "raw": {"params": abstract.params}}[weights]
    wanted: dict[str, Any] = {"frozen": abstract.frozen, **trained}
    restored = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
        _state_folder(workdir, step),
        args=ocp.args.PyTreeRestore(
            wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        ),
    )
    return {part: params for kind in wanted for part, params in restored[kind].items()}


ParamPath = tuple[str, ...]  # such as ("unet", "conv_in", "kernel")


@dataclasses.dataclass(frozen=True)
class StoredParams:
    """The parameters in one checkpoint, whatever network and mesh it was saved from.

    weights: "ema" or "raw", which of the two the trained ones are; shapes: of every parameter.
    """

    workdir: Path
    step: int
    weights: str
    shapes: dict[ParamPath, tuple[int, ...]]

    def read(self, paths: Iterable[ParamPath]) -> dict[ParamPath, np.ndarray]:
        """Host arrays of those parameters, bit for bit; nothing else is read."""
        places = {path: self._place(path) for path in paths}
        if not places:
            return {}
        wanted = traverse_util.unflatten_dict(dict.fromkeys(places.values(), 0))
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        restored = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
            _state_folder(self.workdir, self.step),
            args=ocp.args.PyTreeRestore(
                wanted,
                restore_args=jax.tree.map(lambda _: as_numpy, wanted),
                partial_restore=True,
            ),
        )
        flat = traverse_util.flatten_dict(restored)
        return {path: flat[place] for path, place in places.items()}

    def _place(self, path: ParamPath) -> ParamPath:
        if path[0] not in TRAINED:
            return "frozen", *path
        return "ema" if self.weights == "ema" else "params", *path


def stored_params(workdir: Path, step: int | None = None, weights: str = "") -> StoredParams:
    """What parameters a checkpoint holds, by its metadata; no arrays are read.

    step: None for the newest. weights: "ema", "raw", or "" for the average where one was kept.
    Raises UserError if there is no such checkpoint, or it kept no average and "ema" is asked for.
    """
    step = find_step(workdir, step)
    tree = ocp.PyTreeCheckpointHandler().metadata(_state_folder(workdir, step)).tree
    if weights == "ema" and not tree["ema"]:
        raise UserError(
            f"{workdir} kept no average of its parameters (config.ema.enabled was off); take the "
            "raw ones."
        )
    weights = weights or ("ema" if tree["ema"] else "raw")
    held = {**tree["frozen"], **tree["ema" if weights == "ema" else "params"]}
    shapes = {path: tuple(leaf.shape) for path, leaf in traverse_util.flatten_dict(held).items()}
    return StoredParams(workdir, step, weights, shapes)


def _state_folder(workdir: Path, step: int) -> Path:
    return (workdir / "checkpoints" / str(step) / "state").resolve()
