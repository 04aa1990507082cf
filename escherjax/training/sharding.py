"""Every sharding decision: the mesh, and which axis of which array lies along it.

The batch is split over `data` and `fsdp`; parameters, EMA and optimizer state over `fsdp`, each
tensor along its largest dimension that divides. One device is the same program on a mesh of one.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from escherjax.errors import UserError

AXES = ("data", "fsdp", "model", "view")
BATCH_AXES = ("data", "fsdp")
MIN_SHARDED_SIZE = 2**14  # smaller tensors are replicated: gathering them costs more than it saves


def make_mesh(mesh: ConfigDict, batch_size: int, accumulation_steps: int = 1) -> Mesh:
    """The device mesh of a config; one axis may be -1, the rest of the devices.

    Raises UserError if the product is not the number of devices, if an axis that nothing is
    sharded over is above 1, or if a micro-batch does not divide.
    """
    num_devices = jax.device_count()
    sizes = {axis: int(mesh[axis]) for axis in AXES}
    for axis in ("model", "view"):
        if sizes[axis] not in (1, -1):
            raise UserError(
                f"config.mesh.{axis} = {sizes[axis]}: only the axes data and fsdp can be above 1; "
                f"set config.mesh.{axis}=1 and use config.mesh.fsdp."
            )
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"config.mesh has -1 for {' and '.join(free)}; at most one can be the rest")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if any(size == 0 or size < -1 for size in sizes.values()) or num_devices % fixed:
        raise UserError(
            f"config.mesh = {sizes} does not divide {num_devices} devices; its product must be "
            f"{num_devices}, or one axis -1."
        )
    if free:
        sizes[free[0]] = num_devices // fixed
    elif fixed != num_devices:
        raise UserError(
            f"config.mesh = {sizes} uses {fixed} of {num_devices} devices; set one axis to -1."
        )
    shards = sizes["data"] * sizes["fsdp"]
    micro_batch = batch_size // accumulation_steps
    if micro_batch % shards:
        good = max(shards, micro_batch // shards * shards) * accumulation_steps
        raise UserError(
            f"a micro-batch of {micro_batch} scenes (config.batch_size = {batch_size} / "
            f"accumulation_steps = {accumulation_steps}) does not divide over data x fsdp = "
            f"{shards} devices; the nearest batch_size is {good}."
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def single_device_mesh() -> Mesh:
    """A mesh of the first local device, for work that is not spread out."""
    return jax.make_mesh(
        (1,) * len(AXES),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=jax.local_devices()[:1],
    )


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Splits the largest dimension that `fsdp` divides; small tensors stay whole."""
    if math.prod(shape) < MIN_SHARDED_SIZE or fsdp == 1:
        return PartitionSpec()
    candidates = [(size, axis) for axis, size in enumerate(shape) if size % fsdp == 0]
    if not candidates:
        return PartitionSpec()
    axis = max(candidates)[1]
    return PartitionSpec(*(None,) * axis, "fsdp")


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """A NamedSharding for every array of a pytree of parameters or training state."""
    fsdp = mesh.shape["fsdp"]
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, parameter_spec(leaf.shape, fsdp)), abstract_state
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0, the scenes, split over the mesh's batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's scenes, [b, ...] numpy, as global arrays [B, ...] split over the mesh."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def describe(abstract_state: Any, shardings: Any, most: int = 5) -> str:
    """A table of the largest tensors with their shapes and partition specs."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract_state)
    specs = [s.spec for s in jax.tree.leaves(shardings)]
    rows = sorted(
        ((math.prod(leaf.shape), jax.tree_util.keystr(path, simple=True, separator="/"), leaf, spec)
         for (path, leaf), spec in zip(leaves, specs, strict=True)),
        key=lambda row: (-row[0], row[1]),
    )[:most]
    width = max(len(row[1]) for row in rows)
    return "\n".join(
        f"  {name:<{width}}  {leaf.dtype.name}{list(leaf.shape)}  {tuple(spec)}"
        for _, name, leaf, spec in rows
    )
