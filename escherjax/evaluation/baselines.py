"""What a network must beat: showing, for each target, a reference as it is."""

from __future__ import annotations

import numpy as np


def nearest_reference(reference_c2w: np.ndarray, target_c2w: np.ndarray) -> np.ndarray:
    """The reference whose camera centre lies nearest to each target's, the first of equals.

    reference_c2w: [..., N, 4, 4]; target_c2w: [..., M, 4, 4]. Returns indices [..., M] in [0, N).
    """
    refs, targets = reference_c2w[..., :3, 3], target_c2w[..., :3, 3]
    distance = np.linalg.norm(targets[..., :, None, :] - refs[..., None, :, :], axis=-1)
    return distance.argmin(axis=-1)  # [..., M]
