"""Finds collective operations and attention kernels in the text of a compiled program (HLO)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{\s*$")
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%[\w.\-]+ = (.+?) ({'|'.join(KINDS)})(-start)?\((.*)$")
_SHAPE = re.compile(r"\b(pred|bf16|[fsu]\d+\w*)\[([\d,]*)\]")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(
    r"(?:calls|to_apply|body|condition)=%([\w.\-]+)|(?:branch_computations|"
    r"called_computations)=\{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program."""

    kind: str  # one of KINDS
    shape: str  # of its largest array, such as "bf16[1280,320]"
    num_bytes: int  # of all its arrays, before they are split or after they are joined
    group: int  # number of chips that take part
    calls: int  # how often it runs in one call of the program
    source: str  # the JAX operation it serves, from the compiler's metadata
    arrays: int = 1  # how many are sent together; `source` belongs to one of them

    @property
    def dims(self) -> tuple[int, ...]:
        """Sizes of its largest array."""
        return _dims(self.shape.split("[")[1].rstrip("]"))

    @property
    def sent_bytes(self) -> float:
        """Bytes that each chip sends in one call of the program, by the ring algorithm."""
        others = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * others, "collective-permute": 1.0}.get(self.kind, others)
        return factor * self.num_bytes * self.calls


def find_collectives(hlo: str, num_devices: int) -> list[Collective]:
    """Returns every collective of compiled HLO text, each channel once.

    A collective appears once for every fusion that it was split into, always with the same
    channel_id. An all-reduce fused with taking this chip's slice counts as a reduce-scatter.
    """
    fusions = dict(re.findall(r"calls=%([\w.\-]+).*?op_name=\"([^\"]*)\"", hlo))
    found: dict[str, Collective] = {}
    for computation, calls, line in _lines(hlo):
        match = _COLLECTIVE.match(line)
        if not match:
            continue
        shapes, kind, group = _sizes(match[1]), match[2], _group_size(line, num_devices)
        if match[3] and kind != "all-reduce":  # a start returns (operands, results, contexts)
            arrays = [shape for shape in shapes if not shape[0].startswith("u32[]")]
            shapes = arrays[len(arrays) // 2 :]
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        elif kind == "reduce-scatter":
            shapes = [(text, size * group) for text, size in shapes]
        if not shapes or group == 1:
            continue
        channel = re.search(r"channel_id=(\d+)", line)
        source = _OP_NAME.search(line)
        collective = Collective(
            kind=kind,
            shape=max(shapes, key=lambda shape: shape[1])[0],
            num_bytes=sum(size for _, size in shapes),
            group=group,
            calls=calls,
            source=source[1] if source else fusions.get(computation, ""),
            arrays=len(shapes),
        )
        key = channel[1] if channel else f"{computation} {line}"
        if key not in found or collective.num_bytes > found[key].num_bytes:
            found[key] = collective
    return list(found.values())


def find_kernels(hlo: str) -> list[tuple[str, list[tuple[int, ...]], int]]:
    """Returns (name, shapes of its operands, calls) of every Pallas kernel in compiled HLO text."""
    kernels = []
    for _, calls, line in _lines(hlo):
        if 'custom_call_target="tpu_custom_call"' in line:
            kernel = re.match(r"\s*(?:ROOT )?%([A-Za-z_]+)", line)
            operands = re.search(r"operand_layout_constraints=\{(.*?)\}, frontend", line)
            shapes = [_dims(dims) for _, dims in _SHAPE.findall(operands[1] if operands else "")]
            kernels.append((kernel[1].rstrip("_") if kernel else "", shapes, calls))
    return kernels


def _lines(hlo: str) -> Iterator[tuple[str, int, str]]:
    """Yields (computation, how often it runs, line) of the program; loops multiply."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():  # a Pallas kernel's line is followed by lines of metadata
        header = _COMPUTATION.match(line)
        if header:
            lines = computations.setdefault(header[1], [])
        else:
            lines.append(line)
    counts: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        counts[name] = counts.get(name, 0) + times
        for line in computations[name]:
            for names in (one or many for one, many in _CALLS.findall(line)):
                inner = times * (_trip_count(line, computations) if " while(" in line else 1)
                for child in re.findall(r"[\w.\-]+", names):
                    if child in computations:
                        visit(child, inner)

    entry = re.search(r"^ENTRY %([\w.\-]+)", hlo, re.MULTILINE)
    if entry:
        visit(entry[1], 1)
    for name, lines in computations.items():
        for line in lines:
            yield name, counts.get(name, 1), line


def _trip_count(line: str, computations: dict[str, list[str]]) -> int:
    """Trip count of a while loop: the compiler's, else the bound in the loop's condition."""
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", line)
    lines = computations.get(condition[1], []) if condition else []
    bounds = re.findall(r"[su]32\[\][^=\n]*constant\((\d+)\)", "\n".join(lines))
    return max((int(n) for n in bounds), default=1)


def _sizes(text: str) -> list[tuple[str, int]]:
    """("bf16[1280,320]", bytes) of each shape in a result's type."""
    return [
        (f"{dtype}[{dims}]", _item_bytes(dtype) * math.prod(_dims(dims)))
        for dtype, dims in _SHAPE.findall(text)
    ]


def _item_bytes(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)  # "pred" has none
    return -(-int(bits[0]) // 8) if bits else 1


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _group_size(line: str, num_devices: int) -> int:
    """Number of chips in one replica group, in any of HLO's three notations."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes.get(axis, 1)) for axis, part in axes)
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return len(_dims(listed[1])) if listed else num_devices
