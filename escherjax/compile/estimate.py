"""From a compiled program to figures: memory, arithmetic, traffic, estimated time, warnings."""

from __future__ import annotations

import collections
import math
from typing import Any

import jax

from escherjax.compile.collectives import Collective, find_collectives, find_kernels
from escherjax.compile.programs import Program
from escherjax.devices.chips import Chip

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
    }
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
    """Warnings of tensors gathered more often than forward and backward pass need.

    A parameter is gathered once forward and once backward; with `remat` also once when the forward
    pass is repeated, which is counted here as part of the backward pass. Anything that is not as
    large as a parameter is an activation, which a data-parallel step has no need to gather. The
    compiler names the operation of most gathers; which parameter that means, its module and the
    shape tell. Where they do not, one operation's gathers may be of several tensors.
    """
    leaves = _named_leaves(arguments)
    sizes = {math.prod(shape) for shape in leaves.values()}
    places: dict[tuple[str | None, str, str], list[str]] = collections.defaultdict(list)
    warnings = []
    for one in found:
        if one.kind != "all-gather":
            continue
        dims = tuple(int(n) for n in one.shape.split("[")[1].rstrip("]").split(",") if n)
        if math.prod(dims) not in sizes and one.num_bytes >= _LARGE:
            warnings.append(
                f"an array {one.shape}, no parameter, is gathered {_operation(one.source)}."
            )
        parameter = _parameter(one.source, dims, leaves)
        places[parameter, "" if parameter else _plain(one.source), one.shape].append(one.source)
    for (parameter, plain, shape), sources in places.items():
        if len(sources) > 3 and parameter:
            warnings.append(f"{parameter}: {shape} is gathered at {len(sources)} places.")
        elif len(sources) > 3 and plain:
            warnings.append(
                f"arrays {shape} are gathered at {len(sources)} places {_operation(sources[0])}; "
                "the compiler does not say of which tensors."
            )
    return warnings


def _named_leaves(arguments: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by path, without the average and the optimizer's moments, which mirror parameters."""
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(arguments)
    }
    return {
        name: shape for name, shape in names.items() if not name.startswith(("ema/", "opt_state/"))
    }


def _parameter(
    source: str, dims: tuple[int, ...], leaves: dict[str, tuple[int, ...]]
) -> str | None:
    """The one parameter of this shape, axes in any order, whose module `source` names best."""
    within = f"/{_plain(source)}/"
    found: dict[int, list[str]] = collections.defaultdict(list)
    for name, shape in leaves.items():
        if sorted(n for n in shape if n > 1) != sorted(n for n in dims if n > 1):
            continue
        module = name.split("/")[:-1]
        common = [n for n in range(1, len(module) + 1) if f"/{'/'.join(module[-n:])}/" in within]
        if common:
            found[max(common)].append(name)
    names = found[max(found)] if found else []
    return names[0] if len(names) == 1 else None


def _operation(source: str) -> str:
    scope, _, operation = source.rpartition("/")
    if not operation:
        return "for an operation that the compiler does not name"
    return f"for the operation {operation}" + (f" in {scope}" if scope else "")


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
