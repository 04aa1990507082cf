"""Batches: the same on any number of hosts and from any step, with true pictures and cameras."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from escherjax import cameras
from escherjax.data import images, loader, mixture, procedural, workers
from escherjax.data import rows as drawing
from escherjax.data import shards as records
from escherjax.errors import UserError
from tests.helpers.batches import entries

SIZE = 16


@pytest.fixture(scope="module")
def source():
    """Five scenes of six views."""
    return procedural.ProceduralSource(0, 5, num_views=6, resolution=SIZE)


@pytest.fixture(scope="module")
def shards(source, tmp_path_factory):
    """The same scenes, as files."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    scenes = [
        dataclasses.replace(scene, images=[images.encode_png(picture) for picture in scene.images])
        for scene in (source[i] for i in range(len(source)))
    ]
    records.write_scenes(folder, scenes, num_shards=2)
    return records.open_shards(folder)


def config(**changes):
    defaults = {"resolution": SIZE, "num_references": 2, "num_targets": 3, "seed": 5}
    return loader.LoaderConfig(**(defaults | changes))


def take(source, config, count, global_batch=4, **options):
    batches = loader.make_loader(source, config, global_batch, num_threads=2, **options)
    taken = [entries(next(batches)) for _ in range(count)]
    batches.close()
    return taken


def assert_same_batches(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_batch_has_the_documented_arrays(source):
    batch = take(source, config(num_references=(1, 3)), 1)[0]
    shapes = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
    assert shapes == {
        "ref_images": ("uint8", (4, 3, SIZE, SIZE, 3)),
        "target_images": ("uint8", (4, 3, SIZE, SIZE, 3)),
        "ref_c2w": ("float32", (4, 3, 4, 4)),
        "target_c2w": ("float32", (4, 3, 4, 4)),
        "ref_K": ("float32", (4, 3, 3, 3)),
        "target_K": ("float32", (4, 3, 3, 3)),
        "num_references": ("int32", (4,)),
        "valid": ("float32", (4,)),
        "scene_index": ("int32", (4,)),
        "scene_ids": ("object", (4,)),
    }


def test_same_seed_gives_the_same_batches_and_another_seed_others(source):
    first = take(source, config(), 4)
    assert_same_batches(first, take(source, config(), 4))
    other = take(source, config(seed=6), 4)
    for name in ("scene_index", "ref_c2w"):
        assert any((a[name] != b[name]).any() for a, b in zip(first, other, strict=True))


def test_starting_at_a_step_equals_skipping_to_it(source):
    assert_same_batches(take(source, config(), 9)[6:], take(source, config(), 3, start_step=6))


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_see_the_batches_of_one_host(source, hosts):
    whole = take(source, config(num_references=(1, 2)), 4)
    parts = [
        take(source, config(num_references=(1, 2)), 4, process_index=i, process_count=hosts)
        for i in range(hosts)
    ]
    joined = [
        {name: np.concatenate([part[step][name] for part in parts]) for name in whole[step]}
        for step in range(4)
    ]
    assert_same_batches(whole, joined)


def test_run_continues_on_another_number_of_hosts(source):
    late = take(source, config(), 2, start_step=3, process_index=1, process_count=2)
    whole = take(source, config(), 5)[3:]
    assert_same_batches(late, [{k: v[2:] for k, v in batch.items()} for batch in whole])


@pytest.mark.parametrize("shares", [1, 3])
def test_any_batch_can_be_made_by_itself_wherever_it_is_made(source, shards, shares):
    """What a reading process is sent gives, for any number, what the threads give."""
    settings = config(num_references=(1, 2), background="random", zoom=(1.0, 1.3))
    for index in range(shares):
        share = {"process_index": index, "process_count": shares}
        made = loader.host_batches(shards, settings, 6, **share)
        whole = take(shards, settings, 5, global_batch=6, **share)
        for number in (4, 0, 3):
            batch = made(number)
            assert batch.pop("error").tolist() == [None] * (6 // shares)
            assert_same_batches([batch], [whole[number]])


def test_processes_give_the_batches_of_threads(source, shards):
    """Any start, any share of hosts, a source in memory beside one of files."""
    mixed = mixture.Mixture({"files": shards, "memory": source})
    options = {"start_step": 3, "process_index": 1, "process_count": 2}
    settings = config(num_references=(1, 2))
    taken = take(mixed, settings, 6, num_workers=2, **options)
    assert_same_batches(take(mixed, settings, 6, **options), taken)


def test_a_bad_record_read_by_a_process_is_named(shards):
    with pytest.raises(UserError, match="bad record 'procedural-0-.* has 6 views; a row needs"):
        take(shards, config(num_references=4, with_replacement=False), 1, num_workers=1)


def test_sources_in_memory_are_read_by_threads(source, monkeypatch):
    monkeypatch.setattr(workers, "WorkerPool", None)
    take(source, config(), 1, num_workers=2)


def test_every_scene_comes_once_an_epoch_in_another_order(source):
    order = np.concatenate([b["scene_index"] for b in take(source, config(), 4, global_batch=5)])
    epochs = order.reshape(4, 5)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(5), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) > 1
    straight = take(source, config(shuffle=False), 1, global_batch=5)[0]["scene_index"]
    np.testing.assert_array_equal(straight, np.arange(5))


def view_numbers(batch, source):
    """Which view of its scene each drawn picture is: [b, N + M]."""
    c2w = np.concatenate([batch["ref_c2w"], batch["target_c2w"]], 1)
    numbers = []
    for row, index in zip(c2w, batch["scene_index"], strict=True):
        same = (row[:, None] == source[index].c2w[None]).all((2, 3))
        assert (same.sum(1) == 1).all()
        numbers.append(same.argmax(1))
    return np.array(numbers)


def test_pictures_and_cameras_of_a_row_belong_together(source):
    for batch in take(source, config(), 3):
        numbers = view_numbers(batch, source)
        pictures = np.concatenate([batch["ref_images"], batch["target_images"]], 1)
        K = np.concatenate([batch["ref_K"], batch["target_K"]], 1)
        for row, index in enumerate(batch["scene_index"]):
            scene = source[index]
            flat = images.on_background(scene.images[numbers[row]], images.WHITE)
            np.testing.assert_array_equal(pictures[row], flat)
            np.testing.assert_array_equal(K[row], scene.K[numbers[row]])
            assert batch["scene_ids"][row] == scene.scene_id


def test_without_replacement_views_differ_and_with_it_they_may_repeat(source):
    apart = [view_numbers(b, source) for b in take(source, config(with_replacement=False), 8)]
    assert all(len(set(row)) == 5 for row in np.concatenate(apart))
    assert len({tuple(row) for row in np.concatenate(apart)}) > 16
    free = [view_numbers(b, source) for b in take(source, config(with_replacement=True), 8)]
    assert any(len(set(row)) < 5 for row in np.concatenate(free))
    assert set(np.concatenate(free).ravel()) == set(range(6))


def test_number_of_references_is_drawn_from_its_range(source):
    drawn = take(source, config(num_references=(1, 3)), 10)
    counts = np.concatenate([batch["num_references"] for batch in drawn])
    assert set(counts) == {1, 2, 3}
    assert (np.concatenate([b["num_references"] for b in take(source, config(), 2)]) == 2).all()


def test_files_give_the_batches_of_the_raw_scenes(source, shards):
    assert_same_batches(take(source, config(), 3), take(shards, config(), 3))


def test_white_background_is_true_compositing(rng):
    picture = rng.integers(0, 256, (9, 7, 4), np.uint8)
    alpha = picture[..., 3:] / 255.0
    for color in ((255, 255, 255), (0, 0, 0), (12, 200, 77)):
        exact = picture[..., :3] * alpha + np.array(color) * (1 - alpha)
        assert np.abs(images.on_background(picture, color) - exact).max() <= 0.5 + 1e-9


def test_zero123_background_and_resize_equal_the_original(golden_dir):
    arrays = np.load(golden_dir / "conversions-6dof.npz")
    rgba = arrays["load_im/rgba_u8"]
    np.testing.assert_array_equal(images.on_binary_white(rgba), arrays["load_im/composited_u8"])
    scene = records.Scene(
        "one", "test", [images.encode_png(rgba)], np.eye(4)[None], np.eye(3)[None], 160, 160
    )
    for size in (64, 100, 256):
        ours, _, _ = drawing.read_views(scene, np.array([0]), size, "zero123")
        theirs = arrays[f"load_im/resized_{size}"].transpose(1, 2, 0)
        np.testing.assert_allclose((ours[0] / 255 - 0.5) / 0.5, theirs, atol=1e-6)


def test_random_background_is_one_color_for_a_row_and_differs_between_rows(source):
    batch = take(source, config(background="random"), 1)[0]
    corners = np.concatenate([batch["ref_images"], batch["target_images"]], 1)[:, :, 0, 0]
    assert (corners == corners[:, :1]).all()
    assert len({tuple(color) for color in corners[:, 0]}) == 4


def test_resized_and_cropped_picture_shows_points_where_its_camera_projects_them():
    c2w = cameras.look_at(np.array([[1.5, -1.0, 0.8]], np.float32))
    K = np.array([[[60.0, 0, 34.0], [0, 60, 21], [0, 0, 1]]], np.float32)
    point = np.array([[[0.12, 0.2, -0.05]]], np.float32)
    u, v = cameras.project(point, c2w, K)[0][0, 0]
    picture = np.zeros((40, 64, 3), np.uint8)
    rows, columns = np.mgrid[:40, :64] + 0.5
    picture[(columns - u) ** 2 + (rows - v) ** 2 < 9] = 255
    scene = records.Scene("one", "test", [images.encode_png(picture)], c2w, K, 40, 64)
    for size in (20, 40, 80):
        pictures, poses, intrinsics = drawing.read_views(scene, np.array([0]), size, "white")
        assert pictures.shape == (1, size, size, 3)
        rows, columns = np.mgrid[:size, :size] + 0.5
        weight = pictures[0, ..., 0].astype(float)
        seen = [(weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()]
        expected = cameras.project(point, poses, intrinsics)[0][0, 0]
        np.testing.assert_allclose(seen, expected, atol=0.35 * size / 40)


class Spoiled:
    """A source whose scene 2 cannot be read and whose scene 4 has one broken picture."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index == 2:
            raise UserError("record 2 cannot be read")
        scene = self.source[index]
        if index == 4:
            broken = [images.encode_png(picture)[:60] for picture in scene.images]
            scene = dataclasses.replace(scene, images=broken)
        return scene


def test_skipped_records_are_blank_counted_and_not_replaced(source):
    settings = config(on_bad_record="skip")
    batches = loader.make_loader(Spoiled(source), settings, 5, num_threads=2)
    seen = [entries(next(batches)) for _ in range(3)]
    batches.close()
    for batch, good in zip(seen, take(source, settings, 3, global_batch=5), strict=True):
        bad = np.isin(batch["scene_index"], [2, 4])
        np.testing.assert_array_equal(batch["valid"], np.where(bad, 0.0, 1.0))
        np.testing.assert_array_equal(batch["scene_index"], good["scene_index"])
        for name in ("ref_images", "target_images", "ref_c2w", "target_K"):
            np.testing.assert_array_equal(batch[name][~bad], good[name][~bad])
        assert (batch["ref_images"][bad] == 0).all() and (batch["target_images"][bad] == 0).all()
        assert (batch["target_c2w"][bad] == np.eye(4)).all()
    names = [name for name, _ in batches.bad_records]
    assert sorted(names) == ["procedural-0-0000004"] * 3 + ["record 2"] * 3
    reasons = dict(batches.bad_records)
    assert "cannot be decoded" in reasons["procedural-0-0000004"]


def test_stop_names_the_bad_record(source):
    batches = loader.make_loader(Spoiled(source), config(shuffle=False), 2, num_threads=1)
    next(batches)
    with pytest.raises(UserError, match="bad record 'record 2'"):
        next(batches)
    batches.close()


def test_more_views_than_a_scene_has_is_refused_without_replacement(source, shards):
    many = config(num_references=4, with_replacement=False)
    with pytest.raises(UserError, match="has 6 views; a row needs 4 references \\+ 3 targets = 7"):
        loader.make_loader(source, many, 4)
    with pytest.raises(UserError, match="has 6 views; a row needs"):
        take(shards, many, 1)
    assert take(source, config(num_references=4), 1)[0]["ref_images"].shape[1] == 4


@pytest.mark.parametrize(
    "changes, options, message",
    [
        ({"num_references": 0}, {}, "num_references .*got 0"),
        ({"num_references": (3, 2)}, {}, "1 <= low <= high"),
        ({"num_targets": 0}, {}, "num_targets .*got 0"),
        ({"background": "pink"}, {}, "background must be one of white.* got 'pink'"),
        ({"on_bad_record": "hide"}, {}, "on_bad_record .*'hide'"),
        ({}, {"process_count": 3}, "batch of 4 does not divide over 3"),
        ({}, {"process_index": 2, "process_count": 2}, "process_index 2 of 2"),
        ({}, {"start_step": -1}, "start_step must be at least 0, got -1"),
    ],
)
def test_impossible_settings_are_refused_at_the_start(source, changes, options, message):
    with pytest.raises(UserError, match=message):
        loader.make_loader(source, config(**changes), 4, **options)


def test_picture_of_another_size_than_its_record_says_is_a_bad_record(shards):
    scene = dataclasses.replace(shards[0], height=SIZE + 1)
    with pytest.raises(UserError, match=r"\(16, 16\) pixels .*says \(17, 16\)"):
        drawing.read_views(scene, np.array([0]), SIZE, "white")


def test_png_with_palette_transparency_keeps_its_alpha():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=0)
    decoded = images.decode_image(buffer.getvalue(), "one")
    np.testing.assert_array_equal(decoded, [[[10, 20, 30, 0], [200, 100, 50, 255]]])
