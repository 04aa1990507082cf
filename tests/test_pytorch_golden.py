"""The PyTorch side against the recorded numbers of the original network.

Tolerances are those that the records come with: a few times the original's own float32 rounding.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from escherjax.pytorch import EscherNetPipeline, ViewPoses, preprocess, view_poses
from escherjax.pytorch.attention import turn
from escherjax.pytorch.encoder import encode_tokens
from tests.helpers.golden_cameras import cameras_from_poses

torch.set_num_threads(1)

UNET_CASES = ("b1_i1_o1", "b1_i3_o3", "b2_i2_o5", "b1_i3_o2_ns", "b1_i3_o3_32")


@pytest.fixture(scope="module")
def pipes(golden_dir):
    loaded = {}
    for name in ("6dof", "4dof"):
        pipe = EscherNetPipeline.from_pretrained(golden_dir / f"eschernet-{name}-tiny")
        pipe.set_progress_bar_config(disable=True)
        loaded[name] = pipe
    return loaded


@pytest.fixture(scope="module")
def recorded(golden, pipes):
    """(cape name, pipeline, tensors by name) of a tiny network of the original."""
    name, _, arrays = golden
    return name, pipes[name], lambda key: torch.from_numpy(arrays[key])


def poses_of(name, tensor, case):
    """The poses that go into attention, as recorded: {"target_poses", "reference_poses"}."""

    def poses(side):
        key = tensor(f"{case}/pose_{side}")
        return ViewPoses(tensor(f"{case}/pose_{side}_inv") if name == "6dof" else key, key)

    return {"target_poses": poses("out"), "reference_poses": poses("in")}


def signed(images_u8):
    return images_u8 / 127.5 - 1


def assert_near(actual, expected, tolerance):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", ["s0", "s1", "s2", "s3"])
def test_queries_and_keys_are_turned_as_recorded(recorded, case):
    name, _, tensor = recorded
    poses = poses_of(name, tensor, f"cape/{case}")
    q = turn(name, tensor(f"cape/{case}/q"), poses["target_poses"].query)
    k = turn(name, tensor(f"cape/{case}/k"), poses["reference_poses"].key)
    assert_near(q, tensor(f"cape/{case}/q_enc"), 5e-6)
    assert_near(k, tensor(f"cape/{case}/k_enc"), 5e-6)


@torch.no_grad()
def test_attention_is_the_recorded_one(recorded):
    name, pipe, tensor = recorded
    transformer = pipe.unet.down_blocks[1].attentions[0]
    block, poses = transformer.transformer_blocks[0], poses_of(name, tensor, "attn")
    x, tokens = tensor("attn/x"), tensor("attn/ehs")
    assert_near(block.attn1(x, **poses), tensor("attn/self_out"), 1e-5)
    assert_near(block.attn2(x, tokens, **poses), tensor("attn/cross_out"), 1e-5)
    whole = block(x, encoder_hidden_states=tokens, cross_attention_kwargs=poses)
    assert_near(whole, tensor("attn/block_out"), 1e-5)
    out = transformer(
        tensor("attn/x_nchw"), encoder_hidden_states=tokens, cross_attention_kwargs=poses
    )
    assert_near(out.sample, tensor("attn/transformer2d_out"), 1e-5)


@torch.no_grad()
def test_tokens_are_the_recorded_ones(recorded):
    _, pipe, tensor = recorded
    images = signed(tensor("image_encoder/images_u8"))
    assert_near(preprocess(images[:1]), tensor("image_encoder/preprocessed"), 2e-5)
    assert_near(encode_tokens(pipe.image_encoder, images), tensor("image_encoder/tokens"), 2e-4)


@torch.no_grad()
@pytest.mark.parametrize("case", UNET_CASES)
def test_unet_is_the_recorded_one(recorded, case):
    """2e-5 separates every known mistake of a port, down to a wrong epsilon in a norm."""
    name, pipe, tensor = recorded
    out = pipe.unet(
        tensor(f"unet/{case}/x"),
        tensor(f"unet/{case}/t"),
        tensor(f"unet/{case}/ehs"),
        cross_attention_kwargs=poses_of(name, tensor, f"unet/{case}"),
    ).sample
    assert_near(out, tensor(f"unet/{case}/out"), 2e-5)


@torch.no_grad()
def test_latents_and_images_are_the_recorded_ones(recorded):
    _, pipe, tensor = recorded
    mean, logvar = pipe.encode_latents(signed(tensor("vae/images128_u8")))
    assert_near(mean, tensor("vae/mean128"), 1e-4)
    assert_near(logvar, tensor("vae/logvar128"), 1e-4)
    assert_near(pipe.decode_latents(tensor("vae/z")), tensor("vae/decoded"), 8e-5)


@pytest.mark.parametrize(
    ("case", "steps", "guidance", "tolerance"),
    [("g3_s5_256", 5, 3.0, 1e-3), ("g3_s50_128", 50, 3.0, 2e-3), ("g1_s5_128", 5, 1.0, 3e-4)],
)
def test_pipeline_makes_the_recorded_views(golden, pipes, case, steps, guidance, tolerance):
    name, _, arrays = golden
    pipe, case = pipes[name], f"pipeline/{case}"
    final = pipe(
        np.moveaxis(arrays[f"{case}/input_images_u8"], 1, -1) / np.float32(255),
        cameras_from_poses(name, arrays[f"{case}/pose_in"][0]),
        cameras_from_poses(name, arrays[f"{case}/pose_out"][0]),
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=arrays[f"{case}/latents"],
        output_type="latent",
    ).images
    assert_near(final, arrays[f"{case}/final_latents"], tolerance)
    whole = f"{case}/images" in arrays
    expected = arrays[f"{case}/images" if whole else f"{case}/image_view0"]
    with torch.no_grad():
        views = pipe.decode_latents(final[: len(expected)] / 0.18215).movedim(1, -1)
    assert_near((views / 2 + 0.5).clamp(0, 1), expected, 1e-4)


def c2w_opencv(w2c_opengl):
    """Camera-to-world with OpenCV axes of recorded matrices [..., 3 or 4, 4]."""
    rotation, translation = w2c_opengl[..., :3, :3], w2c_opengl[..., :3, 3:]
    c2w = np.zeros((*w2c_opengl.shape[:-2], 4, 4))
    c2w[..., :3, :3] = np.swapaxes(rotation, -1, -2) * [1, -1, -1]
    c2w[..., :3, 3:] = -np.swapaxes(rotation, -1, -2) @ translation
    c2w[..., 3, 3] = 1
    return c2w


def test_matrices_of_cameras_are_the_recorded_ones(golden_dir):
    """Float32 rounding of entries up to 2.2; the records are float64."""
    arrays = np.load(golden_dir / "conversions-6dof.npz")
    poses = view_poses("6dof", c2w_opencv(arrays["objaverse/w2c_3x4"])[None])
    assert_near(poses.key[0], arrays["objaverse/pose_6dof"], 1e-6)
    assert_near(poses.query[0], arrays["objaverse/pose_6dof_inv_T"], 1e-6)


@pytest.mark.parametrize("case", ["objaverse", "special"])
def test_angles_of_cameras_are_the_recorded_ones(golden_dir, case):
    """Float32 rounding of angles up to pi; on the circle, since -pi and pi are the same turn."""
    arrays = np.load(golden_dir / "conversions-4dof.npz")
    poses = view_poses("4dof", c2w_opencv(arrays[f"{case}/w2c_3x4"])[None])
    assert_near(poses.query[0].cos(), np.cos(arrays[f"{case}/pose_4dof"]), 1e-6)
    assert_near(poses.query[0].sin(), np.sin(arrays[f"{case}/pose_4dof"]), 1e-6)
