"""Collective operations in compiled HLO text: what is sent, how large, how often."""

from __future__ import annotations

import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{\s*$")
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%[\w.\-]+ = (.+?) ({'|'.join(KINDS)})(-start)?\((.*)$")
_SHAPE = re.compile(r"\b(\w+)\[([\d,]*)\]")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(
    r"(?:calls|to_apply|body|condition)=%([\w.\-]+)|(?:branch_computations|"
    r"called_computations)=\{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    kind: of KINDS; shape: of its largest array, such as "bf16[1280,320]"; num_bytes: of all its
    arrays before they are cut up or after they are put together; group: how many chips take part;
    calls: how often it runs in one call of the program; source: the JAX operation it is for, by the
    compiler's metadata; arrays: how many are sent together, of which `source` is for one.
    """

    kind: str
    shape: str
    num_bytes: int
    group: int
    calls: int
    source: str
    arrays: int = 1

    @property
    def sent_bytes(self) -> float:
        """What each chip sends in one call of the program, by the ring algorithm."""
        others = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * others, "collective-permute": 1.0}.get(self.kind, others)
        return factor * self.num_bytes * self.calls


def find_collectives(hlo: str, num_devices: int) -> list[Collective]:
    """Every collective of compiled HLO text, each channel once.

    A collective appears once for every fusion that it was cut into, all with one channel_id. An
    all-reduce that is fused with taking this chip's slice counts as the reduce-scatter that it is.
    """
    computations = _computations(hlo)
    calls = _calls(computations, hlo)
    callers = _callers(hlo)
    found: dict[str, Collective] = {}
    for name, lines in computations.items():
        for line in lines:
            match = _COLLECTIVE.match(line)
            if not match:
                continue
            shapes = _sizes(match[1])
            if match[3]:  # the result of a start is (operands, results, contexts)
                shapes = _start_results(match[2], shapes)
            group = _group_size(line, num_devices)
            kind = match[2]
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            elif kind == "reduce-scatter":
                shapes = [(text, size * group) for text, size in shapes]
            if not shapes or group == 1:
                continue
            channel = re.search(r"channel_id=(\d+)", line)
            source = _OP_NAME.search(line)
            one = Collective(
                kind=kind,
                shape=max(shapes, key=lambda shape: shape[1])[0],
                num_bytes=sum(size for _, size in shapes),
                group=group,
                calls=calls.get(name, 1),
                source=source[1] if source else callers.get(name, ""),
                arrays=len(shapes),
            )
            key = channel[1] if channel else f"{name} {line}"
            if key not in found or one.num_bytes > found[key].num_bytes:
                found[key] = one
    return list(found.values())


def find_kernels(hlo: str) -> list[tuple[str, list[tuple[int, ...]], int]]:
    """(name, shapes of its operands, calls) of every Pallas kernel in compiled HLO text."""
    computations = _computations(hlo)
    calls = _calls(computations, hlo)
    kernels = []
    for name, lines in computations.items():
        for line in lines:
            if 'custom_call_target="tpu_custom_call"' not in line:
                continue
            kernel = re.match(r"\s*(?:ROOT )?%([A-Za-z_]+)", line)
            operands = re.search(r"operand_layout_constraints=\{(.*?)\}, frontend", line)
            shapes = [
                tuple(int(n) for n in dims.split(",") if n)
                for _, dims in _SHAPE.findall(operands[1] if operands else "")
            ]
            kernels.append((kernel[1].rstrip("_") if kernel else "", shapes, calls.get(name, 1)))
    return kernels


def _computations(hlo: str) -> dict[str, list[str]]:
    """The lines of each computation; a Pallas kernel's line is followed by lines of metadata."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            lines = computations.setdefault(header[1], [])
        else:
            lines.append(line)
    return computations


def _callers(hlo: str) -> dict[str, str]:
    """The JAX operation of the fusion that each fused computation is the body of."""
    fusions = re.findall(r"calls=%([\w.\-]+).*?op_name=\"([^\"]*)\"", hlo)
    return dict(fusions)


def _calls(computations: dict[str, list[str]], hlo: str) -> dict[str, int]:
    """How often each computation runs, from the entry down; loops multiply."""
    entry = re.search(r"^ENTRY %([\w.\-]+)", hlo, re.MULTILINE)
    counts: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        if name not in computations:
            return
        counts[name] = counts.get(name, 0) + times
        for line in computations[name]:
            called = [a or b for a, b in _CALLS.findall(line)]
            if not called:
                continue
            inner = times * (_trip_count(line, computations) if " while(" in line else 1)
            for names in called:
                for child in re.findall(r"[\w.\-]+", names):
                    visit(child, inner)

    if entry:
        visit(entry[1], 1)
    return counts


def _trip_count(line: str, computations: dict[str, list[str]]) -> int:
    """Of a while loop: what the compiler knows, else the bound its condition compares with."""
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", line)
    lines = computations.get(condition[1], []) if condition else []
    bounds = re.findall(r"[su]32\[\][^=\n]*constant\((\d+)\)", "\n".join(lines))
    return max((int(n) for n in bounds), default=1)


def _sizes(text: str) -> list[tuple[str, int]]:
    """("bf16[1280,320]", bytes) of the shapes in a result's type."""
    return [
        (f"{dtype}[{dims}]", _BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n))
        for dtype, dims in _SHAPE.findall(text)
        if dtype in _BYTES
    ]


def _start_results(kind: str, shapes: list[tuple[str, int]]) -> list[tuple[str, int]]:
    if kind == "all-reduce":
        return shapes
    arrays = [shape for shape in shapes if not shape[0].startswith("u32[]")]
    half = len(arrays) // 2
    return arrays[half:]


def _group_size(line: str, num_devices: int) -> int:
    """Chips in one replica group, of its three notations."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        size = 1
        for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2]):
            size *= int(part or sizes.get(axis, 1))
        return size
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return len(listed[1].split(",")) if listed else num_devices
