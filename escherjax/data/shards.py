"""Reads and writes scene records: posed views, stored as a TFDS data set of ArrayRecord files.

A folder of shards holds `scenes-SPLIT.array_record-00000-of-00004` ..., and two JSON files.
`tfds.builder_from_directory(folder).as_data_source(split)` reads it too; TensorFlow is not needed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.data import moments as moments_lib
from escherjax.data import remote
from escherjax.errors import UserError, listed
from escherjax.files import file_size, is_remote, whole_file

DATASET_NAME = "scenes"
COMPLETE_FILE = "dataset_info.json"  # written last: where it is, the data set is whole
FEATURES_FILE = "features.json"
# What damaged fields of a record or of metadata raise.
_WRONG_FIELDS = (ValueError, LookupError, TypeError)


@dataclasses.dataclass(frozen=True)
class Scene:
    """V views of one object or place."""

    scene_id: str
    source: str  # name of the format that it was imported from
    # V encoded pictures (PNG, JPEG or WebP, with or without alpha), all of one size; or uint8
    # [V, H, W, 4] with straight alpha
    images: Sequence[bytes] | np.ndarray
    c2w: np.ndarray  # [V, 4, 4] float32 camera-to-world, OpenCV axes, world z up
    K: np.ndarray  # [V, 3, 3] float32, pixels of the pictures
    height: int  # of the pictures, in pixels
    width: int
    moments: np.ndarray | None = None  # [V, h, w, 2 C] bfloat16 of the views' VAE latents

    @property
    def num_views(self) -> int:
        """Number of views."""
        return len(self.c2w)


@dataclasses.dataclass(frozen=True)
class Fault:
    """What makes a record unusable."""

    kind: str  # few words, for counting
    text: str  # what was found and what is expected
    view: int | None = None  # None for the whole record


def scene_faults(scene: Scene) -> list[Fault]:
    """All that keeps the fields of a scene from fitting together; pictures are not decoded here."""
    views, faults = len(scene.images), []
    if views < 1:
        faults.append(Fault("wrong counts", "has no views; it must have one at least."))
    if scene.c2w.shape != (views, 4, 4) or scene.K.shape != (views, 3, 3):
        text = (
            f"has {views} pictures, poses {scene.c2w.shape} and intrinsics {scene.K.shape}; these "
            f"must be ({views}, 4, 4) and ({views}, 3, 3)."
        )
        faults.append(Fault("wrong counts", text))
    if scene.height < 1 or scene.width < 1:
        text = f"states height {scene.height} and width {scene.width} pixels."
        faults.append(Fault("wrong picture size", text))
    if isinstance(scene.images, np.ndarray):
        shape = (views, scene.height, scene.width, 4)
        if scene.images.shape != shape or scene.images.dtype != np.uint8:
            found = f"{scene.images.dtype} {scene.images.shape}"
            text = f"pictures must be uint8 {shape}, got {found}."
            faults.append(Fault("wrong picture size", text))
    bad_moments = moments_lib.moments_faults(scene.moments, views)
    faults += [Fault("bad moments", text) for text in bad_moments]
    if scene.c2w.shape[1:] == (4, 4):
        poses = cameras.pose_faults(scene.c2w)
        faults += [Fault(f"pose {kind}", text, view) for view, kind, text in poses]
    if scene.K.shape[1:] == (3, 3):
        lenses = cameras.intrinsics_faults(scene.K)
        faults += [Fault("bad intrinsics", text, view) for view, text in lenses]
    return faults


def validate_scene(scene: Scene) -> None:
    """Raises UserError, naming the scene, unless its fields fit together and its cameras are sane.

    Pictures are not decoded here.
    """
    faults = scene_faults(scene)
    if faults:
        raise UserError(f"scene '{scene.scene_id}': {listed([fault.text for fault in faults], 5)}")


def features(with_moments: bool = False) -> Any:
    """The TFDS features of a record, with or without stored moments."""
    from tensorflow_datasets import features as tfds_features

    return tfds_features.FeaturesDict(
        {
            "scene_id": tfds_features.Text(),
            "source": tfds_features.Text(),
            "images": tfds_features.Sequence(tfds_features.Tensor(shape=(), dtype=np.object_)),
            "c2w": tfds_features.Tensor(shape=(None, 4, 4), dtype=np.float32),
            "K": tfds_features.Tensor(shape=(None, 3, 3), dtype=np.float32),
            "height": tfds_features.Scalar(np.int32),
            "width": tfds_features.Scalar(np.int32),
            **(moments_lib.record_features() if with_moments else {}),
        }
    )


def encode_scene(scene: Scene) -> bytes:
    """The bytes of one record (a tf.train.Example); equal scenes give equal bytes.

    Raises UserError if the scene is invalid, or its pictures are not encoded.
    """
    from tensorflow_datasets.core import example_serializer

    validate_scene(scene)
    if isinstance(scene.images, np.ndarray):
        raise UserError(f"scene '{scene.scene_id}' has raw pictures; encode them before writing.")
    spec = features(with_moments=scene.moments is not None)
    serializer = example_serializer.ExampleSerializer(spec.get_serialized_info())
    fields = {field.name: getattr(scene, field.name) for field in dataclasses.fields(scene)}
    fields["images"] = list(scene.images)
    fields |= moments_lib.to_fields(fields.pop("moments"))
    example = serializer.get_tf_example(spec.encode_example(fields))
    return example.SerializeToString(deterministic=True)


def shard_path(folder: Path, split: str, shard: int, num_shards: int) -> Path:
    """Where shard number `shard` of a split lies."""
    return folder / f"{DATASET_NAME}-{split}.array_record-{shard:05d}-of-{num_shards:05d}"


def write_shard(path: Path, scenes: Iterable[Scene]) -> int:
    """Writes one shard under a temporary name, then renames it. Returns the number of scenes.

    path: local, or an etils.epath.Path. Nothing is left of the shard unless all scenes were
    written. Raises OSError if it cannot be written: a full disk, say.
    """
    from array_record.python import array_record_module

    count = 0
    with whole_file(path) as file:
        # Group size 1 reads one scene at a time; pictures are compressed already.
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1,uncompressed")
        try:
            for scene in scenes:
                record = encode_scene(scene)
                with _write_errors(path):
                    writer.write(record)
                count += 1
        except BaseException:
            with contextlib.suppress(RuntimeError):
                writer.close()
            raise
        with _write_errors(path):
            writer.close()
    return count


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turns ArrayRecord's errors, which give the reason in words alone, into numbered OSErrors."""
    try:
        yield
    except RuntimeError as error:
        codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        code = next((code for code in codes if os.strerror(code) in str(error)), errno.EIO)
        text = str(error)[:200] if code == errno.EIO else os.strerror(code)
        raise OSError(code, text, str(path)) from error


def write_metadata(
    folder: Path,
    shard_lengths: Mapping[str, Sequence[int]],
    description: str = "",
    with_moments: bool = False,
) -> None:
    """Makes a folder of written shards a whole data set.

    shard_lengths: scenes in each shard of each split, in order of the shards; with_moments: whether
    the scenes hold stored moments.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info, file_adapters, naming

    for split in shard_lengths:
        check_split_name(split)
    template = naming.ShardedFileTemplate(
        data_dir=folder, dataset_name=DATASET_NAME, filetype_suffix="array_record"
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=list(lengths),
            num_bytes=sum(
                file_size(shard_path(folder, split, i, len(lengths))) for i in range(len(lengths))
            ),
            filename_template=template.replace(split=split),
        )
        for split, lengths in shard_lengths.items()
    ]
    identity = dataset_info.DatasetIdentity(
        name=DATASET_NAME, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=features(with_moments), description=description
    )
    info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.SplitDict(splits))
    with tempfile.TemporaryDirectory() as temporary:
        info.write_to_directory(temporary)
        names = sorted(os.listdir(temporary), key=lambda name: name == COMPLETE_FILE)
        for name in names:
            with whole_file(folder / name) as file:
                shutil.copyfile(Path(temporary) / name, file)


def write_scenes(
    folder: Path, scenes: Sequence[Scene], split: str = "train", num_shards: int = 1
) -> None:
    """Writes a whole data set of one split; the importers write shard by shard instead.

    Raises UserError if two scenes share an id, or the folder holds a data set already.
    """
    folder = Path(folder)
    check_split_name(split)
    check_unique([scene.scene_id for scene in scenes])
    if (folder / COMPLETE_FILE).exists():
        raise UserError(f"{folder} holds a data set already; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, len(scenes), num_shards + 1).astype(int)
    lengths = [
        write_shard(shard_path(folder, split, i, num_shards), scenes[bounds[i] : bounds[i + 1]])
        for i in range(num_shards)
    ]
    write_metadata(folder, {split: lengths})


def check_split_name(split: str) -> None:
    """Raises UserError unless `split` can name a split of a data set."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", split) or split == "all":
        raise UserError(
            f"split '{split}' must be lower-case letters, digits and '_', a letter first."
        )


def check_unique(scene_ids: Sequence[str]) -> None:
    """Raises UserError naming the ids that come twice, five of them at most."""
    counts = collections.Counter(scene_ids)
    twice = [scene_id for scene_id, count in counts.items() if count > 1]
    if twice:
        named = ", ".join(f"'{scene_id}'" for scene_id in twice[:5])
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise UserError(f"scene id {named}{more} comes twice; every scene needs its own.")


def read_metadata(folder: str | Path) -> tuple[dict[str, list[int]], Any]:
    """(scenes in each shard of each split, TFDS builder) of a folder or an address.

    Raises UserError if there is no whole data set, or the files are damaged.
    """
    import tensorflow_datasets as tfds

    with contextlib.ExitStack() as stack:
        if is_remote(folder):
            files = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for name in (COMPLETE_FILE, FEATURES_FILE):
                content = remote.read_file(folder, name)
                if content is not None:
                    (files / name).write_bytes(content)
        else:
            files = Path(folder)
        if not (files / COMPLETE_FILE).exists():
            raise UserError(
                f"{folder} is not a whole data set: it has no {COMPLETE_FILE}. Give the folder "
                "that a data_prep command made; if one was stopped, start it again and it goes on."
            )
        with naming_damage(folder):
            info = json.loads((files / COMPLETE_FILE).read_text())
            lengths = {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}
            return lengths, tfds.builder_from_directory(files)


@contextlib.contextmanager
def naming_damage(folder: str | Path) -> Iterator[None]:
    """Turns what TFDS raises for metadata that it cannot follow into a UserError."""
    from google.protobuf import json_format

    try:
        yield
    except (json_format.Error, AttributeError, ImportError, *_WRONG_FIELDS) as error:
        raise UserError(
            f"{COMPLETE_FILE} or {FEATURES_FILE} of {folder} is damaged "
            f"({type(error).__name__}: {str(error)[:200]}); copy them again."
        ) from error


def split_names(folder: str | Path) -> list[str]:
    """The splits of a data set that have scenes. Raises UserError as `read_metadata`."""
    return [split for split, lengths in read_metadata(folder)[0].items() if sum(lengths)]


class ShardSource:
    """Random access to the scenes of one split; see `open_shards`. Safe to use from threads."""

    reads_files = True

    def __init__(self, folder: str, split: str, records: Any, shard_lengths: Sequence[int]):
        self.folder, self.split, self._records = folder, split, records
        self._shard_lengths = shard_lengths

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Scene:
        """Reads scene `index`. Raises UserError if it cannot be read or is invalid."""
        scene = self.read_unchecked(index)
        validate_scene(scene)
        return scene

    def read_unchecked(self, index: int) -> Scene:
        """Reads scene `index` as it was stored; its fields need not fit (see `scene_faults`).

        Raises UserError, naming the shard, if the record cannot be decoded.
        """
        from google.protobuf.message import DecodeError

        try:
            fields = self._records[int(index)]
            missing = sorted(name for name, value in fields.items() if value is None)
            if missing:
                raise ValueError(f"it has no {', '.join(missing)}")
            fields["scene_id"] = fields["scene_id"].decode()
            fields["source"] = fields["source"].decode()
            fields["moments"] = moments_lib.from_fields(fields)
            return Scene(**{field.name: fields[field.name] for field in dataclasses.fields(Scene)})
        except (DecodeError, RuntimeError, OSError, *_WRONG_FIELDS) as error:
            # TFDS puts its own explanation, of many lines, behind the first
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"record {index} of split '{self.split}' in {self.folder} cannot be read "
                f"({type(error).__name__}: {reason}); write or copy its shard "
                f"{self.shard_of(index)} again."
            ) from error

    @property
    def shard_ends(self) -> list[int]:
        """For each shard the number of scenes in it and in those before."""
        return np.cumsum(self._shard_lengths).tolist()

    def shard_of(self, index: int) -> str:
        """File name of the shard that holds scene `index`."""
        shard = int(np.searchsorted(self.shard_ends, int(index), side="right"))
        return shard_path(Path(), self.split, shard, len(self._shard_lengths)).name


def open_shards(folder: str | Path, split: str = "train") -> ShardSource:
    """Opens one split of a data set: a folder, or an address (gs://, s3://, http://, https://).

    At an address records are read one by one, by byte ranges. Raises UserError if the folder is no
    whole data set, has no such split, or misses shards, or an address cannot be read.
    """
    lengths, builder = read_metadata(folder)
    if split not in lengths:
        raise UserError(f"{folder} has no split '{split}'; it has {', '.join(sorted(lengths))}.")
    if not sum(lengths[split]):
        raise UserError(f"split '{split}' of {folder} has no scenes.")
    count = len(lengths[split])
    names = [shard_path(Path(), split, shard, count).name for shard in range(count)]
    if is_remote(folder):
        decode = builder.info.features.deserialize_example_np
        shards = remote.RemoteShards(str(folder), names, lengths[split], decode)
        return ShardSource(str(folder), split, shards, lengths[split])
    present = set(os.listdir(folder))
    missing = [name for name in names if name not in present]
    if missing:
        raise UserError(
            f"{folder} misses {len(missing)} of {count} shards of split '{split}': "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Copy them again."
        )
    with naming_damage(folder):
        data = builder.as_data_source(split)
    return ShardSource(str(folder), split, data, lengths[split])
