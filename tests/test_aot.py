"""Ahead-of-time compilation: reading compiled programs, estimates, and one real compilation."""

import importlib.util
import json
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from escherjax.compile import estimate, topology
from escherjax.compile.collectives import find_collectives, find_kernels
from escherjax.compile.programs import Program, lower_program
from escherjax.devices import mesh as sharding
from escherjax.devices.chips import CHIPS
from escherjax.errors import UserError
from escherjax.models.blocks import Upsample
from tests.helpers.patience import PATIENCE_SEC
from tests.helpers.tiny import tiny_arguments, tiny_config

HLO = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[64,8]) -> f32[16,8] {
  %all-reduce.9 = (f32[64,8]{1,0}, f32[4]{0}) all-reduce(%p, %q), channel_id=5, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %slice = f32[16,8]{1,0} dynamic-slice(%all-reduce.9)
}

%condition (c: s32[]) -> pred[] {
  %bound = s32[]{:T(128)} constant(7)
  ROOT %less = pred[] compare(%c, %bound), direction=LT
}

%body (c: s32[]) -> s32[] {
  %permute = (bf16[4,4]{1,0}, bf16[4,4]{1,0}, u32[], u32[]) collective-permute-start(%x), channel_id=8, source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (p: f32[64,8]) -> f32[16,8] {
  %all-gather.1 = bf16[64,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, metadata={op_name="jit(step)/jvp(A)/to_q/convert_element_type"}
  %all-gather.2 = bf16[64,4]{1,0} all-gather(%p), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  %start = (f32[8]{0}, f32[64]{0}) all-gather-start(%p), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %alone = f32[8]{0} all-reduce(%p), channel_id=3, replica_groups=[8,1]<=[8], to_apply=%add
  %loop = s32[] while(%p), condition=%condition, body=%body
  %splash_mha_fwd_residuals.2 = bf16[2,8,3072,40]{3,2,1,0} custom-call(%q), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,6,6]{2,1,0}, bf16[2,8,3072,40]{3,2,1,0}, bf16[2,8,256,40]{3,2,1,0}, bf16[2,8,256,40]{3,2,1,0}}, frontend_attributes={kernel_metadata={
}}
  ROOT %fusion = f32[16,8]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="jit(step)/transpose(jvp(A))/y/dot_general"}
}
"""  # noqa: E501


def test_collectives_count_each_channel_once_and_loops_as_often_as_they_run():
    found = {one.kind + one.shape: one for one in find_collectives(HLO, num_devices=8)}
    gather = found["all-gatherbf16[64,8]"]
    assert (gather.num_bytes, gather.group, gather.calls) == (1024, 4, 1)
    assert gather.sent_bytes == 1024 * 3 / 4
    assert gather.source == "jit(step)/jvp(A)/to_q/convert_element_type"
    assert found["all-gatherf32[64]"].group == 8
    scatter = found["reduce-scatterf32[64,8]"]
    assert (scatter.num_bytes, scatter.group, scatter.arrays) == (2048 + 16, 4, 2)
    assert scatter.source == "jit(step)/transpose(jvp(A))/y/dot_general"  # of the fusion around it
    permute = found["collective-permutebf16[4,4]"]
    assert (permute.num_bytes, permute.calls, permute.sent_bytes) == (32, 7, 7 * 32)
    assert len(found) == 4  # a group of one chip sends nothing


def test_attention_kernels_are_counted_with_padded_heads():
    ((name, shapes, calls),) = find_kernels(HLO)
    assert (name, shapes[1], calls) == ("splash_mha_fwd_residuals", (2, 8, 3072, 40), 1)
    # Two products of 3072 x 256 x 128, a multiply-add being two.
    assert estimate.attention_kernel_flops(HLO) == 2 * 2 * 2 * 8 * 3072 * 256 * 128


def test_roofline_takes_the_slowest_limit_or_their_sum():
    times = estimate.roofline(98.5e12, 197e12, 819e9 / 2, 200e9 / 4, CHIPS["v5e"])
    assert [times[k] for k in ("compute", "hbm", "ici")] == pytest.approx([1.0, 0.5, 0.25])
    assert times["overlapped"] == pytest.approx(1.0)
    assert times["mfu_overlapped"] == pytest.approx(0.5)
    assert times["mfu_serial"] == pytest.approx(0.5 / 1.75)


def test_every_chip_has_a_peak():
    assert [chip.peak_flops / 1e12 for chip in CHIPS.values()] == [275, 197, 459, 918]


def abstract(mesh, shape, *axes):
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def test_warnings_name_what_is_held_whole_and_what_is_gathered_too_often():
    mesh = Mesh(jax.devices(), ("fsdp",))
    arguments = {
        "odd": abstract(mesh, (1023, 1023)),
        "split": abstract(mesh, (4096, 1024), "fsdp"),
        "small": abstract(mesh, (8,)),
        "params": {
            "a": {
                "to_k": {"kernel": abstract(mesh, (2048, 1024), "fsdp")},
                "to_v": {"kernel": abstract(mesh, (2048, 1024), "fsdp")},
            }
        },
        "ema": {"a": {"to_k": {"kernel": abstract(mesh, (2048, 1024), "fsdp")}}},
    }
    (warning,) = estimate.replicated(arguments)
    assert warning.startswith("odd: float32[1023, 1023] is held whole")

    line = (
        "  %g.{0} = f32[{1}]{{1,0}} all-gather(%p), channel_id={0}, "
        'replica_groups=[1,8]<=[8], metadata={{op_name="jit(f)/{2}{3}"}}\n'
    )
    passes = {n: "jvp(A)" if n % 2 else "transpose(jvp(A))" for n in range(1, 5)}
    gathers = [line.format(9, "4096,256", "jvp(A)", "/to_q/act")]
    gathers += [line.format(n, "1024,2048", name, "/a/to_k/dot") for n, name in passes.items()]
    gathers += [line.format(10 + n, "2048,1024", "", "div") for n in passes]
    gathers += [line.format(20 + n, "2048,1024", "jvp(A)", "/a/to_v/dot") for n in range(3)]
    found = find_collectives("ENTRY %main (p: f32[]) -> f32[] {\n" + "".join(gathers) + "}\n", 8)
    assert estimate.gathered_often(found, arguments) == [
        "an array f32[4096,256], no parameter, is gathered for jit(f)/jvp(A)/to_q/act.",
        "f32[1024,2048] is gathered at 11 places, more than 3 for each of params/a/to_k/kernel, "
        "params/a/to_v/kernel; by jit(f)/div, jit(f)/jvp(A)/a/to_k/dot, jit(f)/jvp(A)/a/to_v/dot "
        "and 1 more.",
    ]
    as_many_as_needed = [one for one in found if one.source.endswith("to_v/dot")] * 2
    assert estimate.gathered_often(as_many_as_needed, arguments) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e-16", "must be GENERATION:AxB.* got 'v5e-16'"),
        ("v3:4x4", "generation must be one of v4, v5e, v5p, v6e, got 'v3'"),
        ("v5p:4x4", "torus of 3 dimensions; expected v5p:2x2x1, which is one host"),
        ("v4:2x2", "torus of 3 dimensions; expected v4:2x2x1, which is one host, or a multiple"),
    ],
)
def test_malformed_topology_names_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        topology.parse_topology(name)


def run_compile(*arguments):
    command = [sys.executable, "-m", "escherjax.compile", "--config", "configs/6dof.py:smoke"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=PATIENCE_SEC
    )


def test_a_machine_without_libtpu_is_told_what_to_install():
    if importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is installed")
    done = run_compile("--topology", "v5e:2x2", *tiny_arguments())
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'escherjax[tpu]'" in done.stderr


@pytest.mark.parametrize("option", ["--hlo", "--json"])
def test_files_that_cannot_be_written_are_refused_before_anything_is_compiled(option, tmp_path):
    (tmp_path / "file").touch()
    for name, reason in (("file/x.txt", "file is a file"), (".", "is a folder; name a file in it")):
        done = run_compile("--topology", "v5e:2x2", option, str(tmp_path / name))
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert re.search(f"{option} .*{reason}", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


VAE = {
    "latents__kind": "vae",
    "latents__vae__block_channels": (8, 8),
    "latents__vae__layers_per_block": 1,
    "latents__vae__norm_groups": 4,
    "data__background": "white",
}


@pytest.mark.parametrize(
    ("program", "fields", "entry"),
    [
        ("train", {}, "ui8>"),
        ("train", VAE, "ui8>"),
        ("train", {**VAE, "data__latents": True, "data__source": "SHARDS"}, "bf16>"),
        ("sample", {}, "ui8>"),
    ],
)
def test_programs_lower_for_the_devices_of_a_mesh(program, fields, entry):
    """What is lowered for TPUs, for those devices that every machine has."""
    config = tiny_config(
        mesh__fsdp=8, batch_size=8, eval__batch_size=8, sample_every_steps=0, **fields
    )
    lowered = lower_program(program, config, sharding.make_mesh(config.mesh))
    assert lowered.model_flops > 0
    head = lowered.lowered.as_text().split("@main(")[1].split("->")[0]
    assert f"tensor<8x2x16x16x3x{entry}" in head or entry == "bf16>"
    assert (f"tensor<8x2x8x8x8x{entry}" in head) == (entry == "bf16>")


@pytest.fixture
def v5e_devices():
    pytest.importorskip("libtpu", reason="the TPU compiler, extra `tpu`, is not installed")
    topology.prepare_environment()
    return topology.topology_devices("v5e:2x2")


@pytest.mark.parametrize("generation", CHIPS)
def test_a_chip_is_one_device_of_the_kind_with_data_sheet_figures(v5e_devices, generation):
    name = f"{generation}:2x2" + "x1" * (generation in ("v4", "v5p"))
    devices = topology.topology_devices(name)
    assert [device.device_kind for device in devices] == [CHIPS[generation].device_kind] * 4


def test_a_topology_that_libtpu_does_not_have(v5e_devices):
    with pytest.raises(UserError, match="libtpu does not know it"):
        topology.topology_devices("v5e:3x5")


def test_a_product_with_a_split_parameter_is_compiled_and_measured(v5e_devices):
    mesh = Mesh(v5e_devices, ("fsdp",))
    weights, x = abstract(mesh, (512, 1024), "fsdp"), abstract(mesh, (256, 512), "fsdp")

    def step(weights, x):
        whole = jax.lax.with_sharding_constraint(weights, NamedSharding(mesh, PartitionSpec()))
        return x @ whole

    lowered = jax.jit(step).lower(weights, x)
    flops = 2 * 256 * 512 * 1024
    result = estimate.analyze(
        Program(lowered, {"w": weights}, flops), lowered.compile(), CHIPS["v5e"], 4
    )
    assert result["memory"]["arguments"] == 4 * (512 * 1024 + 256 * 512) / 4
    assert result["flops"]["model"] == flops / 4
    assert result["flops"]["xla"] == pytest.approx(flops / 4, rel=0.1)  # counts additions, too
    (row,) = result["collectives"]
    assert (row["kind"], row["count"], row["bytes"]) == ("all-gather", 1, 4 * 512 * 1024)
    assert result["warnings"] == []


@pytest.mark.slow
def test_up_sampling_between_convolutions_gathers_no_rows(v5e_devices):
    """Untold where they lie, this compiler gathers them, which that for CPUs may not."""
    mesh = sharding.make_mesh(tiny_config(mesh__fsdp=4).mesh, v5e_devices)
    first, last = nn.Conv(64, (3, 3)), nn.Conv(32, (3, 3))
    upsample = Upsample(sharding.spread(mesh))

    def loss(params, x):
        x = first.apply({"params": params[0]}, x)
        x = upsample.apply({"params": params[1]}, x, (16, 16))
        return jnp.sum(jnp.square(last.apply({"params": params[2]}, x)))

    params = [
        {"kernel": abstract(mesh, (3, 3, 64, 64), None, None, "fsdp")},
        {"conv": {"kernel": abstract(mesh, (3, 3, 64, 64), None, None, "fsdp")}},
        {"kernel": abstract(mesh, (3, 3, 64, 32), None, None, "fsdp")},
    ]
    for layer in (params[0], params[1]["conv"], params[2]):
        layer["bias"] = abstract(mesh, layer["kernel"].shape[-1:])
    step = jax.jit(jax.value_and_grad(loss))
    text = step.lower(params, abstract(mesh, (48, 8, 8, 64), "fsdp")).compile().as_text()
    gathered = {one.shape for one in find_collectives(text, 4) if one.kind == "all-gather"}
    assert not [shape for shape in gathered if "[48," in shape], gathered


@pytest.mark.parametrize("program", ["train", "sample"])
def test_programs_lower_with_the_kernel_of_tpus(v5e_devices, program):
    config = tiny_config(mesh__fsdp=4, dtype="bfloat16", resolution=64)
    mesh = sharding.make_mesh(config.mesh, v5e_devices)
    lowered = lower_program(program, config, mesh)
    assert lowered.model_flops > 0
    assert "tpu_custom_call" in lowered.lowered.as_text()


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "sample"])
def test_the_command_compiles_a_small_network_and_keeps_the_result(v5e_devices, program, tmp_path):
    arguments = [
        "--topology",
        "v5e:2x2",
        "--program",
        program,
        "--cache",
        str(tmp_path),
        "--json",
        str(tmp_path / "out.json"),
        *tiny_arguments(mesh__fsdp=4, dtype="bfloat16"),
    ]
    first = run_compile(*arguments)
    assert first.returncode == 0, first.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["chips"] == 4
    assert 0 < result["memory"]["total"] < result["memory"]["hbm"]
    assert {row["kind"] for row in result["collectives"]} >= {"all-gather"}
    second = run_compile(*arguments)
    assert "compiled before" in second.stderr
    assert second.stdout == first.stdout


@pytest.mark.slow
def test_a_compilation_is_kept_though_its_hlo_cannot_be_written(v5e_devices, tmp_path):
    arguments = [
        "--topology",
        "v5e:2x2",
        "--program",
        "sample",
        "--cache",
        str(tmp_path / "cache"),
        *tiny_arguments(mesh__fsdp=4, dtype="bfloat16"),
    ]
    first = run_compile(*arguments, "--hlo", "/dev/full")
    assert first.returncode == 2, first.stderr
    assert "could not be written to /dev/full (No space left" in first.stderr
    assert "Traceback" not in first.stderr
    second = run_compile(*arguments, "--json", str(tmp_path / "new" / "out.json"))
    assert "compiled before" in second.stderr
    assert (tmp_path / "new" / "out.json").is_file()
