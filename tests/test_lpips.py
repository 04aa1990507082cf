"""LPIPS equals PyTorch; its weights are read from torchvision's file and nothing else."""

import hashlib

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from safetensors.numpy import load_file, save_file

from escherjax.errors import UserError
from escherjax.metrics import load_lpips, lpips, lpips_weights
from tests.helpers import torch_lpips


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


NETS = ("alex", "vgg")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Of each net: (file of random weights as torchvision has them, the same converted)."""
    files = {}
    for net in NETS:
        folder = tmp_path_factory.mktemp(net)
        backbone, out = folder / "b.pth", folder / "new" / f"lpips_{net}.safetensors"
        state = torch_lpips.random_backbone(net) | {"classifier.1.weight": torch.zeros(2, 2)}
        # torchvision's file of VGG is in the form from before PyTorch 1.6, AlexNet's in the new
        torch.save(state, backbone, _use_new_zipfile_serialization=net == "alex")
        lpips_weights.convert(backbone, net, out, sha256(backbone))
        files[net] = backbone, out
    return files


def blurred_noise(rng, shape):
    """uint8 pictures with structure at several scales."""
    coarse = rng.uniform(0, 255, (shape[0], shape[1] // 8 + 1, shape[2] // 8 + 1, 3))
    fine = coarse.repeat(8, 1).repeat(8, 2)[:, : shape[1], : shape[2]]
    return (fine + rng.normal(0, 20, (*shape, 3))).clip(0, 255).astype(np.uint8)


def torch_values(net, backbone, images, references):
    """The witness's distances, with the heads that escherjax ships."""
    state = torch.load(backbone, weights_only=True)
    state = {name: x for name, x in state.items() if name.startswith("features.")}
    shipped = load_file(lpips_weights.HEADS / f"{net}.safetensors")
    heads = [torch.tensor(shipped[f"lin{i}.model.1.weight"]) for i in range(5)]
    symmetric = [
        torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2) / 127.5 - 1
        for x in (images, references)
    ]
    return torch_lpips.lpips(*symmetric, net, state, heads).numpy()


@pytest.mark.parametrize(
    "net, shape",
    [
        ("alex", (1, 256, 256)),
        ("alex", (2, 31, 75)),  # 31 is the smallest side: it leaves one row at the end
        ("vgg", (2, 37, 16)),  # 16 likewise
        pytest.param("vgg", (1, 256, 256), marks=pytest.mark.slow),
        pytest.param("vgg", (2, 64, 64), marks=pytest.mark.slow),
        pytest.param("alex", (2, 64, 64), marks=pytest.mark.slow),
        pytest.param("alex", (1, 250, 199), marks=pytest.mark.slow),
    ],
)
def test_lpips_is_pytorchs(made, rng, net, shape):
    backbone, file = made[net]
    weights = load_lpips(net, file)
    images, references = (blurred_noise(rng, shape) for _ in range(2))
    images[0] = (0.7 * references[0]).astype(np.uint8)  # near as well as far ones
    expected = torch_values(net, backbone, images, references)
    assert expected.min() > 0.05
    # float32 sums of up to 4608 products in another order, of distances below 1
    np.testing.assert_allclose(lpips(images, references, weights), expected, rtol=0, atol=1e-5)
    # one batch holds both, and a product may be summed differently in its last rows
    np.testing.assert_allclose(lpips(images, images, weights), 0, rtol=0, atol=1e-12)


def test_batches_axes_and_number_formats_change_nothing(made, rng):
    backbone, file = made["alex"]
    weights = load_lpips("alex", file)
    images, references = (blurred_noise(rng, (3, 32, 32)) for _ in range(2))
    expected = torch_values("alex", backbone, images, references)
    unit = [x[None] / np.float32(255) for x in (images, references)]
    got = lpips(*unit, weights, batch_size=2)
    assert got.shape == (1, 3)
    np.testing.assert_allclose(got[0], expected, rtol=0, atol=1e-5)  # as above
    with pytest.raises(UserError, match=r"lpips \(alex\).*at least 31 x 31 pixels, got 30 x 32"):
        lpips(images[:, :30], references[:, :30], weights)
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        lpips(images, references, weights, batch_size=0)


def test_weights_are_found_by_argument_then_variable_then_cache(made, tmp_path, monkeypatch):
    net, file = "vgg", made["vgg"][1]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(lpips_weights.ENVIRONMENT, raising=False)
    with pytest.raises(UserError) as refused:
        load_lpips(net)
    for text in (str(tmp_path / ".cache/escherjax"), lpips_weights.BACKBONES[net].url, "--net"):
        assert text in str(refused.value)
    cached = lpips_weights.cached_file(net)
    cached.parent.mkdir(parents=True)
    cached.symlink_to(file)
    assert load_lpips(net).net == net
    monkeypatch.setenv(lpips_weights.ENVIRONMENT, str(tmp_path))  # has no such file: not the cache
    with pytest.raises(UserError, match=rf"{tmp_path}/lpips_{net}.*ESCHERJAX_LPIPS says so"):
        load_lpips(net)
    monkeypatch.setenv(lpips_weights.ENVIRONMENT, str(file.parent))
    assert load_lpips(net).net == net
    with pytest.raises(UserError, match="elsewhere.safetensors is no file"):
        load_lpips(net, tmp_path / "elsewhere.safetensors")


@pytest.mark.parametrize("net", NETS)
def test_another_file_than_torchvisions_is_refused(made, tmp_path, net):
    backbone = made[net][0]
    out = tmp_path / "out.safetensors"
    command = ["--net", net, "--backbone", str(backbone), "--out", str(out)]
    needed = lpips_weights.BACKBONES[net].sha256
    with pytest.raises(UserError, match=f"SHA-256 {sha256(backbone)}; needed {needed}"):
        lpips_weights.main(command)
    with pytest.raises(UserError, match="must end in .safetensors"):
        lpips_weights.main([*command[:-1], str(tmp_path / "out.pth")])
    with pytest.raises(UserError, match="missing.pth cannot be read"):
        lpips_weights.convert(tmp_path / "missing.pth", net, out)
    assert not out.exists() and needed.startswith(
        lpips_weights.BACKBONES[net].file_name.split("-")[-1].removesuffix(".pth")
    )


def test_every_tensor_that_does_not_fit_is_named(made, tmp_path):
    net = "alex"
    tensors = load_file(made[net][1])
    tensors["features.0.bias"] = tensors["features.0.bias"][:-1]
    tensors["features.3.bias"] = tensors["features.3.bias"] * np.nan
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError) as refused:
        load_lpips(net, tmp_path / "bad.safetensors")
    assert r"features.0.bias is float32 (63,), expected float32 (64,)." in str(refused.value)
    assert "features.3.bias holds NaN" in str(refused.value)
    tensors["more"] = tensors.pop("features.6.weight")
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError) as refused:
        load_lpips(net, tmp_path / "bad.safetensors")
    assert "features.6.weight is missing. more is not part of it." in str(refused.value)


def test_a_pickle_that_would_run_code_is_not_opened(tmp_path):
    class Runs:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"features.0.weight": Runs()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="does not open it with weights_only=True"):
        lpips_weights.convert(
            tmp_path / "evil.pth", "alex", tmp_path / "o.safetensors", sha256(tmp_path / "evil.pth")
        )
