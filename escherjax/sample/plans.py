"""Which views are drawn together, and from what: plans for more targets than one pass should hold.

Self-attention joins all targets of a pass, so its cost grows with the square of their number. A
plan splits them into passes, each conditioned on some of the reference views and on some of the
views that earlier passes drew, which become references with their own cameras:

    joint           all targets in one pass
    anchors         views spread over all targets first, jointly; then the rest in chunks, each
                    from the nearest anchors and references (two-pass sampling, Stable Virtual
                    Camera, arXiv 2503.14489, section 3.3)
    autoregressive  chunks in the order of the targets, each from the nearest of the views drawn
                    just before and of the references
    auto            joint where the targets fit one chunk, else anchors

Planning is about cameras alone and touches no image; `run_plan` carries a plan out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from escherjax.errors import UserError, listed

NAMES = ("joint", "anchors", "autoregressive", "auto")

DEFAULT_CHUNK = 16

# Drawn views that condition a pass beside all references, where no budget is given.
_DRAWN_BESIDE_REFERENCES = 8

# Distances that differ by less count as equal, so that rounding decides nothing.
_DISTANCE_GRID = 1e-3

Draw = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(images [n, H, H, 3], their c2w [n, 4, 4], target c2w [m, 4, 4], indices of these targets [m])
-> views [m, R, R, 3]; images and views in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """One joint draw: its targets, and the views that condition it.

    references: indices of given reference views; drawn: of targets that earlier passes drew;
    targets: of those it draws. Ascending, but for references of a joint plan, which are as given.
    """

    references: tuple[int, ...]
    drawn: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def num_conditioning(self) -> int:
        return len(self.references) + len(self.drawn)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Passes in an order in which they can be carried out; together they draw each target once."""

    name: str
    passes: tuple[Pass, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(conditioning views, targets): the most of each in any pass."""
        return (
            max(one.num_conditioning for one in self.passes),
            max(len(one.targets) for one in self.passes),
        )

    def describe(self) -> str:
        """One line for people."""
        if len(self.passes) == 1:
            return f"plan {self.name}: all {self.shape[1]} views at once"
        conditioning, targets = self.shape
        return (
            f"plan {self.name}: {len(self.passes)} passes of up to {targets} views, each from up "
            f"to {conditioning} references and views drawn before"
        )


def make_plan(
    name: str,
    reference_c2w: np.ndarray,
    target_c2w: np.ndarray,
    *,
    chunk: int | None = None,
    max_conditioning: int | None = None,
    num_anchors: int | None = None,
    window: int | None = None,
) -> Plan:
    """Plans how M targets are drawn from N references.

    name: one of `NAMES`. reference_c2w: [N, 4, 4]; target_c2w: [M, 4, 4], in the order of the path.
    chunk: most targets in a pass, `DEFAULT_CHUNK` if None; joint does not heed it.
    max_conditioning: most views, references and drawn ones together, that condition a pass of a
    plan other than joint; references have half of it at least, where there are as many. None: all
    references and eight drawn views.
    num_anchors: at most chunk, which None stands for. window: how many of the last views drawn an
    autoregressive chunk may choose from; None: chunk.

    Near means near by `view_distances`. The views that condition a pass are chosen so that each of
    its targets has one of them as near as can be, then the nearest to any. Neither the order of the
    references nor a motion of the world changes which views those are.
    Raises UserError for an unknown name, no views, and numbers out of range, naming all of them.
    """
    reference_c2w, target_c2w = np.asarray(reference_c2w), np.asarray(target_c2w)
    chunk = DEFAULT_CHUNK if chunk is None else chunk
    num_refs, num_targets = len(reference_c2w), len(target_c2w)
    _check_settings(name, num_refs, num_targets, chunk, max_conditioning, num_anchors, window)
    if name == "auto":
        name = "joint" if num_targets <= chunk else "anchors"
    if name == "joint":
        return Plan(name, (Pass(tuple(range(num_refs)), (), tuple(range(num_targets))),))
    distances = view_distances(np.concatenate([reference_c2w, target_c2w]))
    budget = conditioning_budget(num_refs, max_conditioning)

    def conditioned(targets: Sequence[int], drawn: Sequence[int]) -> Pass:
        """The pass that draws `targets`, conditioned within the budget."""
        num_drawn = min(len(drawn), budget - min(num_refs, (budget + 1) // 2))
        columns = distances[:, num_refs + np.asarray(targets)]
        near_drawn = _nearest(columns[num_refs + np.asarray(drawn, int)], num_drawn)
        near_refs = _nearest(columns[:num_refs], min(num_refs, budget - num_drawn))
        return Pass(tuple(near_refs), tuple(sorted(drawn[i] for i in near_drawn)), tuple(targets))

    if name == "anchors":
        count = min(num_anchors or chunk, num_targets)
        anchors = spread_anchors(distances[num_refs:, num_refs:], count)
        rest = sorted(set(range(num_targets)) - set(anchors))
        passes = [conditioned(anchors, [])]
        passes += [conditioned(targets, anchors) for targets in _chunks(rest, chunk)]
    else:
        passes = []
        for targets in _chunks(range(num_targets), chunk):
            start = targets[0]
            passes.append(conditioned(targets, range(max(0, start - (window or chunk)), start)))
    return Plan(name, tuple(passes))


def conditioning_budget(num_references: int, max_conditioning: int | None = None) -> int:
    """Most views that condition a pass of a chunked plan; see `make_plan`."""
    return max_conditioning or num_references + _DRAWN_BESIDE_REFERENCES


def view_distances(c2w: np.ndarray) -> np.ndarray:
    """How far cameras are from each other in place and gaze: [V, 4, 4] -> int64 [V, V].

    d^2 = (|p_i - p_j| / s)^2 + a_ij^2, with camera centres p, the angle a in radians between
    optical axes, and s the root mean square distance of the centres from their mean (1 where they
    all coincide). On an orbit both terms are about the angle along it. Roll does not count, since
    it shows the same part of the scene. In thousandths, so that rounding breaks no tie; neither a
    motion nor a scaling of the world changes them.
    """
    c2w = np.asarray(c2w, np.float64)
    position, gaze = c2w[:, :3, 3], c2w[:, :3, 2]
    scale = np.sqrt(np.mean(np.sum((position - position.mean(0)) ** 2, axis=-1)))
    size = np.abs(position).max(initial=0.0)
    if scale <= 1e-6 * size or scale == 0:  # float32 poses are no more exact than that
        scale = 1.0
    apart = np.linalg.norm(position[:, None] - position[None], axis=-1) / scale
    # The arctangent, since the arccosine of nearly parallel axes loses half of all digits
    sine = np.linalg.norm(np.cross(gaze[:, None], gaze[None]), axis=-1)
    angle = np.arctan2(sine, gaze @ gaze.T)
    return np.rint(np.hypot(apart, angle) / _DISTANCE_GRID).astype(np.int64)


def spread_anchors(distances: np.ndarray, count: int) -> list[int]:
    """Chooses views by farthest-point sampling, both ends of the path first.

    distances: [M, M] among targets; count: 1..M. Each next anchor is the view that is farthest
    from its nearest anchor, the first of several. Returns ascending indices.
    """
    chosen = [0, len(distances) - 1][:count]
    while len(chosen) < count:
        to_nearest = distances[chosen].min(axis=0)
        to_nearest[chosen] = -1  # cameras that coincide are at distance 0 of each other
        chosen.append(int(to_nearest.argmax()))
    return sorted(set(chosen))


def check_plan(plan: Plan, num_references: int, num_targets: int) -> None:
    """Raises UserError, with all problems, unless the plan draws each of M targets once.

    Passes must have targets and conditioning views, indices in range, and drawn views from earlier
    passes only.
    """
    problems = []
    drawn: list[int] = []
    for i, one in enumerate(plan.passes):
        for what, indices, known in (
            ("references", one.references, range(num_references)),
            ("targets", one.targets, range(num_targets)),
            ("drawn views", one.drawn, set(drawn)),
        ):
            unknown = sorted(set(indices) - set(known))
            if unknown:
                where = "not drawn before" if what == "drawn views" else "not among those given"
                problems.append(f"Pass {i} names {what} {unknown}, {where}.")
        if not one.targets:
            problems.append(f"Pass {i} draws nothing.")
        if not one.num_conditioning:
            problems.append(f"Pass {i} has no view to start from.")
        drawn += one.targets
    missing = sorted(set(range(num_targets)) - set(drawn))
    twice = sorted({i for i in drawn if drawn.count(i) > 1})
    if missing:
        problems.append(f"Targets {missing} are drawn by no pass.")
    if twice:
        problems.append(f"Targets {twice} are drawn more than once.")
    if problems:
        raise UserError(
            f"The view plan {plan.name!r} does not fit {num_references} references and "
            f"{num_targets} targets: {listed(problems)} Make it with view_plans.make_plan."
        )


def run_plan(
    plan: Plan,
    draw: Draw,
    images: np.ndarray,
    reference_c2w: np.ndarray,
    target_c2w: np.ndarray,
) -> np.ndarray:
    """Carries out a plan: [N, H, H, 3] in [0, 1] and cameras -> views [M, R, R, 3] in [0, 1].

    draw: called once a pass. The views that it returned condition later passes; where they have
    another size than the images they are resized to it (bicubic).
    Raises UserError as `check_plan` does.
    """
    check_plan(plan, len(images), len(target_c2w))
    views: dict[int, np.ndarray] = {}
    for one in plan.passes:
        references, drawn = list(one.references), list(one.drawn)
        conditioning = images[references]
        if drawn:
            before = _resized(np.stack([views[i] for i in drawn]), images.shape[1])
            conditioning = np.concatenate([conditioning, before])
        c2w = np.concatenate([reference_c2w[references], target_c2w[drawn]])
        targets = np.asarray(one.targets)
        views.update(
            zip(one.targets, draw(conditioning, c2w, target_c2w[targets], targets), strict=True)
        )
    return np.stack([views[i] for i in range(len(target_c2w))])


def _check_settings(
    name: str,
    num_references: int,
    num_targets: int,
    chunk: int,
    max_conditioning: int | None,
    num_anchors: int | None,
    window: int | None,
) -> None:
    problems = []
    if name not in NAMES:
        problems.append(f"The view plan {name!r} is unknown; needed one of {', '.join(NAMES)}.")
    if not num_references or not num_targets:
        problems.append(
            f"There are {num_references} references and {num_targets} targets; needed one of each."
        )
    if chunk < 1:
        problems.append(f"chunk = {chunk}; needed 1 target in a pass at least.")
    if max_conditioning is not None and max_conditioning < 1:
        problems.append(f"max_conditioning = {max_conditioning}; needed 1 view at least, or None.")
    if num_anchors is not None and not 1 <= num_anchors <= max(chunk, 1):
        problems.append(
            f"num_anchors = {num_anchors}; needed 1 to chunk = {chunk}, since anchors are drawn in "
            "one pass, or None."
        )
    if window is not None and window < 1:
        problems.append(f"window = {window}; needed 1 view at least, or None.")
    if problems:
        raise UserError(listed(problems))


def _nearest(distances: np.ndarray, count: int) -> list[int]:
    """The `count` candidates that best cover the targets, [C, T] -> ascending indices.

    Greedily: each next candidate is the one that makes the sum over targets of the distance to the
    nearest chosen one smallest; among equals the one nearest to any target. The whole row decides
    last, which tells cameras apart whatever their order.
    """
    chosen: list[int] = []
    to_chosen = np.full(distances.shape[1], distances.max(initial=0))
    while len(chosen) < min(count, len(distances)):

        def key(i: int) -> tuple[int, ...]:
            row = distances[i]
            return np.minimum(row, to_chosen).sum(), row.min(), *row  # noqa: B023

        chosen.append(min(set(range(len(distances))) - set(chosen), key=key))
        to_chosen = np.minimum(to_chosen, distances[chosen[-1]])
    return sorted(chosen)


def _chunks(indices: Sequence[int], size: int) -> list[list[int]]:
    """Consecutive chunks of at most `size`, their lengths as equal as can be."""
    if not len(indices):
        return []
    return [part.tolist() for part in np.array_split(indices, -(-len(indices) // size))]


def _resized(views: np.ndarray, side: int) -> np.ndarray:
    if views.shape[1] == side:
        return views
    import jax

    shape = (len(views), side, side, 3)
    return np.clip(np.asarray(jax.image.resize(views, shape, "bicubic")), 0.0, 1.0)
