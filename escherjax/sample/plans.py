"""Which views are generated together, and from what, where one pass should not hold them all.

Self-attention joins all targets of a pass, so its cost grows with the square of their number. A
plan splits them into passes, each conditioned on some of the reference views and on some of the
views of earlier passes, which become references with their own cameras:

    joint           all targets in one pass
    anchors         views spread over all targets first, jointly; then the rest in chunks, each
                    from the nearest anchors and references (two-pass sampling, Stable Virtual
                    Camera, arXiv 2503.14489, section 3.3)
    autoregressive  chunks in the order of the targets, each from the nearest of the views
                    generated just before and of the references
    auto            joint where the targets fit one chunk, else anchors

Planning is about cameras alone and touches no image; `Pipeline.generate` carries a plan out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from escherjax.errors import UserError, listed

NAMES = ("joint", "anchors", "autoregressive", "auto")

DEFAULT_CHUNK = 16

# Generated views that condition a pass beside all references, where no budget is given.
_BESIDE_REFERENCES = 8

# Mean squared sine between optical axes and their common direction: a degree of spread.
_MIN_SPREAD_OF_AXES = 3e-4

# Distances that differ by less count as equal, so that rounding decides nothing.
_DISTANCE_GRID = 1e-3


@dataclasses.dataclass(frozen=True)
class Pass:
    """Targets that are generated together, and the views that condition them, all by index.

    Ascending, but for references of a joint plan, which are as given.
    """

    references: tuple[int, ...]  # of the given reference views
    drawn: tuple[int, ...]  # of targets that earlier passes generated
    targets: tuple[int, ...]  # that this pass generates

    @property
    def num_conditioning(self) -> int:
        return len(self.references) + len(self.drawn)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Passes in an order in which they can be run; together they generate each target once."""

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
            f"to {conditioning} references and views generated before"
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
    """Plans how M targets are generated from N references.

    name: one of `NAMES`. reference_c2w: [N, 4, 4]; target_c2w: [M, 4, 4], in the order of the path.
    chunk: most targets in a pass, `DEFAULT_CHUNK` if None; joint does not heed it.
    max_conditioning: most views, references and generated ones together, that condition a pass of a
    plan other than joint; references have half of it at least, where there are as many. None: all
    references and eight generated views.
    num_anchors: at most chunk, which None stands for. window: how many of the last generated views
    an autoregressive chunk may choose from; None: chunk.

    Near means near by `view_distances`. The views that condition a pass are chosen so that each of
    its targets has one of them as near as can be, then the nearest to any. Neither the order of the
    references nor a motion of the world changes which views those are.
    Raises UserError for an unknown name, no views, and numbers out of range, naming all of them.
    """
    reference_c2w, target_c2w = np.asarray(reference_c2w), np.asarray(target_c2w)
    chunk = DEFAULT_CHUNK if chunk is None else chunk
    num_refs, num_targets = len(reference_c2w), len(target_c2w)
    _check_settings(
        name,
        num_refs,
        num_targets,
        chunk,
        max_conditioning=max_conditioning,
        num_anchors=num_anchors,
        window=window,
    )
    if name == "auto":
        name = "joint" if num_targets <= chunk else "anchors"
    if name == "joint":
        return Plan(name, (Pass(tuple(range(num_refs)), (), tuple(range(num_targets))),))
    distances = view_distances(np.concatenate([reference_c2w, target_c2w]))
    budget = conditioning_budget(num_refs, max_conditioning)

    def conditioned(targets: Sequence[int], drawn: Sequence[int]) -> Pass:
        """The pass that generates `targets`, conditioned within the budget."""
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
    return max_conditioning or num_references + _BESIDE_REFERENCES


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
    """Raises UserError, with all problems, unless the plan generates each of M targets once.

    Passes must have targets and conditioning views, indices in range, and generated views from
    earlier passes only.
    """
    problems = []
    done: list[int] = []
    for i, one in enumerate(plan.passes):
        for what, indices, known in (
            ("references", one.references, range(num_references)),
            ("targets", one.targets, range(num_targets)),
            ("generated views", one.drawn, done),
        ):
            if unknown := sorted(set(indices) - set(known)):
                problems.append(f"Pass {i} names {what} {unknown}, which are not there.")
        if not one.targets:
            problems.append(f"Pass {i} generates nothing.")
        if not one.num_conditioning:
            problems.append(f"Pass {i} has no view to start from.")
        done += one.targets
    if missing := sorted(set(range(num_targets)) - set(done)):
        problems.append(f"No pass generates the targets {missing}.")
    if twice := sorted({i for i in done if done.count(i) > 1}):
        problems.append(f"The targets {twice} are generated more than once.")
    if problems:
        raise UserError(
            f"The view plan {plan.name!r} does not fit {num_references} references and "
            f"{num_targets} targets: {listed(problems)} Make it with plans.make_plan."
        )


def conditioning(
    one: Pass,
    images: np.ndarray,
    reference_c2w: np.ndarray,
    views: Mapping[int, np.ndarray],
    target_c2w: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """What a pass starts from: (pictures [n, H, H, 3] in [0, 1], their c2w [n, 4, 4]).

    images: [N, H, H, 3], the references. views: those of earlier passes by the index of their
    target, [R, R, 3]; where R is not H they are resized (bicubic).
    """
    references, generated = list(one.references), list(one.drawn)
    c2w = np.concatenate([reference_c2w[references], target_c2w[generated]])
    if not generated:
        return images[references], c2w
    before = _resized(np.stack([views[i] for i in generated]), images.shape[1])
    return np.concatenate([images[references], before]), c2w


def extra_cameras(reference_c2w: np.ndarray, target_c2w: np.ndarray, count: int) -> np.ndarray:
    """`count` cameras near the targets, to be generated with them and dropped.

    Quality grows with the number of views generated together up to about 15 (EscherNet, arXiv
    2402.03908, figure 8). The cameras are the targets themselves in turn, moved by 10 degrees to
    one side, by 10 to the other, by 20, ... about the vertical (z) through the point that all
    cameras, references too, look at most nearly. Where all look one way there is no such point,
    and the targets are repeated where they are.
    reference_c2w: [N, 4, 4]; target_c2w: [M, 4, 4]. Returns [count, 4, 4] float32.
    """
    seen = np.concatenate([reference_c2w, target_c2w]).astype(np.float64)
    axes, centres = seen[:, :3, 2], seen[:, :3, 3]
    projectors = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    extra = target_c2w[np.arange(count) % len(target_c2w)].astype(np.float64)
    if np.linalg.eigvalsh(projectors.mean(0))[0] < _MIN_SPREAD_OF_AXES:
        return extra.astype(np.float32)
    focus = np.linalg.solve(projectors.sum(0), (projectors @ centres[..., None]).sum(0))[:, 0]
    rounds = np.arange(count) // len(target_c2w)  # 0, 1, 2, ...: +10, -10, +20, ... degrees
    angles = np.radians(10.0) * (rounds // 2 + 1) * np.where(rounds % 2, -1, 1)
    turns = np.tile(np.eye(3), (count, 1, 1))
    turns[:, 0, 0] = turns[:, 1, 1] = np.cos(angles)
    turns[:, 1, 0], turns[:, 0, 1] = np.sin(angles), -np.sin(angles)
    extra[:, :3, 3] -= focus
    extra[:, :3] = turns @ extra[:, :3]
    extra[:, :3, 3] += focus
    return extra.astype(np.float32)


def _check_settings(
    name: str, num_references: int, num_targets: int, chunk: int, **counts: int | None
) -> None:
    """counts: max_conditioning, num_anchors and window."""
    problems = []
    if name not in NAMES:
        problems.append(f"The view plan must be one of {', '.join(NAMES)}, got {name!r}.")
    if not num_references or not num_targets:
        problems.append(
            "A view plan must have a reference and a target at least, got "
            f"{num_references} and {num_targets}."
        )
    for setting, value in {"chunk": chunk, **counts}.items():
        if value is not None and value < 1:
            problems.append(f"{setting} must be at least 1, got {value}.")
    anchors = counts["num_anchors"]
    if anchors is not None and anchors > max(chunk, 1):  # they are generated in one pass
        problems.append(f"num_anchors must be at most chunk = {chunk}, got {anchors}.")
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
