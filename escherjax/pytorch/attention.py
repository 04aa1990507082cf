"""Attention over views with Camera Positional Encoding, for diffusers' UNet2DConditionModel.

EscherNet (arXiv 2402.03908, section 3) adds no parameter to Stable Diffusion's U-Net. Target views
lie in its batch axis, and only attention joins them: self-attention runs over the tokens of all
target views of a scene, cross-attention from those to the tokens of all its reference views. Before
that, queries and keys (never values) are turned by the camera of their view:

  6dof        each group of four channels is a row vector f; queries f P^-T, keys f P, so logits see
              the relative camera P_key P_query^-1 alone.
  4dof        each pair of channels is turned by an angle: the full width, all heads together, is
              cut in quarters for (polar, azimuth, log radius, 0), as in the published weights.
  4dof_paper  the same, but the angles alternate pair by pair in every head (the paper's eq. 6).
  none        nothing is turned.

Cameras reach the processor through `cross_attention_kwargs`:

    set_cape(unet, "6dof")
    unet(latents, timesteps, tokens, cross_attention_kwargs={
        "target_poses": view_poses("6dof", target_c2w),
        "reference_poses": view_poses("6dof", reference_c2w)})

with latents [B*M, C, h, w] scene by scene and tokens [B, N*L, D] view by view.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch.nn import functional as F

from escherjax.errors import UserError
from escherjax.pytorch.cameras import ViewPoses, check_cape


def set_cape(unet: UNet2DConditionModel, cape: str) -> None:
    """Makes every attention of `unet` one over views, with the given camera encoding.

    Raises UserError listing every attention whose width cannot carry the encoding, or that does
    more than project, attend and project.
    """
    check_cape(cape)
    problems = []
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            problems += [f"\n  - {name}: {problem}" for problem in _misfits(module, cape)]
    if problems:
        raise UserError(
            f"cape = {cape!r} does not fit this U-Net:{''.join(problems)}\n"
            "Expected the attention of Stable Diffusion 1.5, with head widths that are a multiple "
            "of 4 (6dof) or 8 (4dof_paper), or a total width that is one of 8 (4dof)."
        )
    unet.set_attn_processor(CaPEAttnProcessor(cape))


def check_cape_is_set(unet: UNet2DConditionModel) -> None:
    """Raises UserError if other processors took the place of ours: views would not be joined."""
    processors = unet.attn_processors.values()
    others = {type(p).__name__ for p in processors if not isinstance(p, CaPEAttnProcessor)}
    if others:
        raise UserError(
            f"the U-Net's attention is now {', '.join(sorted(others))}, which knows no cameras "
            "(enable_attention_slicing() and the like put it there). Call set_cape(unet, cape)."
        )


class CaPEAttnProcessor:
    """A diffusers attention processor: joint attention over views, with CaPE. No parameters."""

    def __init__(self, cape: str):
        self.cape = check_cape(cape)

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        target_poses: ViewPoses,
        reference_poses: ViewPoses,
    ) -> torch.Tensor:
        """Attention of B scenes.

        Args:
            attn: the module whose projections are used.
            hidden_states: [B*M, l, C], scene by scene.
            encoder_hidden_states: [B, N*L, D], view by view; None means self-attention.
            attention_mask: must be None.
            target_poses: of [B, M] views.
            reference_poses: of [B, N] views.

        Returns:
            The shape of hidden_states.

        Raises:
            UserError: a mask is given, or tokens and poses do not match.
        """
        if attention_mask is not None:
            raise UserError("attention over views takes no attention mask; leave it out.")
        num_scenes, num_targets = target_poses.query.shape[:2]
        if len(hidden_states) != num_scenes * num_targets:
            raise UserError(
                f"the batch holds {len(hidden_states)} latents, but target poses are of "
                f"{num_scenes} scenes x {num_targets} views; expected one latent for each."
            )
        queries_of = hidden_states.reshape(num_scenes, -1, hidden_states.shape[-1])  # [B, M*l, C]
        if encoder_hidden_states is None:
            keys_of, key_poses = queries_of, target_poses
        else:
            keys_of, key_poses = encoder_hidden_states, reference_poses
            _check_references(keys_of, key_poses, num_scenes)

        query = turn(self.cape, attn.to_q(queries_of), target_poses.query)
        key = turn(self.cape, attn.to_k(keys_of), key_poses.key)
        value = attn.to_v(keys_of)
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value)
        )  # [B, heads, tokens, head width]
        out = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        out = out.transpose(1, 2).flatten(2).reshape(*hidden_states.shape[:2], -1)  # [B*M, l, C]
        for layer in attn.to_out:  # the projection, then dropout
            out = layer(out)
        return out


def turn(cape: str, x: torch.Tensor, poses: torch.Tensor) -> torch.Tensor:
    """Turns queries or keys by the cameras of their views, in float32 and rounded once.

    x: [B, V*T, C], all heads together, view by view. poses: `query` or `key` of ViewPoses, [B, V,
    ...]. Returns the shape and dtype of x.
    """
    if cape == "none":
        return x
    num_views = poses.shape[1]
    # Autocast would make a half-precision product of the 4x4 matrices.
    with torch.autocast(x.device.type, enabled=False):
        views = x.float().unflatten(1, (num_views, -1))  # [B, V, T, C]
        if cape == "6dof":
            rows = views.unflatten(-1, (-1, 4)).flatten(2, 3)  # [B, V, T*C/4, 4]
            turned = rows @ poses
        else:
            pairs = views.unflatten(-1, (-1, 2))  # [B, V, T, C/2, 2]
            repeats = pairs.shape[-2] // 4
            if cape == "4dof":
                angles = poses.repeat_interleave(repeats, dim=-1)  # [B, V, C/2], by quarters
            else:
                angles = poses.repeat(1, 1, repeats)  # [B, V, C/2], alternating
            cos, sin = angles.cos()[:, :, None], angles.sin()[:, :, None]
            first, second = pairs.unbind(-1)
            turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return turned.reshape(x.shape).to(x.dtype)


def _check_references(tokens: torch.Tensor, poses: ViewPoses, num_scenes: int) -> None:
    num_views = poses.num_views
    if len(tokens) != num_scenes or len(poses.key) != num_scenes or tokens.shape[1] % num_views:
        raise UserError(
            f"reference tokens are {tuple(tokens.shape)} and reference poses of {len(poses.key)} "
            f"scenes x {num_views} views; expected [{num_scenes}, views * tokens, width] for the "
            f"{num_scenes} scenes of the target poses."
        )


def _misfits(attn: Attention, cape: str) -> list[str]:
    """Why an attention cannot run with this encoding; empty if it can."""
    width = attn.to_q.out_features
    carrier, multiple = {
        "6dof": (width // attn.heads, 4),
        "4dof": (width, 8),
        "4dof_paper": (width // attn.heads, 8),
        "none": (0, 1),
    }[cape]
    problems = []
    if carrier % multiple:
        problems.append(f"{attn.heads} heads of width {width // attn.heads}")
    extras = ("group_norm", "spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")
    problems += [f"has {extra}" for extra in extras if getattr(attn, extra, None)]
    if attn.residual_connection or attn.rescale_output_factor != 1:
        problems.append("adds its input or rescales its output")
    return problems
