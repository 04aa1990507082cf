"""What one TPU chip of each generation can hold and do, for estimates before any is there."""

from __future__ import annotations

import dataclasses

from escherjax.train.perf import PEAK_FLOPS


@dataclasses.dataclass(frozen=True)
class Chip:
    """Data-sheet figures of one chip.

    device_kind: JAX's name; hbm_bytes: capacity of its memory; hbm_bandwidth: bytes/s;
    ici_bandwidth: bytes/s that all its links to other chips send together, in one direction.
    """

    device_kind: str
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float

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
