"""Every sharding decision: the mesh, and which axis of which array lies along it.

The batch is split over `data` and `fsdp`; target views also over `view`; attention heads and the
channels inside residual, feed-forward and ConvNeXt units over `model` (arXiv 1909.08053: the first
product of a pair is split by its outputs, the second by its inputs). Parameters, EMA and optimizer
state are split by `model` where the product is, and over `fsdp` along the largest dimension left
that divides. One device is the same program on a mesh of one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from escherjax.devices import hosts
from escherjax.devices.spread import Spread
from escherjax.errors import UserError

AXES = ("data", "fsdp", "model", "view")
BATCH_AXES = ("data", "fsdp")
# Smaller tensors are not split by fsdp: gathering costs more than it saves.
MIN_SHARDED_SIZE = 2**14

# The dimension of a kernel that `model` splits, by the end of its path.
MODEL_SPLITS = (
    (r"attn[12]/to_[qkv]/kernel", -1),
    (r"attn[12]/to_out_0/kernel", -2),
    # Values and gates are the halves of the outputs, so each device needs two pieces of them: kept
    # by inputs, and moved when the kernel is used.
    (r"ff/net_0/proj/kernel", -2),
    (r"ff/net_2/kernel", -2),
    (r"resnets_\d+/(conv1|time_emb_proj)/kernel", -1),
    (r"resnets_\d+/conv2/kernel", -2),
    (r"pwconv1/kernel", -1),
    (r"pwconv2/kernel", -2),
)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """The device mesh of axis sizes.

    Args:
      sizes: of every axis of AXES, one of which may be -1, the rest; "dcn_data", 1 by default, is
        how many TPU slices or hosts along `data` only a slow network joins.
      devices: None for all of this run, or those of a topology to compile for.

    Raises:
      UserError: listing every problem, if the product is not the number of devices, hosts have
        different numbers of them, or slow links are not where `sizes` says.
    """
    devices = jax.devices() if devices is None else list(devices)
    resolved = axis_sizes(sizes, len(devices))
    shape, dcn_data = tuple(resolved.values()), sizes.get("dcn_data", 1)
    if problems := link_problems(dcn_data, resolved["data"], devices):
        raise UserError("\n".join(problems))
    if dcn_data > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (shape[0] // dcn_data, *shape[1:]),
            (dcn_data, *(1,) * (len(AXES) - 1)),
            devices,
            process_is_granule=_num_slices(devices) == 1,
            allow_split_physical_axes=True,
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return _mesh(grid)


def view_mesh(num_devices: int, scene_devices: int = 1) -> Mesh:
    """A mesh of local devices that share the target views of a scene.

    scene_devices: how many times so many devices there are, each with scenes of its own.
    Raises UserError if this machine has fewer.
    """
    local = jax.local_devices()
    for work, number in (("target views", num_devices), ("scenes", scene_devices)):
        if not 1 <= number <= len(local):
            raise UserError(
                f"the devices to split the {work} over must be 1 to {len(local)}, as many as this "
                f"process has, got {number}."
            )
    total = num_devices * scene_devices
    if total > len(local):
        raise UserError(
            f"splitting the target views over {num_devices} devices and the scenes over "
            f"{scene_devices} takes {total} devices; this process has {len(local)}."
        )
    return _mesh(np.array(local[:total]).reshape(scene_devices, 1, 1, num_devices))


def single_device_mesh() -> Mesh:
    """A mesh of the first local device, for work that is not spread out."""
    return view_mesh(1)


def _mesh(grid: np.ndarray) -> Mesh:
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """The size of each axis, -1 replaced. Raises UserError if they cannot be those of a mesh."""
    resolved = {axis: int(sizes[axis]) for axis in AXES}
    free = [axis for axis, size in resolved.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"config.mesh has -1 for {' and '.join(free)}; at most one can be the rest")
    fixed = math.prod(size for size in resolved.values() if size != -1)
    if any(size == 0 or size < -1 for size in resolved.values()) or num_devices % fixed:
        needed = (
            f"the product of the others must divide {num_devices}"
            if free
            else f"its product must be {num_devices}, or one axis -1"
        )
        raise UserError(
            f"config.mesh = {resolved} does not divide {num_devices} devices; {needed}."
        )
    if free:
        resolved[free[0]] = num_devices // fixed
    elif fixed != num_devices:
        raise UserError(
            f"config.mesh = {resolved} uses {fixed} of {num_devices} devices; set one axis to -1."
        )
    return resolved


def _num_slices(devices: Sequence[Any]) -> int:
    """How many TPU slices there are; 1 where devices know of none."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def link_problems(dcn_data: int, data: int, devices: Sequence[Any]) -> list[str]:
    """What is wrong with how devices are spread over hosts and slices; [] if nothing is."""
    slices, num_hosts = _num_slices(devices), len({device.process_index for device in devices})
    problems = [f"{problem}." for problem in hosts.unequal_devices(devices)]
    if dcn_data < 1 or data % dcn_data:
        problems.append(
            f"config.mesh.dcn_data = {dcn_data} does not divide the {data} devices along "
            "config.mesh.data, of which it is a part; set config.mesh.data to a multiple."
        )
    if slices > 1 and dcn_data != slices:
        problems.append(
            f"config.mesh.dcn_data = {dcn_data}, but the devices are in {slices} slices; set "
            f"config.mesh.dcn_data={slices}."
        )
    elif slices == 1 and dcn_data not in (1, num_hosts):
        problems.append(
            f"config.mesh.dcn_data = {dcn_data}, but there is one host, and no slow link to it; "
            "set config.mesh.dcn_data=1."
            if num_hosts == 1
            else f"config.mesh.dcn_data = {dcn_data}, but there are {num_hosts} hosts; set "
            f"config.mesh.dcn_data={num_hosts}, or 1 where no link between them is slow."
        )
    return problems


def spread(mesh: Mesh, gather: str = "all") -> Spread | None:
    """How the network shares scenes over a mesh; None where there is one device.

    gather: "all" or "ring", see `Spread`.
    """
    return Spread(mesh, BATCH_AXES, "model", "view", gather) if mesh.size > 1 else None


def parameter_spec(path: str, shape: tuple[int, ...], fsdp: int, model: int) -> PartitionSpec:
    """The split of a tensor of training state.

    path: names joined by "/", of which the end matters. `model` takes the dimension of
    MODEL_SPLITS; `fsdp` the largest other one that it divides, of tensors that are not small.
    """
    axes: list[str | None] = [None] * len(shape)
    for pattern, axis in MODEL_SPLITS:
        if model > 1 and re.search(rf"(^|/){pattern}$", path) and shape[axis] % model == 0:
            axes[axis] = "model"
    if fsdp > 1 and math.prod(shape) >= MIN_SHARDED_SIZE:
        candidates = [
            (size, axis)
            for axis, size in enumerate(shape)
            if size % fsdp == 0 and axes[axis] is None
        ]
        if candidates:
            axes[max(candidates)[1]] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """A NamedSharding for every array of a pytree of parameters or training state."""
    fsdp, model = mesh.shape["fsdp"], mesh.shape["model"]
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, parameter_spec(_joined(path), leaf.shape, fsdp, model)
        ),
        abstract_state,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0, the scenes, split over the mesh's batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def target_sharding(mesh: Mesh) -> NamedSharding:
    """[B, M, ...]: scenes split over the batch axes, target views over the view axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES, "view"))


def host_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this host reads part `index` of the batch, cut in `count` parts.

    Hosts whose devices hold the same scenes, sharing their views or channels, have the same index.
    Raises UserError if a host's scenes are neither those of another nor all its own.
    """
    blocks = _blocks_by_host(mesh)
    parts = sorted(set(blocks.values()))
    if len(parts) * len(parts[0]) != math.prod(mesh.shape[axis] for axis in BATCH_AXES):
        raise UserError(
            f"config.mesh = {dict(mesh.shape)} leaves hosts with unequal parts of the batch over "
            f"{len(blocks)} hosts; choose data x fsdp or model x view as a multiple of the "
            f"{jax.local_device_count()} devices of a host."
        )
    return parts.index(blocks[jax.process_index()]), len(parts)


def _blocks_by_host(mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """For each host the numbers, ascending, of the blocks of scenes that its devices hold."""
    by_block = mesh.devices.reshape(math.prod(mesh.shape[axis] for axis in BATCH_AXES), -1)
    blocks: dict[int, set[int]] = {}
    for block, devices in enumerate(by_block):
        for device in devices:
            blocks.setdefault(device.process_index, set()).add(block)
    return {host: tuple(sorted(found)) for host, found in blocks.items()}


def put(mesh: Mesh, arrays: Any, shardings: Any) -> Any:
    """This host's scenes as global arrays [B, ...] split over the mesh.

    Args:
      arrays: a pytree of numpy arrays [b, ...], the part of the batch that `host_share` names.
      shardings: the same tree of `batch_sharding` or `target_sharding`.
    """
    num_blocks = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    mine = _blocks_by_host(mesh)[jax.process_index()]

    def put_one(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        rows = len(array) // len(mine)

        def local(index: Any) -> np.ndarray:
            first = mine.index((index[0].start or 0) // rows) * rows
            return array[(slice(first, first + rows), *index[1:])]

        shape = (rows * num_blocks, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, local)

    return jax.tree.map(put_one, arrays, shardings)


def local_rows(array: jax.Array) -> np.ndarray:
    """The part [b, ...] of a global array [B, ...] that this host's devices hold, each row once."""
    pieces = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


def describe(abstract_state: Any, shardings: Any, most: int = 5) -> str:
    """A table of the largest tensors with their shapes and partition specs.

    A last line says what is whole on every device although it is large, as no dimension divides.
    """
    leaves = jax.tree_util.tree_leaves_with_path(abstract_state)
    rows = sorted(
        (
            (math.prod(leaf.shape), _joined(path), leaf, sharding)
            for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)
        ),
        key=lambda row: (-row[0], row[1]),
    )
    width = max(len(name) for _, name, _, _ in rows[:most])
    lines = [
        f"  {name:<{width}}  {leaf.dtype.name}{list(leaf.shape)}  {tuple(sharding.spec)}"
        for _, name, leaf, sharding in rows[:most]
    ]
    fsdp = rows[0][3].mesh.shape["fsdp"]
    whole = [
        (size, name)
        for size, name, _, sharding in rows
        if fsdp > 1 and size >= MIN_SHARDED_SIZE and "fsdp" not in sharding.spec
    ]
    if whole:
        share = sum(size for size, _ in whole) / sum(row[0] for row in rows)
        lines.append(
            f"  {len(whole)} tensors, {share:.1%} of all elements, are not split by fsdp = {fsdp}, "
            f"which divides none of their dimensions; the largest is {whole[0][1]}"
        )
    return "\n".join(lines)


def _joined(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
