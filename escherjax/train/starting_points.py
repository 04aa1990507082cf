"""Reads the parameters that a new run starts from, part by part, and makes a table of them.

`config.init` names the sources: a whole network (`pipeline`, a folder of PyTorch weights, or
`workdir`, an earlier run), and single parts (`unet`, `encoder`, `vae`) that go before it. A part
without a source starts from random numbers; the VAE, which is not trained, has to have one.
"""

from __future__ import annotations

import dataclasses
import logging
import operator
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from escherjax.errors import UserError, aligned
from escherjax.models.eschernet import EscherNet, Params
from escherjax.models.initialization import draw_parameters
from escherjax.weights import names, parts
from escherjax.weights.parts import StoredPart
from escherjax.weights.run_params import ParamPath

log = logging.getLogger("escherjax.train")

RANDOM = "random numbers"
_FIELDS = {"unet": "unet", "image_encoder": "encoder", "vae": "vae"}  # part -> config.init field
_MOST_NAMES = 3  # in a cell of the table


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """Where one part of the network starts."""

    part: str
    source: str  # as the user named it
    loaded: tuple[int, int]  # how many (tensors, parameters) came from there
    initialised: tuple[int, int]  # how many were initialised at random instead
    left: tuple[str, ...]  # paths of the latter
    ignored: tuple[str, ...]  # tensors of the source that this network has no place for


def initial_params(
    config: ConfigDict, model: EscherNet, shapes: Params
) -> tuple[Params, list[StartingPoint]]:
    """Reads or draws all parameters that a new run starts from.

    Every tensor is read once; of a source, only the parts in use are read. With
    config.init.allow_partial, U-Net and encoder take what fits.

    Args:
        config: of the run.
        model: its network.
        shapes: the parameter tree {"unet", "image_encoder", "vae"} as ShapeDtypeStructs.

    Returns:
        (host arrays, where each part is from).

    Raises:
        UserError: lists, for all parts, unreadable files, sizes that differ, and every missing,
            mis-shaped or surplus tensor.
    """
    flat = traverse_util.flatten_dict(shapes)
    errors: list[str] = []
    params: dict[ParamPath, np.ndarray] = {}
    table: list[StartingPoint] = []
    for part in _used_parts(config):
        wanted = {path: leaf for path, leaf in flat.items() if path[0] == part}
        try:
            stored = _open_source(config, part)
            fitting = _fitting(stored, part, wanted, model, config) if stored else []
        except UserError as error:
            errors.append(str(error))
            continue
        if not errors:  # else nothing of this will be used
            params |= stored.read(fitting) if stored else {}
            table.append(_starting_point(part, stored, set(fitting), wanted))
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    missing = {path: leaf for path, leaf in flat.items() if path not in params}
    drawn = draw_parameters(traverse_util.unflatten_dict(missing), config.seed)
    tree = traverse_util.unflatten_dict(params | traverse_util.flatten_dict(drawn))
    return {part: {} for part in shapes} | tree, table  # empty parts are kept


def format_table(table: Sequence[StartingPoint]) -> str:
    """The starting points as lines of text, one row for each part."""
    header = ("part", "source", "tensors", "parameters", "left at initialisation", "ignored")
    rows = [
        (
            point.part,
            point.source,
            f"{point.loaded[0]:,}",
            f"{point.loaded[1]:,}",
            _summary(point.left, point.initialised),
            _summary(point.ignored),
        )
        for point in table
    ]
    return textwrap.indent(aligned([header, *rows], right=(2, 3)), "  ")


def _used_parts(config: ConfigDict) -> list[str]:
    init = config.init
    if config.latents.kind != "vae":
        return [part for part in _FIELDS if part != "vae"]
    if not (init.vae or init.pipeline or init.workdir):
        raise UserError(
            "config.init.pipeline, config.init.workdir or config.init.vae must name weights where "
            "config.latents.kind = 'vae': latents of a frozen VAE cannot come from random weights. "
            "Name a folder of weights, or set config.latents.kind=pixels."
        )
    return list(_FIELDS)


def _open_source(config: ConfigDict, part: str) -> StoredPart | None:
    """What a part starts from; None for random numbers."""
    init = config.init
    if folder := init[_FIELDS[part]] or init.pipeline:
        return parts.open_folder(folder, part)
    if init.workdir:
        return parts.open_workdir(init.workdir, init.workdir_weights, part)
    return None


def _fitting(
    stored: StoredPart,
    part: str,
    wanted: dict[ParamPath, Any],
    model: EscherNet,
    config: ConfigDict,
) -> list[ParamPath]:
    """Paths of the tensors to take; UserError with all that differs, unless it may differ."""
    ours = parts.sizes_of(model, part)
    sizes = [
        f"config.{_config_group(part)}.{field.name}: {theirs} there, {needed} in this model"
        for field in dataclasses.fields(ours)
        if stored.sizes is not None
        and (theirs := getattr(stored.sizes, field.name)) != (needed := getattr(ours, field.name))
    ]
    fitting, tensors = [], []
    for path, leaf in wanted.items():
        if path not in stored.shapes:
            tensors.append(f"tensor {_name(path)} {list(leaf.shape)} is missing")
        elif stored.shapes[path] != tuple(leaf.shape):
            found = list(stored.shapes[path])
            tensors.append(f"tensor {_name(path)} is {found}, expected {list(leaf.shape)}")
        else:
            fitting.append(path)
    tensors += [
        f"tensor {_name(path)} {list(shape)} is surplus"
        for path, shape in stored.shapes.items()
        if path not in wanted
    ]
    differences = sizes + tensors
    partial = config.init.allow_partial and part != "vae"
    if differences and not partial:
        listed = "".join(f"\n  - {line}" for line in differences)
        remedy = " With config.init.allow_partial=True, tensors that do not fit start at random."
        remedy = "" if part == "vae" else remedy
        raise UserError(
            f"The {part} in {stored.source} is of another network; {len(differences)} "
            f"difference(s) found:{listed}\nChange the config to the sizes there, or take other "
            f"weights.{remedy}"
        )
    _warn(stored, part, sizes, config)
    return fitting


def _warn(stored: StoredPart, part: str, sizes: list[str], config: ConfigDict) -> None:
    """Logs what does not hinder loading, but changes what the numbers mean here."""
    lines = list(sizes)
    if part == "unet":
        lines += [
            f"config.{name}: {theirs} there, {ours} in this run"
            for name, theirs in stored.trained_for.items()
            if theirs != (ours := operator.attrgetter(name)(config))
        ]
    for line in lines:
        log.warning("%s from %s: %s", part, stored.source, line)


def _config_group(part: str) -> str:
    return "latents.vae" if part == "vae" else _FIELDS[part]


def _starting_point(
    part: str, stored: StoredPart | None, taken: set[ParamPath], wanted: dict[ParamPath, Any]
) -> StartingPoint:
    left = {path: leaf for path, leaf in wanted.items() if path not in taken}
    ignored = [_name(path) for path in stored.shapes if path not in taken] if stored else []
    return StartingPoint(
        part=part,
        source=stored.source if stored else RANDOM,
        loaded=_count(leaf for path, leaf in wanted.items() if path in taken),
        initialised=_count(left.values()),
        left=tuple(map(_name, left)),
        ignored=(*(stored.unused if stored else ()), *ignored),
    )


def _count(leaves: Iterable[Any]) -> tuple[int, int]:
    leaves = list(leaves)
    return len(leaves), names.count_parameters(leaves)


def _name(path: ParamPath) -> str:
    return "/".join(path)


def _summary(tensors: Sequence[str], count: tuple[int, int] | None = None) -> str:
    """How many, and the first few by name."""
    if not tensors:
        return "0"
    size = f" ({count[1]:,} parameters)" if count else ""
    rest = ", ..." if len(tensors) > _MOST_NAMES else ""
    return f"{len(tensors):,}{size}: {', '.join(tensors[:_MOST_NAMES])}{rest}"
