"""What chips can do: peak rates, sizes of TPU generations, and the compiler options each wants."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

# Dense bf16 FLOP/s a chip by the vendors' data sheets; the key is a part of jax's device_kind.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops() -> float | None:
    """Peak bf16 FLOP/s of all devices together, or None for a chip that is not in the table."""
    kind = jax.devices()[0].device_kind
    matches = [name for name in PEAK_FLOPS if name in kind]
    return PEAK_FLOPS[max(matches, key=len)] * jax.device_count() if matches else None


@dataclasses.dataclass(frozen=True)
class Chip:
    """Data-sheet figures of one TPU chip."""

    device_kind: str  # JAX's name
    hbm_bytes: float  # capacity of its memory
    hbm_bandwidth: float  # bytes/s
    ici_bandwidth: float  # bytes/s that all links to other chips send together, in one direction

    @property
    def peak_flops(self) -> float:
        """Dense bfloat16 FLOP/s."""
        return PEAK_FLOPS[self.device_kind]


# https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e, "System architecture".
# Their "bidirectional ICI bandwidth" is twice the last column.
CHIPS = {
    "v4": Chip("TPU v4", 32 * 2**30, 1228e9, 300e9),
    "v5e": Chip("TPU v5 lite", 16 * 2**30, 819e9, 200e9),
    "v5p": Chip("TPU v5", 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip("TPU v6 lite", 32 * 2**30, 1638e9, 400e9),
}


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """XLA options for the devices of a mesh.

    GPU: cuBLAS was measured to beat XLA's Triton products. TPU: a gathered parameter is multiplied
    whole. XLA would cut the product into a loop over its shards, each too narrow for the matrix
    unit; by its own estimate that is most of the cycles of the step.
    """
    return {
        "gpu": {"xla_gpu_enable_triton_gemm": False},
        "tpu": {
            "xla_tpu_enable_windowed_einsum_for_all_gather": False,
            "xla_tpu_enable_windowed_einsum_for_reduce_scatter": False,
        },
    }.get(mesh.devices.flat[0].platform, {})
