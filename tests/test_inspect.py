"""Looking at shards: exact statistics, every kind of bad record named, a page that stands alone."""

import base64
import dataclasses
import html.parser
import io
import json
import math

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.core import example_serializer

from data_prep.inspect import __main__ as inspect
from data_prep.inspect import page as inspect_page
from data_prep.inspect import survey
from escherjax import cameras
from escherjax.data import images, shards
from escherjax.errors import UserError

SHARD = "scenes-train.array_record-00000-of-00001"


def make_scene(scene_id, radius=2.0, views=4, size=(10, 8), fov_deg=40.0, seed=0):
    """Cameras on a sphere about the origin, above and below, looking at it; random pictures."""
    width, height = size
    rng = np.random.default_rng(seed)
    polar, azimuth = rng.uniform(0.6, 2.4, views), np.arange(views) * 2 * np.pi / views
    pictures = rng.integers(0, 256, (views, height, width, 4), np.uint8)
    K = cameras.intrinsics_from_fov(math.radians(fov_deg), width, height)
    return shards.Scene(
        scene_id=scene_id,
        source="made",
        images=[images.encode_png(picture) for picture in pictures],
        c2w=cameras.from_spherical(polar, azimuth, radius),
        K=np.repeat(K[None], views, 0),
        height=height,
        width=width,
    )


def encode_unchecked(scene):
    """A record as `records.encode_scene` makes it, without its checks."""
    spec = shards.features()
    fields = {name: getattr(scene, name) for name in spec}
    serializer = example_serializer.ExampleSerializer(spec.get_serialized_info())
    return serializer.get_tf_example(spec.encode_example(fields)).SerializeToString()


def write_raw(folder, payloads):
    """A data set of one shard with these bytes as its records."""
    folder.mkdir()
    writer = array_record_module.ArrayRecordWriter(str(folder / SHARD), "group_size:1,uncompressed")
    for payload in payloads:
        writer.write(payload)
    writer.close()
    shards.write_metadata(folder, {"train": [len(payloads)]})
    return folder


def look(folder):
    """(table as a dict, Survey) of all records of a data set."""
    source = shards.open_shards(folder)
    total = survey.Survey()
    for index in range(len(source)):
        total.add(survey.examine(source, index))
    return dict(total.table()), total


class Page(html.parser.HTMLParser):
    """Collects the cells of the tables and the scenes, which the script is given."""

    def __init__(self, text):
        super().__init__()
        self.is_data, self.data = False, ""
        self.feed(text)
        parts = [part for section in json.loads(self.data)["sections"] for part in section["parts"]]
        rows = [row for part in parts if part["kind"] == "table" for row in part["rows"]]
        self.cells = [cell for row in rows for cell in row]
        (self.scenes,) = [part["scenes"] for part in parts if part["kind"] == "cameras"]

    def handle_starttag(self, tag, attrs):
        self.is_data = dict(attrs).get("id") == "data"

    def handle_data(self, data):
        if self.is_data:
            self.data += data


def run(folder, out, *more):
    inspect.main([str(folder), "--out", str(out), "--workers", "2", *more])
    return out.read_text() if out.exists() else None


def test_statistics_of_known_scenes_are_exact(tmp_path):
    turned = make_scene("c", 4.0, views=3)
    turned.c2w[:2, :3, :3] = turned.c2w[:2, :3, :3] @ np.diag([-1, -1, 1])  # rolled by 180 degrees
    turned.c2w[2, :3, :3] = turned.c2w[2, :3, :3] @ np.diag([-1, 1, -1])  # looks the other way
    scenes = [
        make_scene("a", 2.0, views=4, fov_deg=40),
        make_scene("b", 3.1, views=6, size=(16, 16), fov_deg=60),
        turned,
    ]
    shards.write_scenes(tmp_path / "set", scenes)
    table, total = look(tmp_path / "set")
    size = sum(len(data) for scene in scenes for data in scene.images)
    assert table == {
        "records": "3",
        "usable scenes": "3",
        "bad records": "0",
        "scenes with warnings": "1",
        "views": "13",
        "views per scene": "3 / 4 / 6 (min / median / max)",
        "picture sizes": "10 x 8 (2 scenes), 16 x 16 (1 scenes)",
        "sources": "made (3 scenes)",
        "picture bytes": f"{size} ({size / 13:.0f} a view)",
        "optical axis within 5 deg of the origin": "12 of 13 views (92.3%)",
        "origin inside the picture": "12 of 13 views (92.3%)",
        "upright (camera up towards +z)": "11 of 13 views (84.6%)",
    }
    (_, radius), (_, fov) = total.histograms()
    assert [count for _, _, count in radius] == [4, 0, 0, 0, 0, 6, 0, 0, 0, 3]
    assert [count for _, _, count in fov] == [7, 0, 0, 0, 0, 0, 0, 0, 0, 6]
    # float32 poses and intrinsics
    np.testing.assert_allclose([radius[0][0], radius[-1][1]], [2, 4], rtol=1e-6)
    np.testing.assert_allclose([fov[0][0], fov[-1][1]], [40, 60], rtol=1e-6)


def test_equal_values_make_one_bin():
    assert survey.histogram(np.full(7, 1.5)) == [(1.5, 1.5, 7)]
    assert survey.histogram(np.zeros(0)) == []


def bad_scenes():
    """Kind of fault -> (record, words of its text)."""

    def changed(name, change=None, **fields):
        scene = make_scene(name)
        if change is not None:
            change(scene)
        return dataclasses.replace(scene, **fields)

    def cut(scene):
        scene.images[2] = scene.images[2][: len(scene.images[2]) // 2]

    def empty(scene):
        scene.images[1] = b""

    def other_size(scene):
        scene.images[1] = images.encode_png(np.zeros((5, 6, 3), np.uint8))

    def mirror(scene):
        scene.c2w[1, :3, 0] *= -1
        scene.c2w[3, :3, 0] *= -1

    def flatten(scene):
        scene.c2w[0, :3, 1] = scene.c2w[0, :3, 0]

    def spoil(scene):
        scene.c2w[2, 0, 3] = np.nan

    def no_focal(scene):
        scene.K[3, 0, 0] = 0

    fewer = {"c2w": make_scene("x").c2w[:3]}
    return {
        "cut": ("unreadable picture", "view 2 cannot be decoded", changed("cut", cut)),
        "empty": ("unreadable picture", "view 1 cannot be decoded", changed("empty", empty)),
        "size": ("wrong picture size", "view 1 is 6 x 5", changed("size", other_size)),
        "counts": ("wrong counts", "4 pictures, poses (3, 4, 4)", changed("counts", **fewer)),
        "none": (
            "wrong counts",
            "has no views",
            changed(
                "none",
                images=[],
                c2w=np.zeros((0, 4, 4), np.float32),
                K=np.zeros((0, 3, 3), np.float32),
            ),
        ),
        "mirror": ("pose mirrored", "view 3 is mirrored", changed("mirror", mirror)),
        "flat": ("pose not rigid", "view 0 is not rigid", changed("flat", flatten)),
        "nan": ("pose not finite", "view 2 holds NaN", changed("nan", spoil)),
        "focal": ("bad intrinsics", "intrinsics of view 3", changed("focal", no_focal)),
    }


def test_each_kind_of_bad_record_is_counted_and_named(tmp_path, capsys):
    bad = bad_scenes()
    payloads = [encode_unchecked(scene) for _, _, scene in bad.values()]
    good = make_scene("good")
    odd = encode_unchecked(dataclasses.replace(good, scene_id="odd", c2w=unconverted(good)))
    good = encode_unchecked(good)
    folder = write_raw(tmp_path / "set", [good, *payloads, good, b"\xff\xff no record", odd])
    page = run(folder, tmp_path / "page.html")
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    for index, (name, (kind, words, _)) in enumerate(bad.items(), start=1):
        start = f"  record {index} ({SHARD}), scene '{name}': [{kind}]"
        found = [line for line in lines if line.startswith(start) and words in line]
        assert len(found) == 1, (name, printed)
    assert len([line for line in lines if "[pose mirrored]" in line]) == 2  # both views
    assert any(f"record 10 ({SHARD}), scene 'good': [duplicate id]" in line for line in lines)
    assert any(f"record 11 ({SHARD}): [unreadable record]" in line for line in lines)
    table = dict(line.rsplit(None, 1) for line in lines[:15] if line.strip())
    assert (table["records"], table["usable scenes"], table["bad records"]) == ("13", "2", "11")
    assert (table["  unreadable picture"], table["  wrong counts"]) == ("2", "2")
    assert "[pose mirrored]" in page and "[unreadable record]" in page
    # what can be drawn is drawn, faults first
    drawn = [scene["id"] for scene in Page(page).scenes]
    assert drawn == ["mirror", "flat", "good", "odd", "good"]


def test_record_without_a_field_is_named(tmp_path):
    payload = encode_unchecked(make_scene("a"))
    for field in (b"c2w", b"scene_id", b"height", b"images"):
        folder = write_raw(tmp_path / field.decode(), [payload.replace(field, field[:-1] + b"_")])
        (fault,) = survey.examine(shards.open_shards(folder), 0).faults
        assert fault.kind == "unreadable record" and field.decode() in fault.text


def test_quick_reads_headers_only(tmp_path):
    _, _, cut = bad_scenes()["cut"]
    _, _, empty = bad_scenes()["empty"]
    _, _, other = bad_scenes()["size"]
    payloads = [encode_unchecked(scene) for scene in (cut, empty, other)]
    source = shards.open_shards(write_raw(tmp_path / "set", payloads))
    found = [survey.examine(source, index, decode=False).faults for index in range(3)]
    assert [[fault.kind for fault in faults] for faults in found] == [
        [],
        ["unreadable picture"],
        ["wrong picture size"],
    ]


def test_quick_names_a_scene_that_cannot_be_drawn(tmp_path, capsys):
    _, _, cut = bad_scenes()["cut"]
    folder = write_raw(tmp_path / "set", [encode_unchecked(cut), encode_unchecked(make_scene("a"))])
    page = run(folder, tmp_path / "page.html", "--quick")
    assert "not shown: record 0, scene 'cut': picture cannot be decoded" in capsys.readouterr().out
    assert [scene["id"] for scene in Page(page).scenes] == ["a"]


def test_cameras_at_the_end_of_float32_are_measured(tmp_path):
    scene = make_scene("far")
    scene.c2w[:, :3, 3] *= 5e29
    shards.write_scenes(tmp_path / "set", [scene])
    table, total = look(tmp_path / "set")
    assert table["usable scenes"] == "1" and len(total.histograms()[0][1]) == 1
    np.testing.assert_allclose(total.per_view("radius"), 1e30, rtol=1e-6)  # float32 positions


def test_damaged_shards_are_counted_and_named_without_a_traceback(tmp_path):
    scenes = [make_scene(f"s{i}", seed=i) for i in range(4)]
    folder = tmp_path / "set"
    shards.write_scenes(folder, scenes)
    whole = (folder / SHARD).read_bytes()
    rng = np.random.default_rng(0)
    unreadable = 0
    for number in range(60):
        data = bytearray(whole)
        if number % 2:
            data = data[: rng.integers(len(data))]
        else:
            places = rng.integers(len(data), size=4)
            for place, bit in zip(places, rng.integers(8, size=4), strict=True):
                data[place] ^= 1 << int(bit)
        (folder / SHARD).write_bytes(data)
        _, total = look(folder)
        assert total.records == 4 == total.scenes + len(total.faulty)
        assert all(SHARD in f.text for finding in total.faulty for f in finding.faults)
        unreadable += total.fault_counts["unreadable record"]
    assert unreadable >= 30 * 4  # a shard cut off has lost its index: at least these
    text = run(folder, tmp_path / "page.html")
    assert Page(text).scenes == []


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_damaged_metadata_is_an_error_that_says_so(tmp_path, name):
    shards.write_scenes(tmp_path / "set", [make_scene("a")])
    text = (tmp_path / "set" / name).read_text()
    for damaged in ("", text[: len(text) // 2], "[1]"):
        (tmp_path / "set" / name).write_text(damaged)
        with pytest.raises(UserError, match="features.json .* is damaged"):
            run(tmp_path / "set", tmp_path / "page.html")


def unconverted(scene):
    return cameras.opengl_from_opencv(scene.c2w)


def y_up(scene):
    turn = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], np.float32)
    return turn.T @ scene.c2w


def inverted(scene):
    return np.linalg.inv(scene.c2w).astype(np.float32)


def inverted_at_radii(scene):
    c2w = scene.c2w.copy()
    c2w[:, :3, 3] *= np.linspace(1, 1.5, len(c2w), dtype=np.float32)[:, None]
    return np.linalg.inv(c2w).astype(np.float32)


def transposed(scene):
    c2w = scene.c2w.copy()
    c2w[:, :3, :3] = c2w[:, :3, :3].swapaxes(1, 2)
    return c2w


@pytest.mark.parametrize(
    "change, words",
    [
        (unconverted, "look away from the point where their optical axes meet"),
        (unconverted, "nearest to world -z; it must be world +z"),
        (y_up, "it must be world +z"),
        (inverted, "stand on one point, turned differently: are these world-to-camera matrices"),
        (inverted_at_radii, "stand on one line, turned differently"),
        (transposed, "rotations may be transposed"),
    ],
)
def test_broken_conventions_give_a_warning_line(tmp_path, capsys, change, words):
    scene = make_scene("one", views=9)
    broken = dataclasses.replace(scene, scene_id="odd", c2w=change(scene))
    shards.write_scenes(tmp_path / "set", [scene, broken])
    page = run(tmp_path / "set", tmp_path / "page.html")
    lines = [line for line in capsys.readouterr().out.splitlines() if words in line]
    assert len(lines) == 1 and lines[0].startswith("  record 1, scene 'odd': ")
    shown = Page(page).scenes
    assert [s["id"] for s in shown] == ["odd", "one"]
    assert any(words in text for text in shown[0]["warnings"]) and shown[1]["warnings"] == []


def test_intrinsics_of_another_picture_size_give_a_warning():
    scene = make_scene("one")
    assert survey.warnings_of(scene) == []
    scene.K[:, :2] *= 4
    assert "principal point outside the picture in 4 of 4 views" in survey.warnings_of(scene)[0]


def test_a_straight_flight_is_no_broken_convention():
    """Views along a line, all looking ahead, as a video gives: nothing to warn of."""
    scene = make_scene("flight", views=5)
    position = np.stack([np.arange(5), np.zeros(5), np.ones(5)], -1).astype(np.float32)
    c2w = cameras.look_at(position, position + np.array([1, 0, 0], np.float32))
    assert survey.warnings_of(dataclasses.replace(scene, c2w=c2w)) == []


def test_page_stands_alone_and_shows_the_views(tmp_path):
    name = "</script><b>http</b>"
    scene = make_scene(name, views=5, size=(200, 100))
    picture = np.zeros((100, 200, 4), np.uint8)
    picture[:, :100] = [255, 0, 0, 255]  # left half red, right half transparent: white on the page
    scene.images[3] = images.encode_png(picture)
    shards.write_scenes(tmp_path / "set", [scene])
    text = run(tmp_path / "set", tmp_path / "page.html", "--views", "3")
    # the name is the only text with it, once in the script's data
    assert text.replace("http-equiv", "").count("http") == 1 and "http" in name
    assert not any(word in text for word in ('src="', "@import", "url(", "<link"))
    assert text.count("</script>") == 2  # the data's and the program's: the name ended neither
    page = Page(text)
    assert page.cells[:4] == ["records", "1", "usable scenes", "1"]
    (shown,) = page.scenes
    assert shown["id"] == name and "5 views of 200 x 100, 3 shown" in shown["about"]
    assert [view["view"] for view in shown["views"]] == [0, 2, 4]

    whole = inspect_page.scene_data(scene, 48, [], None)
    head, _, data = whole["views"][3]["picture"].partition(",")
    thumbnail = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64" and thumbnail.size == (96, 48)
    pixels = np.asarray(thumbnail).astype(int)
    # JPEG at quality 80 keeps flat colours to a few steps
    np.testing.assert_allclose(pixels[24, 20], [255, 0, 0], atol=6)
    np.testing.assert_allclose(pixels[24, 76], [255, 255, 255], atol=6)


def test_drawn_frusta_are_the_picture_corners(tmp_path):
    scene = make_scene("one", views=3, size=(20, 10))
    scene.K[:, 0, 2] += 3  # off centre, so that left and right differ
    for view in inspect_page.scene_data(scene, 3, [], None)["views"]:
        at, right, down, forward = (
            np.array(view[name]) for name in ("at", "right", "down", "forward")
        )
        left, top, far_right, bottom = view["corners"]
        corners = np.array(
            [at + forward + x * right + y * down for x, y in [(left, top), (far_right, bottom)]]
        )
        number = view["view"]
        pixels, depth = cameras.project(corners, scene.c2w[number], scene.K[number])
        # the page holds six digits
        np.testing.assert_allclose(pixels, [[0, 0], [20, 10]], atol=1e-3)
        np.testing.assert_allclose(depth, 1, atol=1e-4)


def test_no_page_on_request_and_wrong_arguments_are_refused(tmp_path, capsys):
    shards.write_scenes(tmp_path / "set", [make_scene(f"s{i}") for i in range(5)])
    assert run(tmp_path / "set", tmp_path / "page.html", "--scenes", "0", "--limit", "3") is None
    assert capsys.readouterr().out.startswith("records                                  3\n")
    with pytest.raises(UserError, match="--views must be at least 1, got 0"):
        run(tmp_path / "set", tmp_path / "page.html", "--views", "0")
    with pytest.raises(UserError, match="is not a directory; make it first"):
        run(tmp_path / "set", tmp_path / "none" / "page.html")
    with pytest.raises(UserError, match="no split 'val'"):
        run(tmp_path / "set", tmp_path / "page.html", "--split", "val")
