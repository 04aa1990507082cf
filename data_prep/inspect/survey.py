"""Statistics and faults of a data set of scenes, gathered record by record.

`examine` looks at one record; `Survey` sums up what it found. Memory grows with the number of views
by a few floats each, never with the pictures.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

import numpy as np

from escherjax import cameras
from escherjax.data import images
from escherjax.data.shards import Fault, Scene, ShardSource, scene_faults
from escherjax.errors import UserError

HISTOGRAM_BINS = 10
AIM_TOLERANCE_DEG = 5.0
# Faults of scenes whose cameras can be plotted all the same, so that the fault can be seen.
SHOWABLE_FAULTS = ("pose mirrored", "pose not rigid", "duplicate id")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One record, seen: what is wrong with it, what is odd about it, and its numbers.

    faults make the record unusable; warnings name conventions that look broken.
    bytes: of the encoded pictures. radius, fov_deg: [V], distance of the cameras from the origin
    and horizontal field of view; aimed, sees_origin, upright: [V] bool. The arrays are empty for a
    record with faults.
    """

    index: int
    scene_id: str | None
    faults: list[Fault]
    warnings: list[str] = dataclasses.field(default_factory=list)
    source: str = ""
    size: tuple[int, int] = (0, 0)  # width, height
    bytes: int = 0
    radius: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    fov_deg: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    aimed: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    sees_origin: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    upright: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))


def can_be_shown(finding: Finding) -> bool:
    """Whether pictures and poses of the record are sound enough for a plot."""
    return all(fault.kind in SHOWABLE_FAULTS for fault in finding.faults)


def examine(source: ShardSource, index: int, decode: bool = True) -> Finding:
    """Reads and checks one record; what cannot be read becomes a fault, never an exception.

    decode: decode every picture whole; otherwise only their headers are read.
    """
    try:
        scene = source.read_unchecked(index)
    except UserError as error:
        return Finding(index, None, [Fault("unreadable record", str(error))])
    faults = scene_faults(scene) + list(_picture_faults(scene, decode))
    if faults:
        return Finding(index, scene.scene_id, faults)
    # float64: the square of a sane float32 can be too large for one
    position, forward = (scene.c2w[:, :3, axis].astype(np.float64) for axis in (3, 2))
    radius = np.linalg.norm(position, axis=-1)
    cosine = -(position * forward).sum(-1) / np.maximum(radius, 1e-9)
    return Finding(
        index,
        scene.scene_id,
        [],
        warnings_of(scene),
        scene.source,
        (scene.width, scene.height),
        sum(map(len, scene.images)),
        radius,
        fov_x_deg(scene.K, scene.width),
        cosine > np.cos(np.radians(AIM_TOLERANCE_DEG)),
        _in_picture(scene, np.zeros(3)),
        -scene.c2w[:, 2, 1] > 0,
    )


def fov_x_deg(K: np.ndarray, width: int) -> np.ndarray:
    """Horizontal fields of view, [V] degrees, of K [V, 3, 3] for pictures `width` pixels wide."""
    K = K.astype(np.float64)
    left, right = K[:, 0, 2] / K[:, 0, 0], (width - K[:, 0, 2]) / K[:, 0, 0]
    return np.degrees(np.arctan(left) + np.arctan(right))


def warnings_of(scene: Scene) -> list[str]:
    """What looks like a broken convention in a scene whose fields are sound, one line each.

    Rules of thumb, each meant for a mistake that valid matrices can hide: axes not converted,
    another world up, world-to-camera matrices, intrinsics of another picture size.
    """
    warnings = []
    center = scene.K[:, :2, 2].astype(np.float64) / [scene.width, scene.height]
    outside = int(((center < 0) | (center > 1)).any(-1).sum())
    if outside:
        warnings.append(
            f"principal point outside the picture in {outside} of {scene.num_views} views: are the "
            "intrinsics for pictures of another size?"
        )
    up = -scene.c2w[:, :3, 1].astype(np.float64).mean(0)
    length = np.linalg.norm(up)
    if length > 0.3 and up[2] < 0.5 * length:
        axis = int(np.argmax(np.abs(up)))
        name = f"{'-' if up[axis] < 0 else '+'}{'xyz'[axis]}"
        warnings.append(
            f"the cameras' mean up direction is {np.round(up / length, 2).tolist()}, nearest to "
            f"world {name}; it must be world +z."
        )
    if scene.num_views < 3:
        return warnings
    position = scene.c2w[:, :3, 3].astype(np.float64)
    forward = scene.c2w[:, :3, 2].astype(np.float64)
    spread = np.linalg.svd(position - position.mean(0), compute_uv=False)
    # cosines of the angles from the first camera's rotation: (trace - 1) / 2
    turned = ((scene.c2w[0, :3, :3] * scene.c2w[:, :3, :3]).sum((1, 2)) - 1) / 2
    on_point = spread[0] <= 1e-3 * max(np.abs(position).max(), 1e-9)
    if on_point or (spread[1] <= 1e-3 * spread[0] and turned.min() < 0):
        warnings.append(
            f"all cameras stand on one {'point' if on_point else 'line'}, turned differently: are "
            "these world-to-camera matrices?"
        )
        return warnings
    focus = _focus(position, forward)
    if focus is None:
        return warnings
    behind = int((((focus - position) * forward).sum(-1) < 0).sum())
    seen = int(_in_picture(scene, focus).sum())
    if behind > scene.num_views / 2:
        warnings.append(
            f"{behind} of {scene.num_views} cameras look away from the point where their optical "
            "axes meet: OpenGL axes (looking along -z) that were not converted to OpenCV?"
        )
    elif not outside and seen < scene.num_views / 2:
        warnings.append(
            f"only {seen} of {scene.num_views} cameras see the point nearest to all optical axes: "
            "right for walks through rooms, else rotations may be transposed."
        )
    return warnings


def _focus(position: np.ndarray, forward: np.ndarray) -> np.ndarray | None:
    """The point [3] nearest to all optical axes; None where they are nearly parallel.

    In a camera's walk forwards they are, within some 15 degrees, and meet anywhere.
    """
    projectors = np.eye(3) - forward[:, :, None] * forward[:, None, :]
    total = projectors.sum(0)
    if np.linalg.eigvalsh(total)[0] < 0.1 * len(forward):
        return None
    return np.linalg.solve(total, (projectors @ position[..., None]).sum(0)[:, 0])


def _in_picture(scene: Scene, point: np.ndarray) -> np.ndarray:
    """[V] bool: a world point [3] lies in front of the camera and inside its picture."""
    points = np.broadcast_to(point, (scene.num_views, 1, 3))
    c2w, K = scene.c2w.astype(np.float64), scene.K.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # a point on the camera's plane
        pixels, depth = cameras.project(points, c2w, K)
        inside = (pixels >= 0) & (pixels <= [scene.width, scene.height])
    return inside.all(-1)[:, 0] & (depth[:, 0] > 0)


def _picture_faults(scene: Scene, decode: bool) -> Iterator[Fault]:
    for view, data in enumerate(scene.images):
        try:
            name = f"picture of view {view}"
            if decode:
                height, width = images.decode_image(data, name).shape[:2]
            else:
                height, width = images.picture_size(data, name)
        except UserError as error:
            yield Fault("unreadable picture", str(error), view)
        else:
            if (height, width) != (scene.height, scene.width):
                text = (
                    f"picture of view {view} is {width} x {height} pixels; the record says "
                    f"{scene.width} x {scene.height}."
                )
                yield Fault("wrong picture size", text, view)


class Survey:
    """The sum of findings over a data set, in order of the records."""

    def __init__(self) -> None:
        self.records = self.scenes = self.bytes = 0
        self.faulty: list[Finding] = []
        self.warned: list[Finding] = []
        self.fault_counts: collections.Counter[str] = collections.Counter()
        self.sizes: collections.Counter[tuple[int, int]] = collections.Counter()
        self.sources: collections.Counter[str] = collections.Counter()
        self._first_index: dict[str, int] = {}
        self._per_view: dict[str, list[np.ndarray]] = collections.defaultdict(list)

    def add(self, finding: Finding) -> None:
        """Counts one record; an id that came before is a fault of the later record."""
        self.records += 1
        if finding.scene_id is not None:
            first = self._first_index.setdefault(finding.scene_id, finding.index)
            if first != finding.index:
                fault = Fault("duplicate id", f"has the id of record {first}; ids must differ.")
                finding = dataclasses.replace(finding, faults=[*finding.faults, fault])
        if finding.faults:
            self.faulty.append(finding)
            self.fault_counts.update(fault.kind for fault in finding.faults)
            return
        self.scenes += 1
        self.bytes += finding.bytes
        self.sizes[finding.size] += 1
        self.sources[finding.source] += 1
        for name in ("radius", "fov_deg", "aimed", "sees_origin", "upright"):
            self._per_view[name].append(getattr(finding, name))
        if finding.warnings:
            self.warned.append(finding)

    def per_view(self, name: str) -> np.ndarray:
        """A field of Finding, of every view of all usable scenes."""
        parts = self._per_view[name]
        return np.concatenate(parts) if parts else np.zeros(0)

    def table(self) -> list[tuple[str, str]]:
        """The statistics as (name, value) rows."""
        counts = [len(part) for part in self._per_view["radius"]]
        rows = [("records", f"{self.records}"), ("usable scenes", f"{self.scenes}")]
        rows.append(("bad records", f"{len(self.faulty)}"))
        rows += [(f"  {kind}", f"{number}") for kind, number in sorted(self.fault_counts.items())]
        rows.append(("scenes with warnings", f"{len(self.warned)}"))
        if not self.scenes:
            return rows
        views = sum(counts)
        rows += [
            ("views", f"{views}"),
            (
                "views per scene",
                f"{min(counts)} / {np.median(counts):g} / {max(counts)} (min / median / max)",
            ),
            ("picture sizes", _most_common({f"{w} x {h}": n for (w, h), n in self.sizes.items()})),
            ("sources", _most_common(self.sources)),
            ("picture bytes", f"{self.bytes} ({self.bytes / views:.0f} a view)"),
        ]
        shares = (
            (f"optical axis within {AIM_TOLERANCE_DEG:g} deg of the origin", "aimed"),
            ("origin inside the picture", "sees_origin"),
            ("upright (camera up towards +z)", "upright"),
        )
        rows += [
            (
                name,
                f"{np.count_nonzero(self.per_view(field))} of {views} views "
                f"({self.per_view(field).mean():.1%})",
            )
            for name, field in shares
        ]
        return rows

    def histograms(self) -> list[tuple[str, list[tuple[float, float, int]]]]:
        """(title, (from, to, views) bins) of radius and horizontal field of view."""
        fields = (("camera distance from the origin", "radius"), ("field of view, deg", "fov_deg"))
        return [(title, histogram(self.per_view(name))) for title, name in fields]


def histogram(values: np.ndarray) -> list[tuple[float, float, int]]:
    """(from, to, count) of equal bins over the range of `values` [N]; one bin if all are equal."""
    if not len(values):
        return []
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-4 * max(abs(high), 1e-9):  # float32 noise about one value
        return [(low, high, len(values))]
    counts, edges = np.histogram(values, HISTOGRAM_BINS)
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True))


def _most_common(counts: dict[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", and {len(ranked) - 6} more" if len(ranked) > 6 else ""
    return ", ".join(f"{name} ({count} scenes)" for name, count in ranked[:6]) + more
