"""Where a run's numbers go: metrics.jsonl and TensorBoard, from the first host only."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

from escherjax import pictures


class MetricWriter:
    """Appends one JSON object a line to `metrics.jsonl`, and the same scalars to TensorBoard.

    A run that continues at step s first takes out the lines beyond s, so that every step stands
    there once, as if the run had never stopped.
    """

    def __init__(self, workdir: Path, start_step: int):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = workdir / "metrics.jsonl"
        if path.exists():
            _truncate(path, start_step)
        self._path = path
        self._file = path.open("a")
        self._board = SummaryWriter(str(workdir), purge_step=start_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def draw_loss(self) -> None:
        """Draws the loss of the whole run as `loss.png` beside metrics.jsonl."""
        if not self._active:
            return
        rows = [json.loads(line) for line in self._path.read_text().splitlines()]
        points = np.array([(row["step"], row["loss"]) for row in rows if "loss" in row])
        if len(points) > 1:
            picture = self._path.with_name("loss.png")
            pictures.line_chart(picture, points[:, 0], points[:, 1], "step", "training loss")

    def close(self) -> None:
        if self._active:
            self._file.close()
            self._board.close()


def _truncate(path: Path, last_step: int) -> None:
    """Drops lines after `last_step`, and a last line that a kill left unfinished."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] > last_step:
                continue
        except ValueError:
            continue
        kept.append(line + "\n")
    partial = path.with_suffix(".jsonl.tmp")
    partial.write_text("".join(kept))
    partial.replace(path)
