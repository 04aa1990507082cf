"""From a compiled program to figures: memory, arithmetic, traffic, estimated time, warnings."""

from __future__ import annotations

import collections
import math
from typing import Any

import jax

from escherjax.aot.chips import Chip
from escherjax.aot.collectives import Collective, find_collectives, find_kernels
from escherjax.aot.programs import Program

# Matrix products inside the splash kernels, and the name's beginning that tells which one it is.
_KERNEL_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}
_LANES = 128  # head widths are padded to a multiple of this inside the matrix unit
_LARGE = 2**20  # bytes a chip from which a tensor that is not split is worth a warning


def analyze(program: Program, compiled: Any, chip: Chip, num_chips: int) -> dict[str, Any]:
    """Everything the report shows, as plain JSON types; memory, FLOPs and bytes are per chip."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    hlo = compiled.as_text()
    found = find_collectives(hlo, num_chips)
    kernel_flops = attention_kernel_flops(hlo)
    xla_flops = max(float(cost.get("flops", 0.0)), 0.0)
    hbm_bytes = max(float(cost.get("bytes accessed", 0.0)), 0.0)
    sent = sum(one.sent_bytes for one in found)
    result: dict[str, Any] = {
        "memory": _memory(memory, chip),
        "flops": {
            "model": program.model_flops / num_chips,
            "xla": xla_flops,
            "attention_kernels": kernel_flops,
        },
        "bytes": {"hbm": hbm_bytes, "ici": sent},
        "collectives": summarize(found),
        "largest_collectives": [
            {"kind": one.kind, "shape": one.shape, "bytes": one.num_bytes, "calls": one.calls,
             "chips": one.group, "source": one.source}
            for one in sorted(found, key=lambda one: -one.num_bytes * one.calls)[:8]
        ],
    }  # fmt: skip
    result["loop_steps"] = program.loop_steps
    result["time"] = None  # the compiler counts the body of a loop once, and does not say how much
    if program.loop_steps == 1:
        result["time"] = roofline(
            program.model_flops / num_chips, xla_flops + kernel_flops, hbm_bytes, sent, chip
        )
    result["warnings"] = [
        *_memory_warnings(result["memory"]),
        *replicated(program.arguments),
        *gathered_twice(found, program.arguments),
    ]
    return result


def roofline(
    model_flops: float, done_flops: float, hbm_bytes: float, ici_bytes: float, chip: Chip
) -> dict[str, float]:
    """Seconds of one call by each limit, and the model FLOP utilisation (MFU) that they allow.

    All arguments are per chip. "overlapped" is the longest of the three limits, which no program
    beats; "serial" is their sum. The truth lies between, or above where an operation reaches no
    peak.
    """
    compute = done_flops / chip.peak_flops
    memory = hbm_bytes / chip.hbm_bandwidth
    network = ici_bytes / chip.ici_bandwidth
    overlapped, serial = max(compute, memory, network), compute + memory + network
    ideal = model_flops / chip.peak_flops
    return {
        "compute": compute,
        "hbm": memory,
        "ici": network,
        "overlapped": overlapped,
        "serial": serial,
        "mfu_overlapped": ideal / overlapped if overlapped else 0.0,
        "mfu_serial": ideal / serial if serial else 0.0,
    }


def attention_kernel_flops(hlo: str) -> float:
    """FLOPs that the splash kernels do, which XLA does not see; head widths as they are padded."""
    total = 0.0
    for name, shapes, calls in find_kernels(hlo):
        products = next((n for key, n in _KERNEL_PRODUCTS.items() if name.startswith(key)), 0)
        arrays = [shape for shape in shapes if len(shape) == 4]  # q, k, v: [B, heads, L, head_dim]
        if not products or len(arrays) < 2:
            continue
        batch, heads, num_queries, head_dim = arrays[0]
        padded = math.ceil(head_dim / _LANES) * _LANES
        total += calls * products * 2 * batch * heads * num_queries * arrays[1][2] * padded
    return total


def summarize(found: list[Collective]) -> list[dict[str, Any]]:
    """One row for each kind of collective: how many, how often they run, bytes, bytes sent."""
    rows = []
    for kind in sorted({one.kind for one in found}):
        ones = [one for one in found if one.kind == kind]
        rows.append(
            {
                "kind": kind,
                "count": len(ones),
                "calls": sum(one.calls for one in ones),
                "bytes": sum(one.num_bytes * one.calls for one in ones),
                "sent_bytes": sum(one.sent_bytes for one in ones),
            }
        )
    return rows


def replicated(arguments: Any) -> list[str]:
    """Warnings that name the large tensors which every chip along `fsdp` holds whole.

    Tensors of one shape are named together.
    """
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        spec = {axis for entry in leaf.sharding.spec for axis in _axes(entry)}
        fsdp = leaf.sharding.mesh.shape["fsdp"]
        local = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if fsdp > 1 and "fsdp" not in spec and local >= _LARGE:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            groups[f"{leaf.dtype.name}{list(leaf.shape)}"].append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {shape} is held "
        "whole by every chip, since fsdp divides none of its dimensions; a smaller fsdp (and a "
        "larger data) would split it."
        for shape, names in groups.items()
    ]


def gathered_twice(found: list[Collective], arguments: Any) -> list[str]:
    """Warnings that name tensors gathered more often than forward and backward pass need.

    A parameter is gathered once forward and once backward; with `remat` also once when the forward
    pass is repeated, which is counted here as part of the backward pass. Anything that is not as
    large as a parameter is an activation, which a data-parallel step has no need to gather. The
    compiler names the source of most gathers, not of all; those without are left out.
    """
    sizes = {math.prod(leaf.shape) for leaf in jax.tree.leaves(arguments)}
    times: dict[tuple[str, str], int] = collections.Counter()
    warnings = []
    for one in found:
        if one.kind != "all-gather":
            continue
        elements = math.prod(int(n) for n in one.shape.split("[")[1].rstrip("]").split(",") if n)
        if elements not in sizes and one.num_bytes >= _LARGE:
            source = one.source or "unnamed by the compiler"
            warnings.append(f"{source}: {one.shape}, no parameter, is gathered.")
        times[_plain(one.source), one.shape] += 1
    return warnings + [
        f"{source}: {shape} is gathered at {count} places."
        for (source, shape), count in sorted(times.items())
        if count > 3 and source
    ]


def _plain(source: str) -> str:
    """A source without what tells forward from backward: the module's path alone."""
    parts = [part for part in source.split("/") if "(" not in part]
    return "/".join(p for p in parts if p not in ("checkpoint", "rematted_computation"))


def _axes(entry: Any) -> tuple[str, ...]:
    return entry if isinstance(entry, tuple) else (entry,) if entry else ()


def _memory(memory: Any, chip: Chip) -> dict[str, float]:
    arguments, output = memory.argument_size_in_bytes, memory.output_size_in_bytes
    alias, temp = memory.alias_size_in_bytes, memory.temp_size_in_bytes
    total = arguments + output - alias + temp + memory.generated_code_size_in_bytes
    return {
        "arguments": arguments,
        "output": output,
        "aliased": alias,
        "temp": temp,
        "code": memory.generated_code_size_in_bytes,
        "peak": getattr(memory, "peak_memory_in_bytes", 0),
        "total": total,
        "hbm": chip.hbm_bytes,
        "share": total / chip.hbm_bytes,
    }


def _memory_warnings(memory: dict[str, float]) -> list[str]:
    if memory["total"] <= memory["hbm"]:
        return []
    return [
        f"needs {memory['total'] / 2**30:.1f} GiB of the chip's {memory['hbm'] / 2**30:.0f}: set "
        "config.remat=True, raise config.accumulation_steps, or take more chips."
    ]
