"""What a training config's `data` fields name, opened: scenes to train on and held-out scenes."""

from __future__ import annotations

import itertools
from typing import Any

from ml_collections import ConfigDict

from escherjax.data import images, moments
from escherjax.data.batch import Batch
from escherjax.data.loader import BatchIterator, make_loader
from escherjax.data.loader_config import LoaderConfig, source_names
from escherjax.data.mixture import Mixture
from escherjax.data.procedural import ProceduralSource
from escherjax.data.shards import ShardSource, open_shards
from escherjax.errors import UserError
from escherjax.models import eschernet

# Procedural scenes are numbered; held-out ones are counted from here, far from any training scene.
FIRST_HELDOUT_SCENE = 1 << 30


def open_training_source(config: ConfigDict) -> Any:
    """The scenes to train on, a `Mixture` where `config.data.source` names several sources.

    Raises UserError naming every source that has none, or whose views are known to be too few.
    """
    data = config.data
    names = source_names(config.data.source)
    loader = _training_loader(config)
    loader.validate()
    opened: dict[str, ShardSource | ProceduralSource] = {}
    problems: list[str] = []
    for name in names:
        try:
            if name == "procedural":
                loader.check_views(data.num_views, "config.data.num_views: every procedural scene")
            else:
                opened[name] = source = open_shards(name, data.split)
                if data.latents:
                    _check_moments(name, config)
                if data.zoom and data.zoom[0] < 1:
                    _check_alpha(name, source)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    if "procedural" in names:  # rendered last: it takes longest, and cannot fail
        opened["procedural"] = ProceduralSource(
            config.seed, data.num_scenes, data.num_views, config.resolution
        )
    if len(names) == 1:
        return opened[names[0]]
    return Mixture({name: opened[name] for name in names}, data.weights)


def _check_alpha(name: str, source: ShardSource) -> None:
    """Raises UserError if the first picture is opaque, so that nothing is known around it.

    Others are looked at when they are drawn.
    """
    scene = source[0]
    picture = images.decode_image(scene.images[0], f"view 0 of scene '{scene.scene_id}' of {name}")
    if picture.shape[-1] == 3 or picture[..., 3].min() == 255:
        raise UserError(
            f"config.data.zoom below 1 looks beyond the pictures, but those of {name} are opaque, "
            "and nothing says what is around them; needed a zoom of 1 or more, or pictures with a "
            "transparent background."
        )


def _check_moments(folder: str, config: ConfigDict) -> None:
    """Raises UserError unless the stored moments of a data set are those this run would encode."""
    shape = eschernet.moments_shape(config)
    problems = moments.mismatches(
        moments.read_info(folder), config.resolution, config.data.background, shape
    )
    if problems:
        raise UserError(
            f"the stored moments of {folder} do not fit: {'; '.join(problems)}. Change the config, "
            "or make moments for it by data_prep.latents."
        )


def check_vae(config: ConfigDict, vae_params: Any) -> None:
    """Raises UserError unless this VAE made the stored moments that the config trains on.

    vae_params: host arrays.
    """
    if config.data.latents:
        fingerprint = moments.vae_fingerprint(vae_params)
        for folder in source_names(config.data.source):
            moments.check_vae(folder, fingerprint)


def training_batches(
    source: Any, config: ConfigDict, position: int, share: tuple[int, int] = (0, 1)
) -> BatchIterator:
    """Part `share`, (index, count), of every batch from the one numbered `position` on."""
    return make_loader(
        source,
        _training_loader(config),
        config.batch_size,
        process_index=share[0],
        process_count=share[1],
        start_step=position,
        num_threads=config.data.num_threads,
        prefetch=config.data.prefetch,
        num_workers=config.data.num_workers,
    )


def _training_loader(config: ConfigDict) -> LoaderConfig:
    return LoaderConfig(
        resolution=config.resolution,
        num_references=(config.min_references, config.num_references)
        if config.min_references
        else config.num_references,
        num_targets=config.num_targets,
        buckets=config.data.buckets,
        with_replacement=config.data.with_replacement,
        background=config.data.background,
        zoom=config.data.zoom,
        shift=config.data.shift,
        augment_views=config.data.augment_views,
        moments_shape=eschernet.moments_shape(config) if config.data.latents else (),
        on_bad_record=config.data.on_bad_record,
        seed=config.seed,
        shuffle=True,
    )


def heldout_batches(config: ConfigDict, share: tuple[int, int] = (0, 1)) -> list[Batch]:
    """Part `share`, (index, count), of fixed batches of held-out scenes with fixed views.

    Every scene has max(eval.num_references, num_references) references and eval.num_targets
    targets, all different views, never augmented. Of several sources the first one gives them all,
    so that figures compare between runs that add others.
    Raises UserError if there are too few scenes or views.
    """
    data, sizes = config.data, config.eval
    folder = source_names(config.data.source)[0]
    if sizes.num_scenes % sizes.batch_size:
        raise UserError(
            f"config.eval.num_scenes = {sizes.num_scenes} is not a multiple of "
            f"config.eval.batch_size = {sizes.batch_size}; change one of them."
        )
    num_references = max(*sizes.num_references, config.num_references)
    if folder == "procedural":
        num_views = max(data.num_views, num_references + sizes.num_targets)
        source: Any = ProceduralSource(
            config.seed, sizes.num_scenes, num_views, config.resolution, FIRST_HELDOUT_SCENE
        )
    else:
        try:
            source = open_shards(folder, data.heldout_split)
        except UserError as error:
            raise UserError(
                f"no held-out scenes to evaluate on: {error} Import with --heldout, or set "
                "config.data.heldout_split=train to look at training scenes, or "
                "config.eval_every_steps=0 and config.sample_every_steps=0 to do without."
            ) from error
    if len(source) < sizes.num_scenes:
        raise UserError(
            f"{folder} has {len(source)} scenes in split {data.heldout_split!r}; "
            f"config.eval.num_scenes = {sizes.num_scenes} needs more. Lower it (and "
            "config.eval.batch_size), or choose another config.data.heldout_split."
        )
    loader = make_loader(
        source,
        LoaderConfig(
            resolution=config.resolution,
            num_references=num_references,
            num_targets=sizes.num_targets,
            with_replacement=False,
            background=data.background,
            on_bad_record="stop",
            seed=config.seed,
            shuffle=False,
        ),
        sizes.batch_size,
        process_index=share[0],
        process_count=share[1],
        start_step=0,
        num_threads=data.num_threads,
        prefetch=data.prefetch,
    )
    batches = list(itertools.islice(loader, sizes.num_scenes // sizes.batch_size))
    loader.close()
    return batches
