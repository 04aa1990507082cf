"""Makes the weights of LPIPS from the ImageNet network that torchvision publishes.

    python -m escherjax.metrics.lpips_weights --net alex --backbone alexnet-owt-7be5be79.pth

The file of the backbone is downloaded by hand, for nothing here reaches out to the network:

    alex  https://download.pytorch.org/models/alexnet-owt-7be5be79.pth  (244 MB)
    vgg   https://download.pytorch.org/models/vgg16-397923af.pth        (553 MB)

Its SHA-256 is checked. The linear heads of LPIPS v0.1 (BSD licence, Richard Zhang et al., see
lpips_heads/LICENSE.txt) are part of escherjax. Reading the file takes PyTorch; afterwards it is not
needed: pip install 'escherjax[torch]'.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ml_dtypes import bfloat16
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from escherjax.errors import UserError, listed, run_command
from escherjax.files import whole_file

if TYPE_CHECKING:
    from escherjax.metrics.perceptual import LpipsWeights

ENVIRONMENT = "ESCHERJAX_LPIPS"
HEADS = Path(__file__).parent / "lpips_heads"


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A file of torchvision's; sha256: of the whole file, whose name holds its first 8 digits."""

    file_name: str
    sha256: str

    @property
    def url(self) -> str:
        return f"https://download.pytorch.org/models/{self.file_name}"


BACKBONES = {
    "alex": Backbone(
        "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    "vgg": Backbone(
        "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
}


def main(argv: Sequence[str]) -> None:
    """Runs the command; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m escherjax.metrics.lpips_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--net", choices=BACKBONES, required=True)
    parser.add_argument(
        "--backbone", metavar="FILE", type=Path, required=True, help="torchvision's file"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="where to write it, .safetensors (default: ~/.cache/escherjax/lpips_NET.safetensors, "
        "where the metric looks for it)",
    )
    args = parser.parse_args(argv)
    out = args.out or cached_file(args.net)
    convert(args.backbone, args.net, out)
    print(f"{out}: LPIPS v0.1 on {args.net}, {out.stat().st_size / 1e6:.1f} MB")


def cached_file(net: str) -> Path:
    """Where `load_lpips` looks last, and the command writes by default."""
    return Path.home() / ".cache" / "escherjax" / f"lpips_{net}.safetensors"


def load_lpips(net: str = "alex", path: str | Path | None = None) -> LpipsWeights:
    """Weights for `lpips`, written by `python -m escherjax.metrics.lpips_weights`.

    net: "alex", the convention of EscherNet, or "vgg". path: a file, or a folder that holds
    lpips_alex.safetensors or lpips_vgg.safetensors; None takes the environment variable
    ESCHERJAX_LPIPS, which may name either, and without it ~/.cache/escherjax. The first of these
    that is set is the one that counts.
    Raises UserError if the file is not there, saying how to make it, or not what it should be.
    """
    import jax.numpy as jnp

    from escherjax.metrics.perceptual import LpipsWeights, tensor_shapes

    _check_net(net)
    tensors = _read(_find(net, path), tensor_shapes(net), f"LPIPS on {net}")
    return LpipsWeights(net, {name: jnp.asarray(array) for name, array in tensors.items()})


def convert(backbone: Path, net: str, out: Path, sha256: str | None = None) -> None:
    """Writes the weights of LPIPS on `net` to `out`, a .safetensors file, whole or not at all.

    backbone: torchvision's file. sha256: what the file must have; None for that of torchvision.
    Raises UserError for another file, one that cannot be read, or an `out` that cannot be written.
    """
    from escherjax.metrics.perceptual import backbone_shapes, head_shapes

    _check_net(net)
    if out.suffix != ".safetensors":
        raise UserError(f"--out must end in .safetensors, got {out}.")
    _check_sha256(backbone, net, sha256 or BACKBONES[net].sha256)
    tensors = {
        **_read(backbone, backbone_shapes(net), f"torchvision's {net}", others="classifier."),
        **_read(HEADS / f"{net}.safetensors", head_shapes(net), "the heads of LPIPS"),
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as partial:
            save_file(tensors, partial, {"format": "pt"})
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error}); name another file by --out."
        ) from error


def _check_net(net: str) -> None:
    if net not in BACKBONES:
        raise UserError(f"LPIPS: net must be one of {', '.join(BACKBONES)}, got {net!r}.")


def _find(net: str, path: str | Path | None) -> Path:
    """The file that `load_lpips` is to read; UserError where there is none."""
    said = path if path is not None else os.environ.get(ENVIRONMENT) or None
    if said is None:
        file, source = cached_file(net), ""
    else:
        file = Path(said).expanduser()
        source = "" if path is not None else f" ({ENVIRONMENT} says so)"
        if file.is_dir():
            file = file / f"lpips_{net}.safetensors"
    if file.is_file():
        return file
    backbone = BACKBONES[net]
    raise UserError(
        f"LPIPS on {net} needs its weights, and {file}{source} is no file. Download {backbone.url} "
        f"and run: python -m escherjax.metrics.lpips_weights --net {net} --backbone "
        f"{backbone.file_name}. A file made before is named by {ENVIRONMENT}=FILE."
    )


def _check_sha256(path: Path, net: str, expected: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error}); download {BACKBONES[net].url}."
        ) from error
    if found == expected:
        return
    for other, backbone in BACKBONES.items():
        if found == backbone.sha256:
            raise UserError(f"{path} is the backbone of --net {other}, not {net}.")
    raise UserError(
        f"{path} has SHA-256 {found}; needed {expected}, or the distances are not LPIPS. Download "
        f"{BACKBONES[net].url} again."
    )


def _read(
    path: Path, shapes: Mapping[str, tuple[int, ...]], what: str, others: str | None = None
) -> dict[str, np.ndarray]:
    """The tensors `shapes` of a file, float32; no more may be there, but for names that
    begin with `others`."""
    try:
        stored = _torch_tensors(path) if path.suffix == ".pth" else load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} is not {what}: {error}") from error
    problems = [f"{name} is missing." for name in shapes.keys() - stored.keys()]
    problems += [
        f"{ascii(name)[1:-1]} is not part of it."
        for name in stored.keys() - shapes.keys()
        if others is None or not name.startswith(others)
    ]
    values = {}
    for name, shape in shapes.items() if not problems else ():
        array = stored[name]
        if array.shape != shape or array.dtype not in (np.float32, np.float16, bfloat16):
            problems.append(f"{name} is {array.dtype} {array.shape}, expected float32 {shape}.")
            continue
        values[name] = array.astype(np.float32)
        if not np.isfinite(values[name]).all():
            problems.append(f"{name} holds NaN or infinity.")
    if problems:
        raise UserError(f"{path} is not {what}: {listed(sorted(problems))}")
    return values


def _torch_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a pickle of PyTorch's, opened by its restricted reader, which runs no code.

    Raises ValueError where PyTorch is missing or refuses the file.
    """
    try:
        import torch
    except ImportError:
        raise ValueError(
            "a pickle is opened by PyTorch only, which is not installed (pip install torch)"
        ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):  # CVE-2025-32434
        raise ValueError(f"PyTorch {torch.__version__} does not open pickles safely; 2.6 does")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): tensor.numpy() for name, tensor in content.items()}
    except Exception as error:  # a damaged pickle makes its reader raise nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"PyTorch does not open it with weights_only=True ({reason})") from error


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
