"""Scene records: one record is one posed set of views, stored as a TFDS data set of ArrayRecords.

A folder of shards holds `scenes-SPLIT.array_record-00000-of-00004` ..., `features.json` and
`dataset_info.json`, the last of which is written last: where it is, the data set is whole.
`tfds.builder_from_directory(folder).as_data_source(split)` reads it too; TensorFlow is not needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.errors import UserError

DATASET_NAME = "scenes"
COMPLETE_FILE = "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class Scene:
    """V views of one object or place.

    images: V encoded pictures (PNG, JPEG or WebP, with or without alpha), all of one size; or a
        uint8 array [V, H, W, 4] with straight alpha.
    c2w: [V, 4, 4] float32 camera-to-world, OpenCV axes, world z up.
    K: [V, 3, 3] float32, pixels of the pictures.
    """

    scene_id: str
    source: str
    images: Sequence[bytes] | np.ndarray
    c2w: np.ndarray
    K: np.ndarray
    height: int
    width: int

    @property
    def num_views(self) -> int:
        return len(self.c2w)


@dataclasses.dataclass(frozen=True)
class Fault:
    """What makes a record unusable. kind: few words, for counting; text: found and needed."""

    kind: str
    text: str
    view: int | None = None


def scene_faults(scene: Scene) -> list[Fault]:
    """All that keeps the fields of a scene from fitting together; pictures are not decoded here."""
    views = len(scene.images)
    faults = []
    if views < 1:
        faults.append(
            Fault("wrong counts", "has no views; needed at least one picture with its camera.")
        )
    if scene.c2w.shape != (views, 4, 4) or scene.K.shape != (views, 3, 3):
        text = (
            f"has {views} pictures, poses {scene.c2w.shape} and intrinsics {scene.K.shape}; "
            f"needed ({views}, 4, 4) and ({views}, 3, 3)."
        )
        faults.append(Fault("wrong counts", text))
    if scene.height < 1 or scene.width < 1:
        text = f"says height {scene.height} and width {scene.width} pixels."
        faults.append(Fault("wrong picture size", text))
    if isinstance(scene.images, np.ndarray):
        shape = (views, scene.height, scene.width, 4)
        if scene.images.shape != shape or scene.images.dtype != np.uint8:
            text = f"has pictures {scene.images.dtype} {scene.images.shape}; needed uint8 {shape}."
            faults.append(Fault("wrong picture size", text))
    if scene.c2w.shape[1:] == (4, 4):
        faults += [
            Fault(f"pose {kind}", text, view)
            for view, kind, text in cameras.pose_faults(scene.c2w)
        ]
    if scene.K.shape[1:] == (3, 3):
        usable = np.isfinite(scene.K).all((1, 2)) & (scene.K[:, [0, 1], [0, 1]] > 0).all(1)
        for view in np.flatnonzero(~usable).tolist():
            text = (
                f"intrinsics of view {view} are {scene.K[view].tolist()}; needed finite numbers "
                "and positive focal lengths."
            )
            faults.append(Fault("bad intrinsics", text, view))
    return faults


def validate_scene(scene: Scene) -> None:
    """Raises UserError, naming the scene, unless its fields fit together and its cameras are sane.

    Pictures are not decoded here.
    """
    faults = scene_faults(scene)
    if faults:
        texts = [fault.text for fault in faults[:5]]
        more = f" ... and {len(faults) - 5} more." if len(faults) > 5 else ""
        raise UserError(f"scene '{scene.scene_id}': {' '.join(texts)}{more}")


def features() -> Any:
    """The TFDS features of a record."""
    from tensorflow_datasets import features as tfds_features

    return tfds_features.FeaturesDict({
        "scene_id": tfds_features.Text(),
        "source": tfds_features.Text(),
        "images": tfds_features.Sequence(tfds_features.Tensor(shape=(), dtype=np.object_)),
        "c2w": tfds_features.Tensor(shape=(None, 4, 4), dtype=np.float32),
        "K": tfds_features.Tensor(shape=(None, 3, 3), dtype=np.float32),
        "height": tfds_features.Scalar(np.int32),
        "width": tfds_features.Scalar(np.int32),
    })  # fmt: skip


def encode_scene(scene: Scene) -> bytes:
    """The bytes of one record (a tf.train.Example); equal scenes give equal bytes.

    Raises UserError if the scene is invalid, or its pictures are not encoded.
    """
    from tensorflow_datasets.core import example_serializer

    validate_scene(scene)
    if isinstance(scene.images, np.ndarray):
        raise UserError(f"scene '{scene.scene_id}' has raw pictures; encode them before writing.")
    spec = features()
    serializer = example_serializer.ExampleSerializer(spec.get_serialized_info())
    fields = {field.name: getattr(scene, field.name) for field in dataclasses.fields(scene)}
    fields["images"] = list(scene.images)
    example = serializer.get_tf_example(spec.encode_example(fields))
    return example.SerializeToString(deterministic=True)


def shard_path(folder: Path, split: str, shard: int, num_shards: int) -> Path:
    """Where shard number `shard` of a split lies."""
    return folder / f"{DATASET_NAME}-{split}.array_record-{shard:05d}-of-{num_shards:05d}"


def write_shard(path: Path, scenes: Iterable[Scene]) -> int:
    """Writes one shard under a temporary name, then renames it. Returns the number of scenes.

    Nothing is left at `path` unless all scenes were written.
    """
    from array_record.python import array_record_module

    temporary = path.with_name(f"{path.name}.tmp")
    # Group size 1 reads one scene at a time; pictures are compressed already.
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    count = 0
    try:
        for scene in scenes:
            writer.write(encode_scene(scene))
            count += 1
    finally:
        writer.close()
    os.replace(temporary, path)
    return count


def write_metadata(
    folder: Path, shard_lengths: Mapping[str, Sequence[int]], description: str = ""
) -> None:
    """Makes a folder of written shards a whole data set.

    shard_lengths: scenes in each shard of each split, in order of the shards.
    """
    import tempfile

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
                shard_path(folder, split, i, len(lengths)).stat().st_size
                for i in range(len(lengths))
            ),
            filename_template=template.replace(split=split),
        )
        for split, lengths in shard_lengths.items()
    ]
    identity = dataset_info.DatasetIdentity(
        name=DATASET_NAME, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features(), description=description)
    info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.SplitDict(splits))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".metadata-") as temporary:
        info.write_to_directory(temporary)
        names = sorted(os.listdir(temporary), key=lambda name: name == COMPLETE_FILE)
        for name in names:
            os.replace(Path(temporary) / name, folder / name)


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
            f"split '{split}': needed lower-case letters, digits and '_', a letter first."
        )


def check_unique(scene_ids: Sequence[str]) -> None:
    """Raises UserError naming the first id that comes twice."""
    seen: set[str] = set()
    for scene_id in scene_ids:
        if scene_id in seen:
            raise UserError(f"scene id '{scene_id}' comes twice; every scene needs its own.")
        seen.add(scene_id)


class ShardSource:
    """Random access to the scenes of one split; see `open_shards`. Safe to use from threads."""

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
            return Scene(**{field.name: fields[field.name] for field in dataclasses.fields(Scene)})
        except (
            DecodeError, RuntimeError, ValueError, KeyError, TypeError, IndexError, OSError
        ) as error:  # fmt: skip
            # TFDS puts its own explanation, of many lines, behind the first
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"record {index} of split '{self.split}' in {self.folder} cannot be read "
                f"({type(error).__name__}: {reason}); write or copy its shard "
                f"{self.shard_of(index)} again."
            ) from error

    def shard_of(self, index: int) -> str:
        """File name of the shard that holds scene `index`."""
        shard = int(np.searchsorted(np.cumsum(self._shard_lengths), int(index), side="right"))
        return shard_path(Path(), self.split, shard, len(self._shard_lengths)).name


def open_shards(folder: str | Path, split: str = "train") -> ShardSource:
    """Opens one split of a data set folder, local or any address that etils.epath reads.

    Raises UserError if the folder is no whole data set, has no such split, or misses shards.
    """
    import tensorflow_datasets as tfds
    from etils import epath
    from google.protobuf import json_format

    root = epath.Path(folder)
    if not (root / COMPLETE_FILE).exists():
        raise UserError(
            f"{folder} is no whole data set: it has no {COMPLETE_FILE}. Give the folder that a "
            "data_prep command made; if one was stopped, start it again and it goes on."
        )

    @contextlib.contextmanager
    def reading_metadata():
        try:
            yield
        except (
            json_format.Error, ValueError, KeyError, TypeError, AttributeError, ImportError
        ) as error:  # fmt: skip
            raise UserError(
                f"{COMPLETE_FILE} or features.json of {folder} is damaged "
                f"({type(error).__name__}: {str(error)[:200]}); copy them again."
            ) from error

    with reading_metadata():
        info = json.loads((root / COMPLETE_FILE).read_text())
        lengths = {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}
        builder = tfds.builder_from_directory(root)
    if split not in lengths:
        raise UserError(f"{folder} has no split '{split}'; it has {', '.join(sorted(lengths))}.")
    count = len(lengths[split])
    names = [shard_path(Path(), split, shard, count).name for shard in range(count)]
    present = {path.name for path in root.iterdir()}
    missing = [name for name in names if name not in present]
    if missing:
        raise UserError(
            f"{folder} misses {len(missing)} of {count} shards of split '{split}': "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Copy them again."
        )
    if not sum(lengths[split]):
        raise UserError(f"split '{split}' of {folder} has no scenes.")
    with reading_metadata():
        data = builder.as_data_source(split)
    return ShardSource(str(folder), split, data, lengths[split])
