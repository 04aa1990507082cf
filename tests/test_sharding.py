"""The rules of the mesh: what is split along which axis, and what is refused."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from escherjax.data.batch import Batch
from escherjax.devices import mesh as sharding
from escherjax.errors import UserError
from escherjax.models.blocks import Upsample
from escherjax.train import checks
from tests.helpers.tiny import tiny_config


def refusal(**fields):
    with pytest.raises(UserError) as caught:
        checks.training_mesh(tiny_config(**fields))
    return str(caught.value)


def test_every_size_that_does_not_divide_is_named_with_what_is_needed():
    text = refusal(
        mesh__fsdp=1,
        mesh__view=8,
        num_targets=4,
        eval__num_targets=12,
        eval_every_steps=5,
        attention_gather="none",
    )
    assert text.splitlines() == [
        "config.num_targets = 4 does not divide over config.mesh's view = 8 devices; it must be a "
        "multiple of 8, or view smaller.",
        "config.eval.num_targets = 12 does not divide over config.mesh's view = 8 devices; it must "
        "be a multiple of 8, or view smaller.",
        "config.attention_gather must be one of all, ring, got 'none'.",
    ]
    text = refusal(
        mesh__fsdp=1, mesh__model=8, unet__num_heads=4, unet__norm_groups=4, unet__attention=(True,)
    )
    assert "config.unet.num_heads = 4" in text and "config.unet.norm_groups = 4" in text
    text = refusal(mesh__fsdp=8, batch_size=16, eval__batch_size=4, sample_every_steps=5)
    assert "config.eval.batch_size = 4 does not divide over config.mesh's data x fsdp = 8" in text


@pytest.mark.parametrize(("kernel", "where"), [("cudnn", "GPUs"), ("splash", "TPUs")])
def test_kernels_of_other_devices_are_refused(kernel, where):
    text = refusal(attention=kernel, mesh__fsdp=8, batch_size=8)
    assert f"config.attention = '{kernel}' runs on {where}, and the devices are CPUs" in text


def test_every_bucket_must_divide_over_the_view_devices():
    text = refusal(mesh__fsdp=1, mesh__view=8, data__buckets=((1, 8, 1.0), (2, 4, 1.0)))
    assert text.startswith("config.data.buckets: M = 4 does not divide over config.mesh's view = 8")


def test_what_does_not_divide_the_devices_is_told_by_what_can_be_changed():
    text = refusal(mesh__data=3, mesh__fsdp=-1)
    assert text.endswith("does not divide 8 devices; the product of the others must divide 8.")
    text = refusal(mesh__data=3, mesh__fsdp=1)
    assert text.endswith("its product must be 8, or one axis -1.")


def test_slices_and_hosts_that_do_not_fit_are_refused():
    assert "there is one host, and no slow link to it; set config.mesh.dcn_data=1." in refusal(
        mesh__data=8, mesh__dcn_data=2
    )
    assert "does not divide the 1 devices along config.mesh.data" in refusal(
        mesh__fsdp=8, mesh__dcn_data=3
    )


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks a device of another host for."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_unbalanced_hosts_are_named():
    devices = [Device(i, host) for i, host in enumerate([0, 0, 0, 0, 1, 1, 1, 2])]
    with pytest.raises(UserError, match="host 0 has 4, host 1 has 3, host 2 has 1"):
        checks.training_mesh(tiny_config(mesh__fsdp=8), devices)


def hosts_mesh(num_hosts, data, view):
    """A mesh of 8 devices, spread evenly over hosts of which this process is the first."""
    devices = [Device(i, i * num_hosts // 8) for i in range(8)]
    return sharding._mesh(np.array(devices).reshape(data, 1, 8 // data // view, view))


@pytest.mark.parametrize(
    ("num_hosts", "data", "view", "share"),
    [(1, 8, 1, (0, 1)), (2, 8, 1, (0, 2)), (2, 2, 4, (0, 2)), (2, 1, 8, (0, 1)), (4, 2, 4, (0, 2))],
)
def test_hosts_that_share_scenes_read_the_same_part(num_hosts, data, view, share):
    assert sharding.host_share(hosts_mesh(num_hosts, data, view)) == share


def test_a_batch_lies_as_its_parts_should():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 1, "view": 2})
    targets = np.arange(8 * 4 * 3).reshape(8, 4, 3)
    valid = targets[:, 0, 0]
    put = Batch(ref_images=targets, ref_c2w=targets, target_images=targets, valid=valid).on_mesh(
        mesh
    )
    np.testing.assert_array_equal(put.target_images, targets)
    assert put.target_images.addressable_shards[0].data.shape == (2, 2, 3)
    assert put.ref_images.addressable_shards[0].data.shape == (2, 4, 3)
    assert put.valid.addressable_shards[0].data.shape == (2,)
    np.testing.assert_array_equal(sharding.local_rows(put.valid), valid)


def test_rules_split_products_in_pairs_and_fsdp_takes_the_largest_dimension_left():
    spec = lambda path, *shape: sharding.parameter_spec(path, shape, 16, 2)  # noqa: E731
    model, fsdp = "model", "fsdp"
    transformer = "params/unet/mid_block/attentions_0/transformer_blocks_0"
    assert spec(f"{transformer}/attn1/to_k/kernel", 1280, 1280) == PartitionSpec(fsdp, model)
    assert spec(f"{transformer}/attn2/to_out_0/kernel", 1280, 1280) == PartitionSpec(model, fsdp)
    assert spec(f"{transformer}/ff/net_2/kernel", 5120, 1280) == PartitionSpec(model, fsdp)
    block = "ema/unet/down_blocks_0/resnets_1"
    assert spec(f"{block}/conv1/kernel", 3, 3, 320, 640) == PartitionSpec(None, None, fsdp, model)
    assert spec(f"{block}/conv2/kernel", 3, 3, 640, 640) == PartitionSpec(None, None, model, fsdp)
    shortcut = spec(f"{block}/conv_shortcut/kernel", 1, 1, 320, 640)
    assert shortcut == PartitionSpec(None, None, None, fsdp)
    assert spec(f"{block}/norm1/scale", 640) == PartitionSpec()
    # The autoencoder's attention has one head, which cannot be cut.
    vae = "frozen/vae/encoder/mid_block/attentions_0"
    assert spec(f"{vae}/to_k/kernel", 512, 512) == PartitionSpec(None, fsdp)


def test_tensors_that_no_dimension_splits_are_counted():
    shapes = {
        name: jax.ShapeDtypeStruct((width, width), np.float32)
        for name, width in (("coarse", 1280), ("fine", 640), ("finest", 320))
    }

    def table(data, fsdp):
        grid = np.array([Device(i, 0) for i in range(data * fsdp)]).reshape(data, fsdp, 1, 1)
        return sharding.describe(shapes, sharding.state_shardings(sharding._mesh(grid), shapes))

    assert table(1, 256).splitlines() == [
        "  coarse  float32[1280, 1280]  (None, 'fsdp')",
        "  fine    float32[640, 640]  ()",
        "  finest  float32[320, 320]  ()",
        "  2 tensors, 23.8% of all elements, are not split by fsdp = 256, which divides none of "
        "their dimensions; the largest is fine",
    ]
    assert "not split" not in table(4, 64)


def test_upsampling_keeps_split_rows_where_they_are():
    """The partitioner gathers parameters for a convolution, never the rows of all devices."""
    mesh = sharding.make_mesh(tiny_config(mesh__fsdp=8).mesh)
    upsample = Upsample(sharding.spread(mesh, "all"))

    def loss(params, x):
        h = upsample.apply({"params": params}, x, (16, 16))
        return jnp.sum(jnp.square(h))

    def placed(shape, *spec):
        return jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec))
        )

    params = {
        "conv": {
            "kernel": placed((3, 3, 64, 64), None, None, None, "fsdp"),
            "bias": placed((64,)),
        }
    }
    step = jax.jit(jax.value_and_grad(loss))
    text = step.lower(params, placed((48, 8, 8, 64), "fsdp")).compile().as_text()
    gathered = set(re.findall(r"= \w+(\[[\d,]*\])\S* all-gather", text))
    assert gathered == {"[3,3,64,64]"}, gathered
