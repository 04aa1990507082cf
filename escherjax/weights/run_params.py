"""The parameters in a checkpoint, for sampling and for new runs; no optimizer bytes are read.

What is read is checked against the checkpoint's checksums first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from escherjax.errors import UserError
from escherjax.models.eschernet import Params
from escherjax.train.state import TRAINED, TrainState
from escherjax.weights import verify


def find_step(workdir: Path, step: int | None = None) -> int:
    """The step of a whole checkpoint, the newest for None.

    Raises UserError if there is no checkpoint, or none of that step.
    """
    steps = verify.steps(workdir)
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet; train until the first is saved.")
    if step not in (None, *steps):
        raise UserError(f"{workdir} has no checkpoint {step}; it has {steps}.")
    return steps[-1] if step is None else step


def restore_sampling_params(workdir: Path, abstract: TrainState, step: int, weights: str) -> Params:
    """All parameters for drawing views; no optimizer bytes read.

    step: of a checkpoint there is (`find_step`). weights: "ema" for the average, "raw".
    Raises UserError if the run kept no average and it is asked for, or the checkpoint is damaged.
    """
    if weights == "ema" and not abstract.ema:
        raise UserError(
            f"{workdir} kept no average of its parameters (config.ema.enabled was off); take the "
            "raw ones."
        )
    trained = {"ema": {"ema": abstract.ema}, "raw": {"params": abstract.params}}[weights]
    wanted: dict[str, Any] = {"frozen": abstract.frozen, **trained}
    restored = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
        _checked_weights(workdir, step),
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
            _weights_folder(self.workdir, self.step),
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


def open_checkpoint(workdir: Path, step: int | None = None, weights: str = "") -> StoredParams:
    """What parameters a checkpoint holds, by its metadata, after a look at its checksums.

    step: None for the newest. weights: "ema", "raw", or "" for the average where one was kept.
    Raises UserError if there is no such checkpoint, it is damaged, or it kept no average and "ema"
    is asked for.
    """
    step = find_step(workdir, step)
    tree = ocp.PyTreeCheckpointHandler().metadata(_checked_weights(workdir, step)).tree
    if weights == "ema" and not tree["ema"]:
        raise UserError(
            f"{workdir} kept no average of its parameters (config.ema.enabled was off); take the "
            "raw ones."
        )
    weights = weights or ("ema" if tree["ema"] else "raw")
    held = {**tree["frozen"], **tree["ema" if weights == "ema" else "params"]}
    shapes = {path: tuple(leaf.shape) for path, leaf in traverse_util.flatten_dict(held).items()}
    return StoredParams(workdir, step, weights, shapes)


def _weights_folder(workdir: Path, step: int) -> Path:
    return (workdir / "checkpoints" / str(step) / verify.WEIGHTS).resolve()


def _checked_weights(workdir: Path, step: int) -> Path:
    """The folder of a checkpoint's parameters. Raises UserError if they are damaged, or of another
    step, as the record shows."""
    folder = workdir / "checkpoints" / str(step)
    problems = verify.verify(folder, (verify.WEIGHTS, verify.RECORD))
    if problems:
        listed = "\n  ".join(problems)
        others = [other for other in verify.steps(workdir) if other != step]
        raise UserError(
            f"checkpoint {folder} is damaged:\n  {listed}\nName another, such as "
            f"{folder.parent}/STEP with STEP of {others}, or bring these files back from a copy."
        )
    return _weights_folder(workdir, step)
