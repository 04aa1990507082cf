"""Adds VAE moments of every view to a data set, so that training need not encode pictures.

    python -m data_prep.latents --weights WEIGHTS --data SHARDS --out SHARDS2
    python -m escherjax.train ... --config.data.source=SHARDS2 --config.data.latents=True

Each record is copied, pictures and all, with the moments beside it. All devices of this machine
encode; of several processes each takes its share of the shards. Stopped and started again it goes
on, as an importer does.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.lib import importing, output, tasks
from data_prep.lib.tasks import Imported, ShardTask, Skipped
from escherjax.errors import UserError, run_command

BACKGROUNDS = ("white", "black", "zero123")
GROUP_BATCHES = 8  # batches in one go: scenes end within a batch, so only the last is padded


def argument_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.latents", description="Adds VAE moments to shards."
    )
    add = parser.add_argument
    add(
        "--weights",
        required=True,
        help="whose VAE encodes: a folder or hub name of PyTorch weights, or a work directory; "
        "what config.init names in training",
    )
    add("--data", required=True, help="folder of shards, or its address")
    importing.add_output_arguments(parser, limit="only the first so many scenes of each split")
    same = "of the training to come (default %(default)s)"
    add("--resolution", type=int, default=256, help=f"config.resolution {same}")
    background_help = f"config.data.background {same}"
    add("--background", choices=BACKGROUNDS, default="zero123", help=background_help)
    batch_help = "views for each device (default %(default)s)"
    add("--batch-size", type=int, default=32, help=batch_help)
    dtype_help = "of the encoder; moments are stored as bfloat16 (default %(default)s)"
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help=dtype_help)
    workers_help = "threads that decode pictures (default: number of cores, %(default)s)"
    add("--workers", type=int, default=os.cpu_count(), help=workers_help)
    return parser


class Encoder:
    """Moments of pictures on all devices of this machine.

    Args:
        vae: a VAE module.
        params: its host arrays.
        batch_size: views for each device.
    """

    def __init__(self, vae: Any, params: Any, batch_size: int):
        import jax
        import jax.numpy as jnp
        import numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec

        from escherjax.data.batch import unit_images
        from escherjax.devices.chips import compiler_options

        devices = jax.local_devices()
        mesh = Mesh(np.array(devices), ("data",))
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        self.batch_size = batch_size * len(devices)

        def encode(params: Any, pictures: jax.Array) -> jax.Array:
            mean, logvar = vae.apply({"params": params}, unit_images(pictures), method="encode")
            return jnp.concatenate([mean, logvar], axis=-1).astype(jnp.bfloat16)

        self._encode = jax.jit(
            encode, out_shardings=self._split, compiler_options=compiler_options(mesh)
        )

    def start(self, pictures: Any) -> list[Any]:
        """Begins to encode uint8 [n, H, W, 3]; gives moments of whole batches, not waited for."""
        import jax
        import numpy as np

        missing = -len(pictures) % self.batch_size
        padded = np.concatenate([pictures, np.zeros((missing, *pictures.shape[1:]), np.uint8)])
        batches = np.split(padded, len(padded) // self.batch_size)
        return [self._encode(self._params, jax.device_put(b, self._split)) for b in batches]


@dataclasses.dataclass(frozen=True)
class MomentsReader:
    """Reads scenes of a source in order and adds their moments; a bad record is skipped.

    Threads read and decode ahead while the devices encode.
    """

    source: Any  # of scenes, by number
    encoder: Encoder
    resolution: int
    background: str
    workers: int

    def __call__(self, places: Sequence[int]) -> Iterator[Imported | Skipped]:
        import numpy as np

        encoding: tuple[list[Any], list[Any]] | None = None
        for group in self._groups(places):
            pictures = [item[1] for item in group if not isinstance(item, Skipped)]
            started = self.encoder.start(np.concatenate(pictures)) if pictures else []
            if encoding:
                yield from _finish(*encoding)
            encoding = group, started
        if encoding:
            yield from _finish(*encoding)

    def _groups(self, places: Sequence[int]) -> Iterator[list[Any]]:
        """Lists of (scene, pictures) and Skipped, with views for some batches in each list."""
        import numpy as np

        from escherjax.data.rows import read_views

        def read(place: int) -> Any:
            name = f"record {place}"
            try:
                scene = self.source[place]
                name = scene.scene_id
                views = np.arange(scene.num_views)
                return scene, read_views(scene, views, self.resolution, self.background)[0]
            except Exception as error:
                return tasks.skip(name, error, name)

        group: list[Any] = []
        views = 0
        for item in tasks.read_ahead(read, places, self.workers):
            group.append(item)
            views += 0 if isinstance(item, Skipped) else len(item[1])
            if views >= GROUP_BATCHES * self.encoder.batch_size:
                yield group
                group, views = [], 0
        if group:
            yield group


def _finish(group: list[Any], started: list[Any]) -> Iterator[Imported | Skipped]:
    """Waits for the moments of a group and gives each scene its own."""
    import numpy as np

    moments = np.concatenate(started) if started else np.empty(0)
    first = 0
    for item in group:
        if isinstance(item, Skipped):
            yield item
            continue
        last = first + len(item[1])
        yield Imported(dataclasses.replace(item[0], moments=moments[first:last]))
        first = last


def make_tasks(
    args: argparse.Namespace, sources: dict[str, Any], encoder: Encoder
) -> list[ShardTask]:
    """A task for every shard of every split: the same records in the same shards as before."""
    made = []
    for split, source in sources.items():
        read = MomentsReader(source, encoder, args.resolution, args.background, args.workers)
        ends = source.shard_ends
        limit = len(source) if args.limit is None else min(args.limit, len(source))
        starts = [start for start in (0, *ends[:-1]) if start < limit]
        for shard, (start, end) in enumerate(zip(starts, ends, strict=False)):
            places = range(start, min(end, limit))
            names = [f"record {place}" for place in places]
            made.append(ShardTask(args.out, split, shard, len(starts), names, read, places))
    return made


def main(argv: Sequence[str]) -> None:
    """Runs the command; see --help."""
    args = argument_parser().parse_args(argv)
    importing.check_at_least(args, resolution=1, batch_size=1, limit=1, workers=1)

    import jax
    import jax.numpy as jnp
    from jax.experimental import multihost_utils

    from escherjax.data import moments, shards
    from escherjax.models.vae import VAE
    from escherjax.weights import facts, parts

    sources = {
        split: shards.open_shards(args.data, split) for split in shards.split_names(args.data)
    }
    config, params = parts.read_vae(args.weights)
    reduction = 2 ** (len(config.block_channels) - 1)
    if args.resolution % reduction:
        raise UserError(
            f"--resolution {args.resolution} is not a multiple of {reduction}, by which this VAE "
            "shrinks pictures; take the next multiple."
        )
    side = args.resolution // reduction
    info = moments.MomentsInfo(
        resolution=args.resolution,
        background=args.background,
        shape=(side, side, 2 * config.latent_channels),
        vae_sha256=moments.vae_fingerprint(params),
        dtype=args.dtype,
        made_by=facts.package_version(),
    )
    encoder = Encoder(VAE(config, dtype=jnp.dtype(args.dtype)), params, args.batch_size)
    made = make_tasks(args, sources, encoder)
    options = {"source": args.data, "weights": args.weights, "limit": args.limit}
    # The batch size decides how a device rounds, so that one of another size is another plan.
    options |= {**dataclasses.asdict(info), "batch_size": encoder.batch_size}
    options["shape"] = list(info.shape)
    plan = {"command": "latents", "options": options}

    def wait_for_all(name: str) -> None:
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(name)

    if jax.process_index() == 0:
        output.open_folder(args.out, plan, args.overwrite)
    wait_for_all("open")
    mine = made[jax.process_index() :: jax.process_count()]
    tasks.run_pending(mine, f"latents -> {args.out}")
    wait_for_all("written")
    if jax.process_index() == 0:
        moments.write_info(args.out, info)
        output.finish_folder(args.out, plan, made, str(args.data), with_moments=True)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
