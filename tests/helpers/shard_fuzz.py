"""Damages a data set at random places and reads it in every way, in a process of its own.

    python -m tests.shard_fuzz WORK_FOLDER FIRST COUNT

WORK_FOLDER/whole holds the data set. Prints one JSON line for each mutation FIRST .. FIRST + COUNT;
a mutation is drawn from its number alone, so that one that crashed can be run again.
"""

import contextlib
import io
import json
import shutil
import sys
import traceback
from pathlib import Path

import numpy as np

from data_prep.inspect import __main__ as inspect
from escherjax.data import images, loader
from escherjax.data import shards as records
from escherjax.data.loader_config import LoaderConfig
from escherjax.errors import UserError

BATCH = 4


def mutate(folder, number):
    """Damages one file of `folder`; returns what was done. Shards come as often as the rest."""
    rng = np.random.default_rng((77, number))
    files = sorted(path for path in folder.iterdir() if path.is_file())
    shards = [path for path in files if "array_record" in path.name]
    others = [path for path in files if path not in shards]
    path = rng.choice(np.array([shards, others][number % 4 == 0 and bool(others)], object))
    content = bytearray(path.read_bytes())
    kind = ("flip", "truncate", "flip", "zero", "append")[number % 5]
    if kind == "flip":
        for _ in range(int(rng.integers(1, 5))):
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    elif kind == "truncate":
        del content[int(rng.integers(len(content))) :]
    elif kind == "zero":
        start = int(rng.integers(len(content)))
        end = min(len(content), start + int(rng.integers(1, 5000)))
        content[start:end] = bytes(end - start)
    else:
        content += rng.integers(0, 256, int(rng.integers(1, 2000))).astype(np.uint8).tobytes()
    path.write_bytes(content)
    return f"{kind} {path.name}"


def content_of(scene):
    """All of a scene, decoded, to be compared."""
    pictures = [images.decode_image(data, scene.scene_id).tobytes() for data in scene.images]
    text = (scene.scene_id, scene.source, scene.height, scene.width)
    return text, scene.c2w.tobytes(), scene.K.tobytes(), pictures


def read_all(folder, before):
    """What every reader makes of a data set, beside its content `before`."""
    try:
        source = records.open_shards(folder)
    except UserError as error:
        assert str(folder) in str(error), error
        return {"refused": True}
    result = {"refused": False, "scenes": len(source), "bad": 0, "changed": 0}
    for index in range(len(source)):
        try:
            scene = source.read_unchecked(index)
        except UserError as error:
            assert source.shard_of(index) in str(error), error
            result["bad"] += 1
            continue
        try:
            records.validate_scene(scene)
            after = content_of(scene)
        except UserError:
            result["bad"] += 1
        else:
            result["changed"] += index >= len(before) or after != before[index]

    settings = LoaderConfig(
        8,
        num_references=2,
        num_targets=2,
        with_replacement=False,
        on_bad_record="skip",
        shuffle=False,
    )
    batches = loader.make_loader(source, settings, BATCH, num_threads=2)
    valid = np.concatenate([next(batches).valid for _ in range(-(-len(source) // BATCH))])
    batches.close()
    result["loader_bad"] = int((valid[: len(source)] == 0).sum())

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        page = str(folder / "page.html")
        inspect.main([str(folder), "--out", page, "--scenes", "2", "--workers", "2"])
    rows = dict(line.split("  ", 1) for line in printed.getvalue().splitlines() if "  " in line)
    result["inspected"], result["inspect_bad"] = int(rows["records"]), int(rows["bad records"])
    return result


def main(work, first, count):
    whole, damaged = work / "whole", work / "damaged"
    source = records.open_shards(whole)
    before = [content_of(source[index]) for index in range(len(source))]
    for number in range(first, first + count):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(whole, damaged)
        done = mutate(damaged, number)
        print(json.dumps({"number": number, "mutation": done}), flush=True)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what TFDS has to say
                result = read_all(damaged, before)
        except Exception:  # what a fuzzer looks for: anything but UserError
            result = {"foreign": traceback.format_exc()}
        print(json.dumps({"number": number, "mutation": done, **result}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
