"""EscherNet in PyTorch: the networks are diffusers' and transformers' own, the cameras are ours.

    from escherjax.pytorch import EscherNetPipeline
    pipe = EscherNetPipeline.from_pretrained("eschernet-6dof").to("cuda")
    views = pipe(images, reference_cameras, target_cameras).images

`images` are N pictures (PIL, paths, or floats [N, H, H, 3] in [0, 1]); the cameras are
camera-to-world matrices [N, 4, 4] and [M, 4, 4] with OpenCV axes (x right, y down, z forward) in a
world whose z axis points up, scaled as the weights expect. `views` are M PIL pictures.

Written from the EscherNet paper (arXiv 2402.03908) apart from the JAX code, of which it imports
nothing, so that each can witness for the other. Needs `pip install 'escherjax[torch]'`.
"""

import importlib.util

from escherjax.errors import UserError

_missing = [
    name for name in ("torch", "diffusers", "transformers") if not importlib.util.find_spec(name)
]
if _missing:
    raise UserError(
        f"escherjax.pytorch needs {', '.join(_missing)}, not installed here; "
        "run: pip install 'escherjax[torch]'"
    )

from escherjax.pytorch.attention import CaPEAttnProcessor, set_cape  # noqa: E402
from escherjax.pytorch.cameras import ViewPoses, view_poses  # noqa: E402
from escherjax.pytorch.encoder import encode_tokens, preprocess  # noqa: E402
from escherjax.pytorch.pipeline import EscherNetPipeline  # noqa: E402

__all__ = [
    "CaPEAttnProcessor",
    "EscherNetPipeline",
    "ViewPoses",
    "encode_tokens",
    "preprocess",
    "set_cape",
    "view_poses",
]
