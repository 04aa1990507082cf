"""Which file of a component's folder holds its weights.

diffusers and transformers write STEM.safetensors, in shards STEM.safetensors.index.json, and as
variants STEM.fp16.safetensors and STEM.safetensors.index.fp16.json; with .bin in place of
.safetensors for pickles.
"""

from __future__ import annotations

import re
from pathlib import Path

_SUFFIXES = ("safetensors", "bin")  # the first kind wins
_OTHER_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\b")


def find_weights(folder: Path, stems: tuple[str, ...], problems: list[str]) -> Path | None:
    """The file or index to read; None, with a problem added, where there is none or no one.

    stems: names without suffixes, the usual one first. A safetensors file wins over a .bin; the
    plain name over a variant; a variant over the only safetensors file of another name.
    """
    for suffix in _SUFFIXES:
        for candidates in _ranks(folder, stems, suffix):
            if len(candidates) == 1:
                return candidates[0]
            if candidates:
                found = ", ".join(path.name for path in candidates)
                problems.append(
                    f"{folder}: has several files of weights, {found}; keep the one to use here, "
                    f"or link it to {stems[0]}.{suffix} if none has that name"
                )
                return None
    problems.append(f"{folder / stems[0]}.safetensors: {_why_missing(folder, stems)}")
    return None


def _ranks(folder: Path, stems: tuple[str, ...], suffix: str) -> list[list[Path]]:
    """Candidates of one kind: plain names, variants, and any other safetensors files."""
    names = "|".join(map(re.escape, stems))
    variant = r"(\.[\w-]+)"
    single = rf"(?:{names})%s\.{suffix}"
    index = rf"(?:{names})\.{suffix}\.index%s\.json"
    whole = [path for path in sorted(folder.iterdir()) if path.is_file()]

    def matching(middle: str) -> list[Path]:
        pattern = re.compile(f"{single % middle}|{index % middle}")
        return [p for p in whole if pattern.fullmatch(p.name) and not _SHARD.search(p.name)]

    ranks = [matching(""), matching(variant)]
    if suffix == "safetensors":
        ranks.append([p for p in whole if p.suffix == ".safetensors" and not _SHARD.search(p.name)])
    return ranks


def _why_missing(folder: Path, stems: tuple[str, ...]) -> str:
    if any((folder / f"{stem}.{suffix}").is_dir() for stem in stems for suffix in _SUFFIXES):
        return "is a folder; needed a file"
    names = sorted(path.name for path in folder.iterdir())
    shards = [name for name in names if _SHARD.search(name)]
    if shards:
        return f"is missing, and so is the .index.json that says what is in {', '.join(shards)}"
    pickles = [name for name in names if name.endswith(_OTHER_PICKLES)]
    if pickles:
        return (
            f"is missing, found only {', '.join(pickles)}, which is not opened: a pickle can run "
            f"any code. Name it {stems[-1]}.bin if it holds this network's tensors by name and "
            "you trust it, or save it again as safetensors"
        )
    return "is missing"
