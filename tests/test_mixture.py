"""Several sources and view counts by step: the same batches on any hosts, from any step."""

import dataclasses

import numpy as np
import pytest

from escherjax import cameras
from escherjax.data import images, loader, mixture
from escherjax.data import shards as records
from escherjax.data.loader_config import LoaderConfig
from escherjax.errors import UserError
from escherjax.train import sources
from tests.helpers.batches import entries
from tests.helpers.scenes import write_shards
from tests.helpers.tiny import tiny_config

SIZE = 8
BUCKETS = ((1, 3, 1), (3, 1, 2), (2, 2, 1))


class Scenes(list):
    """Scenes of noise, all with as many views."""

    def __init__(self, seed, num_scenes, num_views, size=SIZE):
        rng = np.random.default_rng(seed)
        self.num_views = num_views
        polar, azimuth = rng.uniform(0.3, 2.8, (2, num_scenes, num_views))
        c2w = cameras.from_spherical(polar, azimuth, 2.0)
        K = np.tile(cameras.intrinsics_from_fov(0.8, size, size), (num_views, 1, 1))
        for number in range(num_scenes):
            pictures = rng.integers(0, 256, (num_views, size, size, 4)).astype(np.uint8)
            scene_id = f"{seed}-{number}"
            self.append(records.Scene(scene_id, "noise", pictures, c2w[number], K, size, size))


@pytest.fixture(scope="module")
def parts():
    """Three sources of 5, 3 and 2 scenes; two of them share their ids."""
    return {"a": Scenes(0, 5, 5), "b": Scenes(0, 3, 6), "c": Scenes(1, 2, 4)}


def config(**changes):
    defaults = {"resolution": SIZE, "num_references": (1, 2), "num_targets": 2, "seed": 3}
    return LoaderConfig(**(defaults | {"buckets": BUCKETS} | changes))


def take(source, config, count, global_batch=4, **options):
    batches = loader.make_loader(source, config, global_batch, num_threads=1, **options)
    taken = [entries(next(batches)) for _ in range(count)]
    batches.close()
    return taken


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def order(source, count, **changes):
    """Scene numbers of the first rows."""
    rows = mixture.endless_order(source, changes.get("seed", 3), changes.get("shuffle", True))
    return np.array([rows[row] for row in range(count)])


def test_weights_by_number_of_scenes_give_every_scene_once_an_epoch(parts):
    epochs = order(mixture.Mixture(parts), 40).reshape(4, 10)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_each_source_has_its_share_of_rows_and_all_its_scenes_once_in_its_own_epoch(parts):
    mixed = mixture.Mixture(parts, (1, 2.5, 0.5))
    rows = order(mixed, 240)
    owners = np.array([mixed.locate(row)[0] for row in rows])
    assert np.bincount(owners).tolist() == [60, 150, 30]
    # Evenly spread: no stretch of one period lacks or overdraws a source by more than a row.
    for start in range(232):
        counts = np.bincount(owners[start : start + 8], minlength=3)
        assert (np.abs(counts - [2, 5, 1]) <= 1).all()
    for part, count in enumerate((5, 3, 2)):
        own = rows[owners == part]
        epochs = own[: len(own) // count * count].reshape(-1, count) - mixed.bounds[part]
        assert (np.sort(epochs, 1) == np.arange(count)).all()
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_sources_of_equal_size_are_shuffled_differently():
    rows = order(mixture.Mixture({"a": range(40), "b": range(40)}), 80)
    assert (rows[rows < 40] != rows[rows >= 40] - 40).mean() > 0.5


@pytest.mark.parametrize("shares", [(1,), (1, 1), (3, 2, 7), (100, 1), (10**12 + 1, 3)])
def test_turns_count_up_without_gaps(shares):
    seen = [0] * len(shares)
    for row in range(300):
        part, turn = mixture.whose_turn(row, shares)
        assert turn == seen[part]
        seen[part] += 1
    period = sum(shares)
    for part, share in enumerate(shares):  # far away, where only random access gets
        turns = [
            t
            for p, t in (mixture.whose_turn(period * 7 + r, shares) for r in range(300))
            if p == part
        ]
        assert turns == list(range(7 * share, 7 * share + len(turns)))


def test_ids_carry_their_source(parts):
    mixed = mixture.Mixture(parts)
    assert mixed[0].scene_id == "a:0-0"
    assert mixed[5].scene_id == "b:0-0"
    assert mixed[9].scene_id == "c:1-1"
    np.testing.assert_array_equal(mixed[6].images, parts["b"][1].images)
    with pytest.raises(IndexError):
        mixed[10]


class Unreadable(list):
    def __getitem__(self, index):
        raise UserError("its shard is gone")


def test_an_unreadable_scene_is_named_with_its_source_and_place(parts):
    mixed = mixture.Mixture({"good": parts["a"], "bad": Unreadable([1, 2])})
    batches = loader.make_loader(mixed, config(on_bad_record="skip"), 7, num_threads=1)
    batch = entries(next(batches))
    batches.close()
    assert sorted(batches.bad_records) == [
        ("bad:record 0", "its shard is gone"),
        ("bad:record 1", "its shard is gone"),
    ]
    assert batch["valid"].sum() == 5


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_see_the_batches_of_one_host(parts, hosts):
    mixed = mixture.Mixture(parts, (1, 1, 2))
    settings = config(zoom=(0.8, 1.25), shift=0.1, background="random")
    whole = take(mixed, settings, 6)
    each = [take(mixed, settings, 6, process_index=i, process_count=hosts) for i in range(hosts)]
    for step, batch in enumerate(whole):
        joined = {n: np.concatenate([host[step][n] for host in each]) for n in batch}
        assert_same(batch, joined)
    assert len({batch["ref_images"].shape for batch in whole}) > 1


def test_a_run_continues_at_any_step_on_another_number_of_hosts(parts):
    mixed = mixture.Mixture(parts, (1, 1, 2))
    whole = take(mixed, config(), 9)
    for first, hosts in ((3, 2), (7, 4)):
        for host in range(hosts):
            late = take(
                mixed, config(), 2, start_step=first, process_index=host, process_count=hosts
            )
            rows = slice(host * 4 // hosts, (host + 1) * 4 // hosts)
            for ours, theirs in zip(late, whole[first:], strict=False):
                assert_same(ours, {name: array[rows] for name, array in theirs.items()})


def test_every_step_has_the_shape_of_one_bucket_as_often_as_its_weight(parts):
    counts = []
    for batch in take(parts["a"], config(num_references=2), 60):
        counts.append((batch["ref_c2w"].shape[1], batch["target_c2w"].shape[1]))
        assert batch["ref_images"].shape == (4, counts[-1][0], SIZE, SIZE, 3)
        assert batch["target_images"].shape == (4, counts[-1][1], SIZE, SIZE, 3)
        assert (batch["num_references"] == counts[-1][0]).all()
    assert counts == [tuple(config().bucket_of(step)[:2]) for step in range(60)]
    drawn = [config().bucket_of(step)[:2] for step in range(4000)]
    for n, m, weight in BUCKETS:
        # 4000 draws: 4 standard deviations of a share are at most 4 * sqrt(0.25 / 4000) = 0.032
        assert abs(drawn.count((n, m)) / 4000 - weight / 4) < 0.032
    assert drawn != [config(seed=4).bucket_of(step)[:2] for step in range(4000)]


def test_fewest_references_stay_within_the_bucket(parts):
    buckets = ((1, 1, 1), (4, 1, 1))
    batches = take(parts["a"], config(num_references=(2, 3), buckets=buckets), 30)
    drawn = {n: set() for n in (1, 4)}
    for batch in batches:
        drawn[batch["ref_c2w"].shape[1]] |= set(batch["num_references"].tolist())
    assert drawn == {1: {1}, 4: {2, 3, 4}}


def test_a_bad_record_is_blank_in_the_shape_of_its_step():
    broken = Unreadable(range(4))
    batches = take(broken, config(on_bad_record="skip"), 12)
    assert {b["target_images"].shape[:2] for b in batches} == {(4, 1), (4, 2), (4, 3)}
    assert all(b["valid"].sum() == 0 for b in batches)


def test_views_must_suffice_for_every_bucket_of_every_source(parts):
    settings = config(with_replacement=False, buckets=((1, 1, 1), (4, 1, 1)))
    message = "every scene of c has 4 views; a row needs 4 references .* = 5 different"
    with pytest.raises(UserError, match=message):
        loader.make_loader(mixture.Mixture(parts), settings, 4)
    loader.make_loader(parts["a"], settings, 4).close()
    with pytest.raises(UserError, match="d has no scenes"):
        loader.make_loader(mixture.Mixture({"a": parts["a"], "d": []}), settings, 4)


def test_views_that_were_not_drawn_are_never_decoded(parts):
    """A scene whose other views are no pictures at all makes no complaint."""
    scene = parts["b"][0]
    settings = config(num_references=1, num_targets=1, buckets=())
    whole = [dataclasses.replace(scene, images=[images.encode_png(x) for x in scene.images])]
    clean = take(whole, settings, 4, global_batch=1)
    for batch, step in zip(clean, range(4), strict=True):
        poses = np.concatenate([batch["ref_c2w"], batch["target_c2w"]], 1)[0]
        drawn = {int((pose == scene.c2w).all((1, 2)).argmax()) for pose in poses}
        spoiled = [
            data if view in drawn else b"no picture" for view, data in enumerate(whole[0].images)
        ]
        partly = [dataclasses.replace(scene, images=spoiled)]
        assert_same(batch, take(partly, settings, 1, global_batch=1, start_step=step)[0])
        with pytest.raises(UserError, match="cannot be decoded"):
            take([dataclasses.replace(scene, images=[b"no picture"] * 6)], settings, 1, 1)


def test_config_names_several_sources_and_the_first_is_held_out(parts, tmp_path):
    shards = write_shards(tmp_path / "a", parts["a"])
    named = f"{shards}, procedural"
    fields = {
        "data__source": named,
        "data__num_scenes": 2,
        "data__heldout_split": "train",
        "eval_every_steps": 1,
        "eval__num_scenes": 4,
        "eval__batch_size": 4,
        "resolution": SIZE,
        "data__weights": (3, 1),
        "mesh__fsdp": 8,
    }
    settings = tiny_config(**fields)
    mixed = sources.open_training_source(settings)
    assert mixed.names == [str(shards), "procedural"] and mixed.weights == (3, 1)
    assert len(mixed) == 7 and mixed[6].scene_id == "procedural:procedural-42-0000001"
    batches = sources.training_batches(mixed, settings, 0)
    ids = next(batches).scene_ids
    batches.close()
    assert sum(name.startswith(f"{shards}:") for name in ids) == 6 and len(ids) == 8
    heldout = sources.heldout_batches(settings)[0].scene_ids
    assert heldout.tolist() == [f"0-{number}" for number in range(4)]


def test_every_source_that_cannot_be_opened_is_named(tmp_path):
    settings = tiny_config(data__source=f"{tmp_path}/one,procedural,{tmp_path}/two")
    with pytest.raises(UserError, match="(?s)/one is not a whole.*/two is not a whole"):
        sources.open_training_source(settings)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__source": "a,a"}, "names a source twice"),
        ({"data__source": "a,,b"}, "none between two commas"),
        (
            {"data__source": "a,b", "data__weights": (1,)},
            r"one for each of 2 sources, got \(1,\)",
        ),
        (
            {"data__source": "a,b", "data__weights": (1, -2)},
            "weights must be positive.*got -2",
        ),
        ({"data__buckets": (1, 3, 1)}, r"buckets must hold \(N, M, weight\), .* got 1"),
        (
            {"data__buckets": ((1, 0, 1), (2, 2, -1))},
            "(?s)at least 1.*weight of .*positive",
        ),
        ({"data__buckets": ((1, 2, 1), (1, 2, 1))}, "N and M of .* come twice"),
        ({"data__zoom": (1.2, 0.8), "data__shift": 0.7}, "(?s)0 < low <= high.*0 to 0.5"),
        ({"data__zoom": "1.5"}, "zoom must be .low, high."),
        ({"data__shift": 0.1}, "without zoom"),
    ],
)
def test_impossible_data_settings_are_refused_at_once(changes, message):
    with pytest.raises(UserError, match=message):
        tiny_config(**changes)
