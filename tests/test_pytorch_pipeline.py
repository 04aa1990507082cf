import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from escherjax.errors import UserError
from escherjax.pytorch import EscherNetPipeline, set_cape, view_poses
from tests.helpers.torch_folders import write_folder

torch.set_num_threads(1)


def load(folder, **options):
    pipe = EscherNetPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("pipeline"), seed=0)


@pytest.fixture(scope="module")
def pipe(folder):
    return load(folder)


def c2w_of(rng, count):
    """Random rigid poses about 2 away from the origin, float64 [count, 4, 4]."""
    c2w = np.tile(np.eye(4), (count, 1, 1))
    rotation = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    c2w[:, :3, :3] = rotation * np.linalg.det(rotation)[:, None, None]
    direction = rng.normal(size=(count, 3))
    c2w[:, :3, 3] = 2 * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    return c2w


def inputs(rng, num_references=2, num_targets=2):
    images = rng.uniform(size=(num_references, 16, 16, 3)).astype(np.float32)
    return images, c2w_of(rng, num_references), c2w_of(rng, num_targets)


def generate(pipe, *views, **options):
    options = {"num_inference_steps": 2, "output_type": "np", **options}
    return pipe(*views, **options).images


def test_importing_and_running_needs_no_jax(folder):
    program = (
        "import sys, numpy as np\n"
        "from escherjax.pytorch import EscherNetPipeline\n"
        f"pipe = EscherNetPipeline.from_pretrained({str(folder)!r})\n"
        "pose = np.eye(4)[None]\n"
        "pipe(np.zeros((1, 16, 16, 3)), pose, pose, num_inference_steps=1)\n"
        "sys.exit(', '.join({'jax', 'flax'} & set(sys.modules)) or 0)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_moving_the_world_changes_nothing_6dof(pipe, rng):
    """1e-4: rounding of matrices with other entries, through two guided steps."""
    images, references, targets = inputs(rng)
    motion = c2w_of(rng, 1)[0]
    views = generate(pipe, images, references, targets)
    moved = generate(pipe, images, motion @ references, motion @ targets)
    np.testing.assert_allclose(moved, views, atol=1e-4)
    other = generate(pipe, images, references, motion @ targets)
    assert np.abs(other - views).max() > 0.01


@pytest.mark.parametrize("cape", ["4dof", "4dof_paper"])
def test_turning_the_world_about_its_vertical_changes_nothing_4dof(folder, rng, cape):
    pipe = load(folder, cape=cape)
    images, references, targets = inputs(rng)
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    views = generate(pipe, images, references, targets)
    turned = generate(pipe, images, turn @ references, turn @ targets)
    np.testing.assert_allclose(turned, views, atol=1e-4)
    other = generate(pipe, images, references, turn @ targets)
    assert np.abs(other - views).max() > 0.005


def test_order_of_references_changes_nothing(pipe, rng):
    images, references, targets = inputs(rng, num_references=3)
    views = generate(pipe, images, references, targets)
    reordered = generate(pipe, images[[2, 0, 1]], references[[2, 0, 1]], targets)
    np.testing.assert_allclose(reordered, views, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("cape", ["6dof", "none"])
def test_one_camera_for_all_views_is_plain_attention(folder, rng, cape):
    """Seen by the same camera, one target and its references are a stock U-Net's business."""
    stock = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    ours = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    set_cape(ours, cape)
    latents = torch.from_numpy(rng.normal(size=(1, 4, 8, 8)).astype(np.float32))
    tokens = torch.from_numpy(rng.normal(size=(1, 48, 32)).astype(np.float32))
    camera = c2w_of(rng, 1)
    out = ours(
        latents,
        10,
        tokens,
        cross_attention_kwargs={
            "target_poses": view_poses(cape, camera[None]),
            "reference_poses": view_poses(cape, np.tile(camera, (3, 1, 1))[None]),
        },
    ).sample
    np.testing.assert_allclose(out, stock(latents, 10, tokens).sample, atol=2e-5)


def test_guidance_of_one_or_less_is_none(pipe, rng):
    views = inputs(rng)
    unguided = generate(pipe, *views, guidance_scale=1.0)
    np.testing.assert_array_equal(generate(pipe, *views, guidance_scale=0.5), unguided)
    assert np.abs(generate(pipe, *views, guidance_scale=1.5) - unguided).max() > 1e-3


def test_seed_and_generator_draw_the_same(pipe, rng):
    views = inputs(rng)
    first = generate(pipe, *views, seed=3)
    np.testing.assert_array_equal(generate(pipe, *views, seed=3), first)
    drawn = generate(pipe, *views, generator=torch.Generator().manual_seed(3))
    np.testing.assert_array_equal(drawn, first)
    assert np.abs(generate(pipe, *views, seed=4) - first).max() > 0.01


def test_output_types_show_the_same_views(pipe, rng):
    views = inputs(rng)
    expected = generate(pipe, *views)
    assert expected.shape == (2, 16, 16, 3) and expected.dtype == np.float32
    np.testing.assert_array_equal(generate(pipe, *views, output_type="pt").movedim(1, -1), expected)
    pictures = np.stack([np.asarray(p) for p in generate(pipe, *views, output_type="pil")])
    np.testing.assert_array_equal(pictures, np.round(expected * 255).astype(np.uint8))
    assert generate(pipe, *views, output_type="latent").shape == (2, 4, 8, 8)


def test_pixel_models_need_no_vae(tmp_path, rng):
    pipe = load(write_folder(tmp_path, seed=0, patch=2))
    assert not (tmp_path / "vae").exists()
    assert generate(pipe, *inputs(rng)).shape == (2, 16, 16, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_and_stays_near(tmp_path, rng, dtype):
    """Stored in half precision: read as float32 nothing is lost; computed so, it is approximate."""
    folder = write_folder(tmp_path, seed=0, dtype=dtype)
    exact, half = load(folder), load(folder, torch_dtype=dtype)
    assert {exact.unet.dtype, exact.image_encoder.dtype, exact.vae.dtype} == {torch.float32}
    assert {half.unet.dtype, half.image_encoder.dtype, half.vae.dtype} == {dtype}
    for name, tensor in half.unet.state_dict().items():
        assert torch.equal(tensor.float(), exact.unet.state_dict()[name]), name
    views = inputs(rng)
    difference = np.abs(generate(half, *views) - generate(exact, *views))
    # A few roundings of 2^-8 (bfloat16), grown by guidance 3 over two steps; far from a wrong view.
    assert 0 < difference.mean() < 0.03


def test_cameras_are_not_rounded_to_the_dtype_of_the_network(folder, rng):
    pipe = load(folder, torch_dtype=torch.bfloat16)
    seen = []

    def remember(module, arguments, options):
        seen.append(options["cross_attention_kwargs"]["target_poses"])

    pipe.unet.register_forward_pre_hook(remember, with_kwargs=True)
    images, references, targets = inputs(rng)
    generate(pipe, images, references, targets, guidance_scale=1.0, num_inference_steps=1)
    assert seen[0].key.dtype == torch.float32
    opengl = targets * [1, -1, -1, 1]
    np.testing.assert_array_equal(seen[0].key[0], np.linalg.inv(opengl).astype(np.float32))


def test_saved_pipeline_loads_to_the_same_views(pipe, rng, tmp_path):
    pipe.save_pretrained(tmp_path / "copy")
    views = inputs(rng)
    copy = load(tmp_path / "copy")
    assert copy.facts == pipe.facts
    np.testing.assert_array_equal(generate(copy, *views), generate(pipe, *views))


def test_camera_encoding_comes_from_argument_then_facts_then_name(tmp_path):
    with_facts = write_folder(tmp_path / "tiny-6dof", seed=0, cape="4dof")
    assert load(with_facts).cape == "4dof"
    assert load(with_facts, cape="none").cape == "none"
    (with_facts / "escherjax.json").unlink()
    assert load(with_facts).cape == "6dof"
    with pytest.raises(UserError, match="camera encoding .*pass cape="):
        load(with_facts.rename(tmp_path / "tiny"))


def test_stored_names_of_older_libraries_are_read(tmp_path):
    """The VAE of Stable Diffusion 1.5 names its attention query, key, value, proj_attn."""
    folder = write_folder(tmp_path, seed=0)
    expected = load(folder).vae.state_dict()
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(path).items():
        for new, old in older.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        tensors[name] = tensor
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    for name, tensor in load(folder).vae.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_first_names_of_the_encoder_are_read(tmp_path):
    folder = write_folder(tmp_path, seed=0)
    expected = load(folder).image_encoder.state_dict()
    path = folder / "image_encoder" / "model.safetensors"
    tensors = {
        name.replace("grn.weight", "grn.gamma").replace("grn.bias", "grn.beta"): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    for name, tensor in load(folder).image_encoder.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_weights_under_other_names_are_pointed_out(tmp_path):
    folder = write_folder(tmp_path, seed=0)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_suffix(".fp16.safetensors"))
    encoder = folder / "image_encoder" / "model.safetensors"
    encoder.rename(encoder.with_name("pytorch_model.bin"))
    with pytest.raises(UserError, match="pass variant=") as refused:
        load(folder)
    assert "pytorch_model.bin, a pickle, which is not opened" in str(refused.value)


def test_a_variant_of_the_weights_is_read_by_its_name(folder, tmp_path):
    pipe = load(folder)
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    again = load(tmp_path, variant="fp16")
    assert torch.equal(again.unet.conv_in.weight, pipe.unet.conv_in.weight)


def test_every_problem_of_a_folder_is_listed(tmp_path):
    folder = write_folder(tmp_path, seed=0)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["surplus"] = tensors.pop("conv_in.bias")
    save_file(tensors, path, metadata={"format": "pt"})
    (folder / "image_encoder" / "model.safetensors").write_bytes(b"short")
    (folder / "vae" / "config.json").unlink()
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    facts = json.loads((folder / "escherjax.json").read_text())
    facts |= {"camera_axes": "opencv", "resolution": 0}
    (folder / "escherjax.json").write_text(json.dumps(facts))
    with pytest.raises(UserError) as refused:
        load(folder)
    message = str(refused.value)
    for part in (
        "missing_keys conv_in.bias",
        "unexpected_keys surplus",
        "image_encoder",
        "vae",
        "scheduler_config.json",
        "camera_axes must be 'opengl', got 'opencv'",
        "resolution must be a number of pixels, got 0",
    ):
        assert part in message, part


def test_wrong_input_is_refused_with_the_reason(pipe, rng):
    images, references, targets = inputs(rng)
    nan, mirrored, scaled = (references.copy() for _ in range(3))
    nan[1, 0, 0] = np.nan
    mirrored[0, :3, 0] *= -1
    scaled[1, :3, :3] *= 2
    for arguments, reason in [
        ((images[:1], references, targets), "one camera for each image"),
        ((images[:0], references, targets), "N >= 1"),
        (([], references, targets), "N >= 1"),
        ((["missing.png"], references, targets), "cannot read the image missing.png"),
        (([3], references, targets), "must be a PIL image or a path"),
        ((images[:, :8], references, targets), "must be square"),
        ((images * 255, references, targets), "divide 8-bit values by 255"),
        ((images, nan, targets), "view 1 holds NaN"),
        ((images, mirrored, targets), "view 0 is mirrored: det R .* got -1"),
        ((images, scaled, targets), "view 1 is not rigid: .R R.T - I. = 3"),
        ((images, references, targets[:0]), "one view at least"),
        ((images, references, targets[0]), r"must be \[views, 4, 4\]"),
        ((images, "cameras", targets), "must be an array of camera"),
    ]:
        with pytest.raises(UserError, match=reason):
            pipe(*arguments)
    for options, reason in [
        ({"output_type": "jpg"}, "output_type"),
        ({"num_inference_steps": 0}, "must be an integer, 1 to 1000"),
        ({"num_inference_steps": 1000}, "take fewer steps"),
        ({"latents": np.zeros((1, 4, 8, 8))}, "sides may differ"),
    ]:
        with pytest.raises(UserError, match=reason):
            pipe(images, references, targets, **options)


def test_unets_that_cannot_carry_the_encoding_are_refused(folder):
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", attention_head_dim=16)
    with pytest.raises(UserError, match="down_blocks.0.*16 heads of width 2") as refused:
        set_cape(unet, "6dof")
    assert "mid_block" not in str(refused.value)  # 16 heads of width 4
    set_cape(unet, "4dof")
    with pytest.raises(UserError, match="must be one of .*got '7dof'"):
        set_cape(unet, "7dof")


@torch.no_grad()
def test_attention_refuses_what_does_not_match(pipe, rng):
    _, references, targets = inputs(rng)
    latents, tokens = torch.zeros(2, 4, 8, 8), torch.zeros(1, 32, 32)
    poses = {
        "target_poses": view_poses("6dof", targets[None]),
        "reference_poses": view_poses("6dof", references[None]),
    }
    with pytest.raises(UserError, match="one latent for each"):
        pipe.unet(latents[:1], 1, tokens, cross_attention_kwargs=poses)
    with pytest.raises(UserError, match="reference tokens"):
        pipe.unet(latents, 1, tokens[:, :31], cross_attention_kwargs=poses)
    mask = torch.ones(1, 32)
    with pytest.raises(UserError, match="mask"):
        pipe.unet(latents, 1, tokens, encoder_attention_mask=mask, cross_attention_kwargs=poses)


def test_attention_that_knows_no_cameras_is_refused(tmp_path, rng):
    pipe = load(write_folder(tmp_path, seed=0))
    pipe.enable_attention_slicing()
    with pytest.raises(UserError, match="SlicedAttnProcessor, which knows no cameras"):
        generate(pipe, *inputs(rng))
    set_cape(pipe.unet, pipe.cape)
    assert np.isfinite(generate(pipe, *inputs(rng))).all()


def test_weights_that_are_not_finite_are_refused(tmp_path):
    folder = write_folder(tmp_path, seed=0)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.bias"][0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="tensor conv_in.bias has values that are not finite"):
        load(folder)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"latents": {"kind": "pixels", "patch": 4}}, "12 channels, but patches of 4 x 4 .* 48"),
        ({"resolution": 33}, "resolution must be a multiple of 2.*got 33"),
    ],
)
def test_facts_that_do_not_fit_the_network_are_refused(tmp_path, facts, message):
    folder = write_folder(tmp_path, seed=0, patch=2)
    path = folder / "escherjax.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 2.5}, "num_inference_steps must be an integer.*got 2.5"),
        ({"guidance_scale": "3"}, "guidance_scale must be a finite number, got '3'"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be .*got nan"),
        ({"images": Image.new("RGB", (8, 8))}, "images must be a list, got one Image"),
    ],
)
def test_arguments_of_other_types_are_refused(pipe, rng, options, message):
    images, references, targets = inputs(rng)[:3]
    arguments = {"images": images, "reference_cameras": references, "target_cameras": targets}
    with pytest.raises(UserError, match=message):
        pipe(**{**arguments, **options})
