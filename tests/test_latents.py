"""Stored VAE moments: what data_prep.latents writes, and that training on them is the same."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep import latents
from escherjax.data import images, loader, moments, rows, shards
from escherjax.data.batch import unit_images
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.train import sources
from escherjax.train.loop import train
from escherjax.train.step import draw, scene_losses, target_latents
from tests.helpers.batches import entries
from tests.helpers.scenes import make_scene
from tests.helpers.starting_networks import random_params, write_part
from tests.helpers.tiny import VAE, tiny_config

SHAPE = (8, 8, 8)  # of the tiny VAE at 16 pixels: sides halved once, 4 channels of each moment


def picture_scene(scene_id, views, seed):
    """A scene of noise pictures, wider than high, with alpha."""
    rng = np.random.default_rng(seed)
    scene = make_scene(scene_id, views, seed)
    pictures = rng.integers(0, 256, (views, 16, 20, 4), np.uint8)
    K = scene.K * np.array([2, 2, 1], np.float32)[:, None]
    encoded = [images.encode_png(picture) for picture in pictures]
    return dataclasses.replace(scene, images=encoded, K=K, height=16, width=20)


@pytest.fixture(scope="module")
def config():
    return tiny_config(**VAE)


@pytest.fixture(scope="module")
def params(config):
    """Of small size, so that moments are of the order of 1, as a trained VAE's."""
    drawn = random_params(config)
    return jax.tree.map(lambda x: 0.2 * x, drawn)


@pytest.fixture(scope="module")
def weights(config, params, tmp_path_factory):
    return write_part(tmp_path_factory.mktemp("weights") / "vae", "vae", config, params["vae"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    scenes = [picture_scene(f"object-{i}", 4 + i % 3, i) for i in range(7)]
    shards.write_scenes(folder, scenes, num_shards=3)
    return folder


def arguments(weights, data, out, *more):
    return [
        "--weights",
        str(weights),
        "--data",
        str(data),
        "--out",
        str(out),
        "--resolution",
        "16",
        "--batch-size",
        "1",
        "--workers",
        "2",
        *more,
    ]


@pytest.fixture(scope="module")
def stored(weights, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("stored") / "shards"
    latents.main(arguments(weights, data, out))
    return out


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_records_are_copied_and_hold_the_moments_of_each_view(config, params, data, stored):
    model = eschernet.from_config(config)
    before, after = shards.open_shards(data), shards.open_shards(stored)
    assert len(after) == len(before) == 7
    assert after.shard_ends == before.shard_ends
    pictures = []
    for index in range(7):
        scene, copy = before[index], after[index]
        assert copy.scene_id == scene.scene_id and list(copy.images) == list(scene.images)
        np.testing.assert_array_equal(copy.c2w, scene.c2w)
        np.testing.assert_array_equal(copy.K, scene.K)
        assert copy.moments.shape == (scene.num_views, *SHAPE)
        views = np.arange(scene.num_views)
        pictures.append(rows.read_views(scene, views, 16, "zero123")[0])
    encode = jax.jit(model.encode_latents)
    exact = np.concatenate(encode(params, unit_images(np.concatenate(pictures))), axis=-1)
    copied = np.concatenate([after[index].moments for index in range(7)]).astype(np.float32)
    # bfloat16 keeps 8 bits: half a unit in the last place is up to 2^-8 of the value. The float32
    # convolutions of batches of another size differ by far less.
    np.testing.assert_allclose(copied, exact, rtol=2**-8, atol=1e-5)


def test_report_and_latents_json_say_what_was_made(stored, params):
    info = moments.read_info(str(stored))
    assert (info.resolution, info.background, info.shape) == (16, "zero123", SHAPE)
    assert info.vae_sha256 == moments.vae_fingerprint(params["vae"])
    report = json.loads((stored / "report.json").read_text())
    assert report["scenes"] == 7 and report["views"] == 34 and report["num_skipped"] == 0


def test_an_interrupted_run_goes_on_to_the_same_bytes(weights, data, stored, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    write, written = shards.write_shard, []

    def dies_in_the_second_shard(path, scenes):
        if written:
            raise Killed
        written.append(path)
        return write(path, scenes)

    monkeypatch.setattr(shards, "write_shard", dies_in_the_second_shard)
    with pytest.raises(Killed):
        latents.main(arguments(weights, data, tmp_path / "out"))
    monkeypatch.undo()
    first = written[0].stat().st_mtime_ns
    latents.main(arguments(weights, data, tmp_path / "out"))
    assert written[0].stat().st_mtime_ns == first  # kept, not written again
    again, undisturbed = files(tmp_path / "out"), files(stored)
    report, expected = (json.loads(x.pop("report.json")) for x in (again, undisturbed))
    assert again == undisturbed
    assert report == expected


def test_bad_records_are_skipped_and_the_others_keep_their_moments(config, params, stored):
    encoder = latents.Encoder(eschernet.from_config(config).codec, params["vae"], 1)
    source = shards.open_shards(stored)
    scenes = [source[index] for index in range(4)]
    scenes[1].images[2] = b"no picture"
    read = latents.MomentsReader(scenes, encoder, 16, "zero123", workers=2)
    results = list(read([3, 1, 0]))
    assert results[1].scene_id == "object-1" and "view 2" in results[1].reason
    for result, index in ((results[0], 3), (results[2], 0)):
        assert result.scene.scene_id == f"object-{index}"
        np.testing.assert_array_equal(result.scene.moments, source[index].moments)


class BrokenSource:
    """Scenes of which the second makes a library raise."""

    def __init__(self, scenes):
        self.scenes = scenes

    def __getitem__(self, place):
        if place == 1:
            raise ValueError("embedded null byte")
        return self.scenes[place]


def test_any_exception_of_a_record_skips_it_by_name(config, params, stored):
    encoder = latents.Encoder(eschernet.from_config(config).codec, params["vae"], 1)
    source = BrokenSource(shards.open_shards(stored))
    results = list(latents.MomentsReader(source, encoder, 16, "zero123", workers=2)([0, 1]))
    assert results[0].scene.scene_id == "object-0"
    assert results[1].scene_id == "record 1"
    assert "ValueError: embedded null byte" in results[1].reason


def batches(folder, stored_moments, **changes):
    settings = {"resolution": 16, "num_references": 2, "num_targets": 2, "background": "zero123"}
    settings |= {"moments_shape": SHAPE if stored_moments else ()}
    source = folder if isinstance(folder, list) else shards.open_shards(folder)
    return loader.make_loader(source, loader.LoaderConfig(**settings | changes), 8)


def test_a_batch_has_the_moments_of_the_targets_it_would_have_decoded(stored):
    online, offline = batches(stored, False), batches(stored, True)
    source = shards.open_shards(stored)
    for _ in range(3):
        a, b = entries(next(online)), entries(next(offline))
        assert "target_images" not in b and b["target_moments"].shape == (8, 2, *SHAPE)
        for name in ("ref_images", "ref_c2w", "ref_K", "target_c2w", "target_K", "scene_index"):
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        for row, index in enumerate(b["scene_index"]):
            scene = source[int(index)]
            for target, c2w in enumerate(b["target_c2w"][row]):
                [view] = [v for v in range(scene.num_views) if (scene.c2w[v] == c2w).all()]
                np.testing.assert_array_equal(b["target_moments"][row, target], scene.moments[view])
    online.close()
    offline.close()


class Watched(list):
    """Pictures that remember which of them were asked for."""

    def __init__(self, pictures):
        super().__init__(pictures)
        self.read = []

    def __getitem__(self, view):
        self.read.append(int(view))
        return super().__getitem__(view)


def test_pictures_of_targets_are_not_read(stored):
    source = shards.open_shards(stored)
    scene = source[2]
    scene = dataclasses.replace(scene, images=Watched(scene.images))
    config = loader.LoaderConfig(
        16, num_references=1, num_targets=3, with_replacement=False, moments_shape=SHAPE
    )
    row = rows.DrawRow([scene], config).random_map((0, 0), np.random.default_rng(0))
    [view] = scene.images.read
    np.testing.assert_array_equal(row["ref_c2w"][0], scene.c2w[view])
    assert row["target_moments"].shape == (3, *SHAPE)


def test_records_of_other_moments_are_bad_records(stored):
    plain = picture_scene("plain", 4, 0)
    stream = batches([plain], True)
    with pytest.raises(UserError, match="'plain' has stored moments None; needed"):
        next(stream)
    stream.close()
    skipping = batches([plain], True, on_bad_record="skip")
    batch = entries(next(skipping))
    skipping.close()
    assert not batch["valid"].any() and not batch["target_moments"].any()
    assert batch["ref_images"].shape == (8, 2, 16, 16, 3)


def stepper(model, params, key):
    """A function from batches to (losses [B], all gradients in a row)."""

    @jax.jit
    def run(trained, batch):
        draws = draw(key, model, batch, 0.25)

        def total(trained):
            losses = scene_losses(model, trained, {"vae": params["vae"]}, batch, draws)
            return losses.mean(), losses

        (_, losses), gradients = jax.value_and_grad(total, has_aux=True)(trained)
        return losses, jnp.concatenate([jnp.ravel(g) for g in jax.tree.leaves(gradients)])

    trained = {name: params[name] for name in ("unet", "image_encoder")}

    return lambda batch: (np.asarray(x) for x in run(trained, batch))


def first_batches(stored):
    """The same rows with pictures and with moments of their targets."""
    online, offline = batches(stored, False), batches(stored, True)
    pair = next(online), next(offline)
    online.close()
    offline.close()
    return [batch.replace(scene_ids=None) for batch in pair]


def exact_moments(model, params, batch):
    mean, logvar = model.encode_latents({"vae": params["vae"]}, unit_images(batch.target_images))
    return jnp.concatenate([mean, logvar], -1)


def test_latents_under_the_same_key_are_those_of_online_encoding(config, params, stored):
    model, key = eschernet.from_config(config), jax.random.key(3)
    with_pictures, with_moments = first_batches(stored)
    exact = exact_moments(model, params, with_pictures)

    def latents_of(batch):
        draws = draw(key, model, batch, 0.1)
        return np.asarray(target_latents(model, {"vae": params["vae"]}, batch, draws))

    online = latents_of(with_pictures)
    np.testing.assert_array_equal(latents_of(with_moments.replace(target_moments=exact)), online)
    rounded = exact.astype(jnp.bfloat16)
    near = latents_of(with_moments.replace(target_moments=rounded))
    # Means and standard deviations of the order of 1, each off by up to 2^-8 of itself.
    size = model.latent_scale * (np.abs(exact).max() + 3)
    np.testing.assert_allclose(near, online, rtol=0, atol=2**-8 * size)
    # The stored ones are of batches of another size, whose convolutions may round otherwise.
    np.testing.assert_allclose(latents_of(with_moments), near, rtol=0, atol=2**-7 * size)


@pytest.mark.slow
def test_loss_and_gradients_are_those_of_online_encoding(config, params, stored):
    model, key = eschernet.from_config(config), jax.random.key(3)
    with_pictures, with_moments = first_batches(stored)
    run = stepper(model, params, key)
    loss, gradient = run(with_pictures)

    exact = with_moments.replace(target_moments=exact_moments(model, params, with_pictures))
    same_loss, same_gradient = run(exact)
    # The same float32 numbers through another compiled program: a few roundings of 2^-24.
    np.testing.assert_allclose(same_loss, loss, rtol=1e-5)
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(same_gradient, gradient, rtol=0, atol=1e-5 * scale)

    rounded = with_moments.target_moments.astype(np.float32)  # the same program, compiled once
    near_loss, near_gradient = run(with_moments.replace(target_moments=rounded))
    assert (near_loss != loss).any()
    # Latents are off by up to 2^-8 of their size, and so is the noisy input; the square of an
    # error of that size doubles it.
    np.testing.assert_allclose(near_loss, loss, rtol=4 * 2**-8)
    np.testing.assert_allclose(near_gradient, gradient, rtol=0, atol=8 * 2**-8 * scale)


def run_config(stored, weights, **changes):
    settings = VAE | {"data__source": stored, "data__latents": True, "init__vae": weights}
    settings |= {"num_steps": 2, "batch_size": 8, "mesh__data": -1, "data__num_threads": 1}
    return tiny_config(**settings | changes)


@pytest.mark.slow
def test_training_starts_like_training_on_pictures(stored, weights, tmp_path):
    seen = {}
    for name, use in (("moments", True), ("pictures", False)):
        # v: the first losses of epsilon do not depend on the latents, as the network's output is 0
        fields = {"data__latents": use, "diffusion__prediction_type": "v_prediction"}
        train(run_config(stored, weights, **fields), tmp_path / name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        seen[name] = [json.loads(line)["loss"] for line in lines if "loss" in line]
    assert len(seen["moments"]) == 2 and seen["moments"] != seen["pictures"]
    np.testing.assert_allclose(seen["moments"], seen["pictures"], rtol=4 * 2**-8)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"resolution": 32}, "resolution is 16 there and 32 in this run; shape is"),
        ({"data__background": "white"}, "background is 'zero123' there and 'white'"),
    ],
)
def test_moments_of_other_pictures_are_refused(stored, weights, changes, message):
    with pytest.raises(UserError, match=message):
        sources.open_training_source(run_config(stored, weights, **changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__background": "random"}, "background is 'random'"),
        ({"data__zoom": "(1.0,1.5)"}, "zoom .*stored moments"),
        ({"latents__kind": "pixels"}, "kind = 'pixels'"),
        ({"data__source": "procedural"}, "'procedural', which has no stored moments"),
    ],
)
def test_configs_that_moments_cannot_serve_are_refused(stored, weights, changes, message):
    with pytest.raises(UserError, match=message):
        run_config(stored, weights, **changes)


def test_folder_without_moments_and_moments_of_another_vae_are_refused(
    config, data, stored, weights, params, tmp_path
):
    with pytest.raises(UserError, match="holds no stored moments: it has no latents.json"):
        sources.open_training_source(run_config(data, weights))
    sources.check_vae(run_config(stored, weights), params["vae"])
    kernel = params["vae"]["quant_conv"]["kernel"]
    changed = {**params["vae"], "quant_conv": {**params["vae"]["quant_conv"], "kernel": kernel * 2}}
    other = write_part(tmp_path / "other" / "vae", "vae", config, changed)
    with pytest.raises(UserError, match="made by another VAE"):
        train(run_config(stored, other), tmp_path / "run")


@pytest.mark.parametrize(
    "more, message",
    [
        (["--resolution", "15"], "not a multiple of 2"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(weights, data, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        latents.main(arguments(weights, data, tmp_path / "out", *more))


def test_limit_keeps_the_first_scenes_of_the_shards(data, tmp_path):
    args = latents.argument_parser().parse_args(arguments("W", data, tmp_path, "--limit", "5"))
    source = shards.open_shards(data)  # shards of 2, 2 and 3 scenes
    tasks = latents.make_tasks(args, {"train": source}, encoder=None)
    assert [list(task.places) for task in tasks] == [[0, 1], [2, 3], [4]]
    assert tasks[2].path.name == "scenes-train.array_record-00002-of-00003"
