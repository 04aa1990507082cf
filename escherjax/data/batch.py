"""What a batch of scenes holds, and how it lies on a mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from escherjax.cameras import Cameras
from escherjax.devices import mesh as mesh_lib


def _of_targets() -> Any:
    """A field [B, M, ...]: split over the scenes and over the target views."""
    return flax.struct.field(default=None, metadata={"by_target": True})


@flax.struct.dataclass
class Batch:
    """Reference and target views of B scenes, N and M of each: arrays, or what stands for them.

    The loader gives this host's scenes as NumPy arrays; `on_mesh` makes global arrays of them.
    """

    ref_images: Any  # uint8 [B, N, H, W, 3]
    ref_c2w: Any  # float32 [B, N, 4, 4], OpenCV axes
    target_c2w: Any = _of_targets()  # float32 [B, M, 4, 4]
    target_images: Any = _of_targets()  # uint8 [B, M, H, W, 3]; None where moments are stored
    target_moments: Any = _of_targets()  # bfloat16 [B, M, h, w, 2 C], stored VAE moments, or None
    num_references: Any = None  # int32 [B], so many references are real, the first ones
    valid: Any = None  # float32 [B], 0 where the record was bad: all else is blank then
    ref_K: Any = None  # float32 [B, N, 3, 3], pixels of these pictures
    target_K: Any = _of_targets()  # float32 [B, M, 3, 3]
    scene_index: Any = None  # int32 [B]
    scene_ids: Any = None  # object [B] of str; only on the host

    @property
    def view_counts(self) -> tuple[int, int]:
        """(N, M)."""
        return self.ref_c2w.shape[1], self.target_c2w.shape[1]

    @property
    def cameras(self) -> tuple[Cameras, Cameras]:
        """Those of the references and of the targets."""
        return Cameras(self.ref_c2w), Cameras(self.target_c2w)

    def shardings(self, mesh: Mesh) -> Batch:
        """The sharding of every array there is."""
        by_scene, by_target = mesh_lib.batch_sharding(mesh), mesh_lib.target_sharding(mesh)
        return Batch(
            **{
                field.name: by_target if field.metadata.get("by_target") else by_scene
                for field in dataclasses.fields(self)
                if getattr(self, field.name) is not None
            }
        )

    def on_mesh(self, mesh: Mesh) -> Batch:
        """This host's scenes as global arrays; `mesh.host_share` says which scenes those are."""
        arrays = dataclasses.replace(self, scene_ids=None)
        return mesh_lib.put(mesh, arrays, arrays.shardings(mesh))


def abstract_batch(
    size: int,
    view_counts: tuple[int, int],
    resolution: int,
    moments_shape: tuple[int, ...] = (),
    mesh: Mesh | None = None,
) -> Batch:
    """A batch of `size` scenes as ShapeDtypeStructs, without intrinsics.

    Args:
      moments_shape: (h, w, 2 C) of stored moments in the place of target images; () for none.
      mesh: what the batch lies on, as after `Batch.on_mesh`; None for shapes alone.
    """
    num_references, num_targets = view_counts

    def struct(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), dtype)

    pixels = (resolution, resolution, 3)
    batch = Batch(
        ref_images=struct(jnp.uint8, num_references, *pixels),
        ref_c2w=struct(jnp.float32, num_references, 4, 4),
        target_c2w=struct(jnp.float32, num_targets, 4, 4),
        target_images=None if moments_shape else struct(jnp.uint8, num_targets, *pixels),
        target_moments=struct(jnp.bfloat16, num_targets, *moments_shape) if moments_shape else None,
        num_references=struct(jnp.int32),
        valid=struct(jnp.float32),
    )
    if mesh is None:
        return batch
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        batch,
        batch.shardings(mesh),
    )


def unit_images(images: Any) -> Any:
    """uint8 images to float32 in [-1, 1]."""
    return (images.astype(jnp.float32) / 255.0 - 0.5) / 0.5
