"""Turns a compiled program into figures: memory, FLOPs, traffic, estimated time, warnings."""

from __future__ import annotations

import collections
import math
from typing import Any

import jax

from escherjax.compile.collectives import Collective, find_collectives, find_kernels
from escherjax.compile.programs import Program
from escherjax.devices.chips import Chip

# Matrix products inside each splash attention kernel, by the beginning of its name.
_KERNEL_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}
_LANES = 128  # head widths are padded to a multiple of this inside the matrix unit
_LARGE = 2**20  # bytes a chip from which a tensor that is not split is worth a warning
_MOST_GATHERS = 3  # of a parameter: forward, backward, and forward again with `remat`


def analyze(program: Program, compiled: Any, chip: Chip, num_chips: int) -> dict[str, Any]:
    """Returns everything the report shows, as JSON types; memory, FLOPs and bytes are per chip."""
    cost, hlo = compiled.cost_analysis(), compiled.as_text()
    found = find_collectives(hlo, num_chips)
    memory = _memory(compiled.memory_analysis(), chip)
    flops = {
        "model": program.model_flops / num_chips,
        "xla": max(float(cost.get("flops", 0.0)), 0.0),
        "attention_kernels": attention_kernel_flops(hlo),
    }
    num_bytes = {
        "hbm": max(float(cost.get("bytes accessed", 0.0)), 0.0),
        "ici": sum(one.sent_bytes for one in found),
    }
    time = None  # the compiler counts the body of a loop once, and does not say how much that is
    if program.loop_steps == 1:
        done = flops["xla"] + flops["attention_kernels"]
        time = roofline(flops["model"], done, num_bytes["hbm"], num_bytes["ici"], chip)
    return {
        "memory": memory,
        "flops": flops,
        "bytes": num_bytes,
        "collectives": summarize(found),
        "largest_collectives": [
            {
                "kind": one.kind,
                "shape": one.shape,
                "bytes": one.num_bytes,
                "calls": one.calls,
                "chips": one.group,
                "source": one.source,
                "arrays": one.arrays,
            }
            for one in sorted(found, key=lambda one: -one.num_bytes * one.calls)[:8]
        ],
        "loop_steps": program.loop_steps,
        "time": time,
        "warnings": [
            *_memory_warnings(memory),
            *replicated(program.arguments),
            *gathered_often(found, program.arguments),
        ],
    }


def roofline(
    model_flops: float, done_flops: float, hbm_bytes: float, ici_bytes: float, chip: Chip
) -> dict[str, float]:
    """Returns seconds of one call by each limit, and the MFU that they allow.

    All arguments are per chip. "overlapped" is the longest of the three limits, which no program
    beats; "serial" is their sum. The truth lies between them, or above where an operation does not
    reach its peak.
    """
    limits = {
        "compute": done_flops / chip.peak_flops,
        "hbm": hbm_bytes / chip.hbm_bandwidth,
        "ici": ici_bytes / chip.ici_bandwidth,
    }
    overlapped, serial = max(limits.values()), sum(limits.values())
    ideal = model_flops / chip.peak_flops
    return {
        **limits,
        "overlapped": overlapped,
        "serial": serial,
        "mfu_overlapped": ideal / overlapped if overlapped else 0.0,
        "mfu_serial": ideal / serial if serial else 0.0,
    }


def attention_kernel_flops(hlo: str) -> float:
    """Returns FLOPs of the splash kernels, which XLA does not count, with padded head widths."""
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
    """Returns one row for each kind of collective: how many, runs, bytes, bytes sent."""
    kinds = collections.defaultdict(list)
    for one in found:
        kinds[one.kind].append(one)
    return [
        {
            "kind": kind,
            "count": len(ones),
            "calls": sum(one.calls for one in ones),
            "bytes": sum(one.num_bytes * one.calls for one in ones),
            "sent_bytes": sum(one.sent_bytes for one in ones),
        }
        for kind, ones in sorted(kinds.items())
    ]


def replicated(arguments: Any) -> list[str]:
    """Returns warnings of large tensors that every chip along `fsdp` holds whole, by shape."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        split = {axis for entry in leaf.sharding.spec for axis in _axes(entry)}
        fsdp = leaf.sharding.mesh.shape["fsdp"]
        local = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if fsdp > 1 and "fsdp" not in split and local >= _LARGE:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            groups[f"{leaf.dtype.name}{list(leaf.shape)}"].append(name)
    return [
        f"{_first(names, 1)}: {shape} is held "
        "whole by every chip, since fsdp divides none of its dimensions; a smaller fsdp (and a "
        "larger data) would split it."
        for shape, names in groups.items()
    ]


def gathered_often(found: list[Collective], arguments: Any) -> list[str]:
    """Returns warnings of tensors gathered more often than forward and backward pass need.

    The compiler does not say which parameter a gather is for, so gathers are counted by shape
    (axes in any order) against the parameters of that shape. A large array as large as no parameter
    is an activation, which a data-parallel step has no need to gather.
    """
    names: dict[tuple[int, ...], list[str]] = collections.defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.startswith(("ema/", "opt_state/")):  # these mirror the parameters
            names[_unordered(leaf.shape)].append(name)
    sizes = {math.prod(dims) for dims in names}
    gathers: dict[tuple[int, ...], list[Collective]] = collections.defaultdict(list)
    warnings = []
    for one in found:
        if one.kind == "all-gather":
            gathers[_unordered(one.dims)].append(one)
            if math.prod(one.dims) not in sizes and one.num_bytes >= _LARGE:
                source = one.source or "an operation that the compiler does not name"
                warnings.append(f"an array {one.shape}, no parameter, is gathered for {source}.")
    for dims, ones in gathers.items():
        holders = names.get(dims, [])
        if len(ones) > _MOST_GATHERS * len(holders) > 0:
            sources = sorted({one.source for one in ones if one.source})
            warnings.append(
                f"{ones[0].shape} is gathered at {len(ones)} places, more than {_MOST_GATHERS} for "
                f"each of {_first(holders)}; by {_first(sources)}."
            )
    return warnings


def _first(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _unordered(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(n for n in dims if n > 1))


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
        f"the program needs {memory['total'] / 2**30:.1f} GiB, but a chip has "
        f"{memory['hbm'] / 2**30:.0f}: set config.remat=True, raise config.accumulation_steps, or "
        "use more chips."
    ]
