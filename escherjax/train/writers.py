"""Where a run's numbers go, from the first host only: metrics.jsonl, TensorBoard, wandb."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from escherjax import files
from escherjax.errors import UserError
from escherjax.reports import sheets

log = logging.getLogger("escherjax.train")


def check_available(config: ConfigDict) -> None:
    """Raises UserError if the config asks for wandb and it is not installed."""
    if config.wandb.project and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"config.wandb.project = {config.wandb.project!r}, but wandb is not installed; "
            "pip install 'escherjax[logs]', or leave the field empty."
        )


class MetricWriter:
    """Appends one JSON object a line to `metrics.jsonl`, and the same scalars to the other places.

    A run that continues at step s first takes out the lines beyond s, so that every step stands
    there once, as if the run had never stopped. Raises TrainingError where the disk fails.
    """

    def __init__(self, workdir: Path, start_step: int, config: ConfigDict):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._workdir, self._path = workdir, workdir / "metrics.jsonl"
        self._told = False  # whether a file that went away has been reported
        with files.explained(workdir, "metrics"):
            if self._path.exists():
                _truncate(self._path, start_step)
            self._file = self._path.open("a")
            self._board = self._open_board()
            for event in (
                Event(step=start_step + 1, file_version="brain.Event:2"),
                Event(step=start_step + 1, session_log=SessionLog(status=SessionLog.START)),
            ):
                self._board.write_event(event)  # TensorBoard hides what was beyond
            self._wandb = _open_wandb(workdir, config) if config.wandb.project else None

    def _open_board(self) -> EventsWriter:
        # Not SummaryWriter: its thread dies with the disk, and the next call waits for ever.
        suffix = f".{uuid.uuid4().hex[:8]}"  # names in one second would be alike
        board = EventsWriter(str(self._workdir / "events"), suffix)
        (self._board_path,) = self._workdir.glob(f"events.out.tfevents.*{suffix}")
        return board

    def _reopen(self) -> None:
        """Opens anew the files that were moved or removed, as by log rotation; says so once."""
        went = []
        if not _is_at(self._file, self._path):
            went.append(self._path.name)
            self._file.close()
            self._file = self._path.open("a")
        if not self._board_path.exists():
            went.append(self._board_path.name)
            self._board.close()
            self._board = self._open_board()
        if went and not self._told:
            self._told = True
            names = " and ".join(went)
            log.warning("%s of %s is gone or replaced; opened a new one", names, self._workdir)

    def has_heldout(self, step: int) -> bool:
        """Whether held-out figures of `step` are there already."""
        return any(
            row["step"] == step and any(name.startswith("heldout/") for name in row)
            for row in _read(self._path)[0]
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._active:
            return
        files.check_there(self._workdir)  # an open file takes lines even if its folder is gone
        with files.explained(self._workdir, "metrics"):
            self._reopen()
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                event = Event(step=step, wall_time=time.time(), summary=scalar(name, value))
                self._board.write_event(event)
            self._board.flush()
        if self._wandb:
            self._wandb.log(values, step=step)

    def plot_loss(self) -> None:
        """Plots the loss of the whole run as `loss.png` beside metrics.jsonl."""
        if not self._active:
            return
        rows, _ = _read(self._path)
        points = np.array([(row["step"], row["loss"]) for row in rows if "loss" in row])
        if len(points) > 1:
            picture = self._path.with_name("loss.png")
            with files.explained(self._workdir, picture.name):
                sheets.line_chart(picture, points[:, 0], points[:, 1], "step", "training loss")

    def close(self) -> None:
        if not self._active:
            return
        for file in (self._file, self._board):
            with suppress(OSError):  # every line was flushed, and a failure reported, when written
                file.close()
        if self._wandb:
            self._wandb.finish()


def _open_wandb(workdir: Path, config: ConfigDict) -> Any:
    """The wandb run of this work directory; a run that continues goes on in the same one.

    wandb keeps what it has: steps done again after a kill stay there as they were first logged.
    """
    import wandb

    name = workdir / "wandb_id.txt"
    if not name.exists():
        name.write_text(uuid.uuid4().hex)
    return wandb.init(
        project=config.wandb.project,
        name=workdir.resolve().name,
        id=name.read_text(),
        resume="allow",
        dir=str(workdir),
        config=config.to_dict(),
    )


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether the open file is the one that the path leads to."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _truncate(path: Path, last_step: int) -> None:
    """Drops lines after `last_step`, and unreadable ones: a kill leaves the last one unfinished."""
    rows, unreadable = _read(path)
    if unreadable:
        log.warning("%d lines of %s could not be read and are dropped", unreadable, path)
    kept = [row for row in rows if row["step"] <= last_step]
    partial = path.with_suffix(".jsonl.tmp")
    partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
    partial.replace(path)


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows that have a step, and how many lines are no such rows; none where the file is gone."""
    rows, unreadable = [], 0
    if not path.exists():
        return [], 0
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
            if type(row["step"]) is not int:
                raise ValueError("no step")
        except (ValueError, KeyError, TypeError):
            unreadable += 1
        else:
            rows.append(row)
    return rows, unreadable
