"""What an evaluation gives the network, what it compares with, and by which conventions.

A protocol is a list of scenes and a way to make one `Case` of a scene and a number of references.
There are two modes, whose numbers never stand in one table: `faithful` repeats what the published
evaluation of EscherNet (arXiv 2402.03908) computes, oddities included; `corrected` composites true
alpha, resizes once, and brings pictures to the field of view of the training renders.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax.errors import UserError
from escherjax.metrics.scoring import Conventions

MODES = ("faithful", "corrected")

# Name -> the module of escherjax.evaluate.protocols that makes it.
_MODULES = {
    "gso25": "gso",
    "gso3d": "gso",
    "gso100": "gso",
    "rtmv": "rtmv",
    "nerf": "nerf",
    "franka": "spiral",
    "mvdream": "spiral",
    "text2img": "spiral",
    "heldout": "heldout",
}
PROTOCOLS = tuple(_MODULES)
# Fields of `Source` that only one protocol takes.
_OPTIONS = {
    "nerf": ("index_path",),
    "heldout": ("split", "num_targets", "fov_deg", "max_radius"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One scene with N references and M targets; all arrays are numpy's.

    reference_images: [N, R, R, 3] uint8, what the network is given.
    reference_c2w, target_c2w: [N, 4, 4] and [M, 4, 4] float32 camera-to-world, OpenCV axes, world z
        up, in the network's unit.
    truth: [M, R, R, 3] uint8, None where nothing is known to compare with; not to be written to.
    scored: [S] indices of the targets that count, rising; empty without truth.
    target_K: [M, 3, 3] float32 in pixels of the truth, None where nothing is known of it.
    """

    scene_id: str
    num_references: int
    reference_images: np.ndarray
    reference_c2w: np.ndarray
    target_c2w: np.ndarray
    truth: np.ndarray | None
    scored: np.ndarray
    target_K: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class CaseRequest:
    """What a case is made for. resolution: side R in pixels; cape: of the network."""

    scene_id: str
    num_references: int
    resolution: int
    cape: str


@dataclasses.dataclass(frozen=True, eq=False)
class Protocol:
    """An evaluation of one data set in one mode; made by `make_protocol`.

    reference_counts: the numbers of references N to evaluate.
    max_references: the largest N that makes sense, None where each scene decides.
    scenes: scene id -> what `read_case` needs to find it, in order of the ids.
    read_case: (request, that) -> Case.
    published_num_scenes: how many scenes the published figures average over, None without figures.
    rules: in words and numbers, everything that decides the pictures and cameras.
    """

    name: str
    mode: str
    conventions: Conventions
    reference_counts: tuple[int, ...]
    max_references: int | None
    scenes: Mapping[str, Any]
    read_case: Callable[[CaseRequest, Any], Case]
    published_num_scenes: int | None
    rules: Mapping[str, Any]

    def scene_ids(self) -> list[str]:
        """Ids of all scenes, in the order that they are evaluated in."""
        return list(self.scenes)

    def read(self, scene_id: str, num_references: int, resolution: int, cape: str) -> Case:
        """Reads one scene; the same arguments give the same case.

        resolution: side of the network's views in pixels. cape: its camera encoding (see
        `escherjax.cape`), on which published pose scales depend.
        Raises UserError naming the scene and everything that keeps it from being used.
        """
        from escherjax import cameras

        if scene_id not in self.scenes:
            raise UserError(f"protocol '{self.name}' has no scene '{scene_id}'.")
        if problems := _count_problems([num_references], self.max_references):
            raise UserError(f"protocol '{self.name}': {' '.join(problems)}")
        request = CaseRequest(scene_id, num_references, resolution, cape)
        case = self.read_case(request, self.scenes[scene_id])
        cameras.check_poses(case.reference_c2w, f"references of scene '{scene_id}'")
        cameras.check_poses(case.target_c2w, f"targets of scene '{scene_id}'")
        return case

    def describe(self) -> dict[str, Any]:
        """Everything about the protocol that numbers depend on, for summary.json."""
        return {
            "protocol": self.name,
            "mode": self.mode,
            "conventions": dataclasses.asdict(self.conventions),
            "reference_counts": list(self.reference_counts),
            "num_scenes": len(self.scenes),
            "published_num_scenes": self.published_num_scenes,
            "rules": dict(self.rules),
        }


@dataclasses.dataclass(frozen=True)
class Source:
    """What a protocol is opened from; `open` checks it."""

    name: str  # one of PROTOCOLS
    data_path: Path | str  # the data's folder, or shards for `heldout`
    mode: str = "faithful"  # one of MODES
    reference_counts: Sequence[int] | None = None  # numbers of references; None: the protocol's
    limit: int | None = None  # only so many scenes, the first by id (by place, in shards)
    # Of `nerf`: folder of SCENE/train_N3M20_random.npy; None looks for NeRF_idx in and beside data.
    index_path: str | Path | None = None
    # Of `heldout`, see `protocols.heldout.make`.
    split: str | None = None
    num_targets: int | None = None
    fov_deg: float | None = None
    max_radius: float | None = None

    def open(self) -> Protocol:
        """Raises UserError naming every problem: unknown names, missing folders, no scenes."""
        accepted = _OPTIONS.get(self.name, ())
        problems = []
        if self.name not in PROTOCOLS:
            problems.append(f"protocol must be one of {', '.join(PROTOCOLS)}, got {self.name!r}.")
        else:
            problems += [
                f"{option} = {value!r} means nothing to protocol '{self.name}'; leave it out."
                for option in sum(_OPTIONS.values(), ())
                if (value := getattr(self, option)) is not None and option not in accepted
            ]
        if self.mode not in MODES:
            problems.append(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}.")
        is_address = "://" in str(self.data_path)
        if not (is_address and self.name == "heldout") and not Path(self.data_path).is_dir():
            problems.append(f"the data {self.data_path} is not a directory.")
        if self.limit is not None and self.limit < 1:
            problems.append(f"limit must be at least 1 scene, got {self.limit}.")
        counts = None if self.reference_counts is None else tuple(self.reference_counts)
        if counts is not None:
            problems += _count_problems(counts, None)
            if not counts or len(set(counts)) < len(counts):
                problems.append(f"references must be numbers, each of them once, got {[*counts]}.")
        if problems:
            raise UserError("\n".join(problems))
        module = importlib.import_module(f"escherjax.evaluate.protocols.{_MODULES[self.name]}")
        path = self.data_path if is_address else Path(self.data_path)
        return module.make(dataclasses.replace(self, data_path=path, reference_counts=counts))

    def protocol(
        self,
        scenes: Mapping[str, Any],
        read_case: Callable[[CaseRequest, Any], Case],
        default_counts: Sequence[int],
        rules: Mapping[str, Any],
        max_references: int | None = None,
        published_num_scenes: int | None = None,
    ) -> Protocol:
        """The protocol of these scenes; UserError if a number of references is too large for it."""
        counts = tuple(default_counts if self.reference_counts is None else self.reference_counts)
        if problems := _count_problems(counts, max_references):
            raise UserError(f"protocol '{self.name}': {' '.join(problems)}")
        return Protocol(
            name=self.name,
            mode=self.mode,
            conventions=Conventions(prediction="floor" if self.mode == "faithful" else "nearest"),
            reference_counts=counts,
            max_references=max_references,
            scenes=dict(list(scenes.items())[: self.limit]),
            read_case=read_case,
            published_num_scenes=published_num_scenes,
            rules=rules,
        )


def make_protocol(
    name: str, data_path: str | Path, mode: str = "faithful", **options: Any
) -> Protocol:
    """Opens a data set for evaluation.

    Args:
      name: one of PROTOCOLS.
      data_path: its folder, or shards for `heldout`.
      mode: one of MODES.
      **options: the other fields of `Source`.

    Raises:
      UserError: naming every problem: unknown names, missing folders, no scenes.
    """
    return Source(name, data_path, mode, **options).open()


def _count_problems(counts: Sequence[Any], most: int | None) -> list[str]:
    """What is wrong with numbers of references; most: the largest, None for any."""
    problems = []
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            problems.append(f"references must be whole numbers of at least 1, got {count!r}.")
        elif most is not None and count > most:
            problems.append(
                f"references must be at most {most}, as the others are not for input, got {count}."
            )
    return problems
