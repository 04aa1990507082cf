"""Adds VAE moments of every view to a data set, so that training need not encode pictures.

    python -m data_prep.latents --weights WEIGHTS --data SHARDS --out SHARDS2
    python -m escherjax.train ... --config.data.source=SHARDS2 --config.data.latents=True

Each record is copied, pictures and all, with the moments beside it. All devices of this machine
encode; of several processes each takes its share of the shards. Stopped and started again it goes
on, as an importer does.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_prep.lib import importing
from data_prep.lib.tasks import Imported, ShardTask, Skipped
from escherjax.errors import UserError, run_command

BACKGROUNDS = ("white", "black", "zero123")
GROUP_BATCHES = 8  # batches in one go: scenes end within a batch, so only the last is padded


def argument_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.latents", description="Adds VAE moments to shards."
    )
    parser.add_argument(
        "--weights",
        required=True,
        help="whose VAE encodes: a folder or hub name of PyTorch "
        "weights, or a work directory; what config.init names in training",
    )
    parser.add_argument("--data", required=True, help="folder of shards, or its address")
    parser.add_argument(
        "--out", type=importing.folder, required=True, help="folder of shards to make"
    )
    parser.add_argument(
        "--resolution",
        type=int,
        default=256,
        help="config.resolution of the training to come (default %(default)s)",
    )
    parser.add_argument(
        "--background",
        choices=BACKGROUNDS,
        default="zero123",
        help="config.data.background of the training to come (default %(default)s)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="views for each device (default %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what the encoder computes in; moments are stored as bfloat16 (default %(default)s)",
    )
    parser.add_argument("--limit", type=int, help="only the first so many scenes of each split")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="threads that decode pictures (default: number of cores, %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what --out holds")
    return parser


class Encoder:
    """Moments of pictures on all devices of this machine.

    vae: a VAE module; params: its host arrays; batch_size: views for each device.
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

        def encode(params, pictures):
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

    source: Any
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
        group, views = [], 0
        for item in _read_ahead(self._read, places, self.workers):
            group.append(item)
            views += 0 if isinstance(item, Skipped) else len(item[1])
            if views >= GROUP_BATCHES * self.encoder.batch_size:
                yield group
                group, views = [], 0
        if group:
            yield group

    def _read(self, place: int) -> Any:
        import numpy as np

        from escherjax.data.rows import read_views

        name = f"record {place}"
        try:
            scene = self.source[place]
            name = scene.scene_id
            views = np.arange(scene.num_views)
            return scene, read_views(scene, views, self.resolution, self.background)[0]
        except UserError as error:
            return Skipped(name, str(error))


def _finish(group: list[Any], started: list[Any]) -> Iterator[Imported | Skipped]:
    """Waits for the moments of a group and gives each scene its own."""
    import numpy as np

    moments = np.concatenate(started) if started else None
    first = 0
    for item in group:
        if isinstance(item, Skipped):
            yield item
            continue
        last = first + len(item[1])
        yield Imported(dataclasses.replace(item[0], moments=moments[first:last]))
        first = last


def _read_ahead(read: Callable[[int], Any], places: Sequence[int], workers: int) -> Iterator[Any]:
    """What `read` returns for every place, in order, from threads; 2 * workers wait at most."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting: collections.deque = collections.deque()
        for place in places:
            waiting.append(pool.submit(read, place))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def make_tasks(
    args: argparse.Namespace, sources: dict[str, Any], encoder: Encoder
) -> list[ShardTask]:
    """A task for every shard of every split: the same records in the same shards as before."""
    tasks = []
    for split, source in sources.items():
        read = MomentsReader(source, encoder, args.resolution, args.background, args.workers)
        ends = source.shard_ends
        starts = [0, *ends[:-1]]
        limit = len(source) if args.limit is None else min(args.limit, len(source))
        parts = [range(a, min(b, limit)) for a, b in zip(starts, ends, strict=True) if a < limit]
        tasks += [
            ShardTask(
                args.out, split, shard, len(parts), [f"record {p}" for p in places], read, places
            )
            for shard, places in enumerate(parts)
        ]
    return tasks


def add_latents(args: argparse.Namespace) -> None:
    """Runs the command; see the module. Raises UserError for input that cannot be used."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import multihost_utils
    from tqdm import tqdm

    from escherjax.data import metadata, moments, shards
    from escherjax.models.vae import VAE
    from escherjax.train import starting_points
    from escherjax.weights import facts

    for name in ("resolution", "batch_size", "limit", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: needed at least 1.")
    sources = {
        split: shards.open_shards(args.data, split) for split in metadata.split_names(args.data)
    }
    config, params = starting_points.read_vae(args.weights)
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
    tasks = make_tasks(args, sources, encoder)
    options = {"source": args.data, "weights": args.weights, "limit": args.limit}
    # The batch size decides how a device rounds, so that one of another size is another plan.
    options |= {**dataclasses.asdict(info), "batch_size": encoder.batch_size}
    options["shape"] = list(info.shape)
    plan = {"command": "latents", "options": options}

    process, processes = jax.process_index(), jax.process_count()
    if process == 0:
        importing.open_folder(args.out, plan, args.overwrite)
    if processes > 1:
        multihost_utils.sync_global_devices("open")
    mine = tasks[process::processes]
    total = sum(len(task.places) for task in mine)
    with tqdm(total=total, desc=f"latents -> {args.out}", unit="scene", mininterval=1) as bar:
        for task in mine:
            if task.note_file.exists() and task.path.exists():
                bar.update(len(task.places))
            else:
                task.run(bar.update)
    if processes > 1:
        multihost_utils.sync_global_devices("written")
    if process == 0:
        moments.write_info(args.out, info)
        importing.finish_folder(args.out, plan, tasks, str(args.data), with_moments=True)


def main(argv: Sequence[str]) -> None:
    add_latents(argument_parser().parse_args(argv))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
