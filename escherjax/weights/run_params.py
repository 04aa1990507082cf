"""Reads the parameters in a checkpoint, for sampling and for new runs, and no optimizer bytes.

What is read is checked against the checkpoint's checksums first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from escherjax.errors import UserError
from escherjax.models.eschernet import Params
from escherjax.weights import integrity, ownership

ParamPath = tuple[str, ...]  # such as ("unet", "conv_in", "kernel")


@dataclasses.dataclass(frozen=True)
class StoredParams:
    """The parameters in one checkpoint, whatever network and mesh it was saved from."""

    workdir: Path
    step: int
    weights: str  # "ema" or "raw": which of the two the trained parameters are
    shapes: dict[ParamPath, tuple[int, ...]]  # of every parameter
    frozen: frozenset[str]  # the parts that were not trained, such as "vae"

    def read(self, paths: Iterable[ParamPath]) -> dict[ParamPath, np.ndarray]:
        """Host arrays of those parameters, bit for bit; nothing else is read."""
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        return self._restore(dict.fromkeys(paths, as_numpy), dict.fromkeys(paths, 0))

    def restore(self, abstract: Params) -> Params:
        """Arrays on devices.

        Args:
            abstract: the tree of all parameters as ShapeDtypeStructs with shardings, such as
                {"unet", "image_encoder", "vae"}, a part without parameters being empty.
        """
        flat = traverse_util.flatten_dict(abstract)
        restored = self._restore(ocp.checkpoint_utils.construct_restore_args(flat), flat)
        return {part: {} for part in abstract} | traverse_util.unflatten_dict(restored)

    def _restore(
        self, restore_args: dict[ParamPath, Any], like: dict[ParamPath, Any]
    ) -> dict[ParamPath, Any]:
        """The parameters at the paths of `like`."""
        if not like:
            return {}
        restored = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
            _weights_folder(self.workdir, self.step),
            args=ocp.args.PyTreeRestore(
                self._as_stored(like),
                restore_args=self._as_stored(restore_args),
                partial_restore=True,
            ),
        )
        found = traverse_util.flatten_dict(restored)
        return {path: found[self._place(path)] for path in like}

    def _as_stored(self, flat: dict[ParamPath, Any]) -> dict[str, Any]:
        return traverse_util.unflatten_dict({self._place(path): v for path, v in flat.items()})

    def _place(self, path: ParamPath) -> ParamPath:
        if path[0] in self.frozen:
            return "frozen", *path
        return "ema" if self.weights == "ema" else "params", *path


def find_step(workdir: Path, step: int | None = None) -> int:
    """The step of a whole checkpoint, the newest for None.

    Raises UserError if there is no checkpoint, or none of that step.
    """
    steps = integrity.steps(workdir)
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet; train until the first is saved.")
    if step not in (None, *steps):
        raise UserError(f"{workdir} has no checkpoint {step}; it has {steps}.")
    return steps[-1] if step is None else step


def open_checkpoint(
    workdir: Path, step: int | None = None, weights: str | None = None
) -> StoredParams:
    """Finds what parameters a checkpoint holds by its metadata, after checking its checksums.

    Args:
        workdir: training work directory.
        step: None for the newest.
        weights: "ema", "raw", or None (or "") for the average where one was kept.

    Raises:
        UserError: there is no such checkpoint, it is damaged or of another run, or "ema" is asked
            for and none kept.
    """
    step = find_step(workdir, step)
    folder = workdir / "checkpoints" / str(step)
    problems = integrity.find_problems(folder, (integrity.WEIGHTS, integrity.RECORD))
    if problems:
        listed = "\n  ".join(problems)
        others = [other for other in integrity.steps(workdir) if other != step]
        raise UserError(
            f"checkpoint {folder} is damaged:\n  {listed}\nName another, such as "
            f"{folder.parent}/STEP with STEP of {others}, or bring these files back from a copy."
        )
    if problem := ownership.of_other_run(workdir, step):
        raise UserError(f"{problem}. Move it back to the work directory of its run.")
    tree = ocp.PyTreeCheckpointHandler().metadata(_weights_folder(workdir, step)).tree
    if weights == "ema" and not tree["ema"]:
        raise UserError(
            f"{workdir} kept no average of its parameters (config.ema.enabled was off); take the "
            "raw ones."
        )
    weights = weights or ("ema" if tree["ema"] else "raw")
    held = {**tree["frozen"], **tree["ema" if weights == "ema" else "params"]}
    shapes = {path: tuple(leaf.shape) for path, leaf in traverse_util.flatten_dict(held).items()}
    return StoredParams(workdir, step, weights, shapes, frozenset(tree["frozen"]))


def _weights_folder(workdir: Path, step: int) -> Path:
    return (workdir / "checkpoints" / str(step) / integrity.WEIGHTS).resolve()
