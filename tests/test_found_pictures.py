"""Pictures are found as a person would find them; those that are not are counted and named."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from data_prep import colmap, nerf_json, zero123
from escherjax.data.formats import folders
from escherjax.data.inputs import open_views, read_inputs
from escherjax.errors import UserError
from tests.helpers.colmap_folders import POINTS, VIEWS, askew, askew_cameras, write_scene
from tests.helpers.dot_folders import pinhole, write_dots
from tests.helpers.scene_folders import (
    assert_balls_where_projected,
    render_balls,
    run,
    write_zero123,
)

pytest.importorskip("pycolmap")

KEEP = ("--normalize", "none", "--resolution", "0")
CAMERA = ("PINHOLE", (90.0, 90.0, 49.0, 35.0))
NAMES = [f"images/{view:03d}.png" for view in range(VIEWS)]
FLAT = [f"{view:03d}.png" for view in range(VIEWS)]


def named(pattern):
    return [pattern.format(f"{view:03d}") for view in range(VIEWS)]


# What the file says, where the pictures lie, what is said of it.
ELSEWHERE = {
    "backslashes": (named("images\\{}.png"), NAMES, "slashes in place of backslashes"),
    "dot and backslashes": (named(".\\images\\{}.png"), NAMES, "backslashes"),
    "another machine": (named("/home/somebody/images/{}.png"), NAMES, "in another folder"),
    "Windows' drive": (named("C:\\capture\\images\\{}.png"), NAMES, "in another folder"),
    "folder missing": (NAMES, FLAT, "in another folder"),
    "folder left out": (FLAT, NAMES, "in another folder"),
    "two folders down": (FLAT, named("capture/rgb/{}.png"), "in another folder"),
    "parent": (named("../{}.png"), NAMES, "in another folder"),
    "another suffix": (named("images/{}.jpg"), NAMES, "another suffix or case"),
    "another case": (named("images/{}.PNG"), NAMES, "another suffix or case"),
    "case on disk": (NAMES, named("images/{}.PNG"), "another suffix or case"),
    "all at once": (named("D:\\X\\Images\\{}.JPG"), named("rgb/{}.png"), "in another folder"),
    "no suffix": (named("./images/{}"), NAMES, None),
    "spaces": (named("images/shot {} (copy).png"), named("images/shot {} (copy).png"), None),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_pictures_elsewhere_are_found_and_that_is_said(tmp_path, capsys, case):
    names, on_disk, said = ELSEWHERE[case]
    write_dots(tmp_path / "scene", names=names, on_disk=on_disk)
    shards, report = run(nerf_json, tmp_path / "scene", tmp_path / "out", *KEEP)
    assert shards[0].num_views == VIEWS
    assert_balls_where_projected(shards[0], POINTS.astype(np.float32), 0.25)
    remarks = report["notes"].get("scene", {}).get("remarks", [])
    assert [said in remark for remark in remarks] == ([True] if said else [])
    printed = capsys.readouterr().out
    assert all(f"note on scene: {remark}" in printed for remark in remarks)


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    write_dots(tmp_path)
    file = tmp_path / "transforms.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert folders.read_scene_folder(tmp_path).num_views == VIEWS


def double(folder, how):
    if how == "listed twice":
        edit_names(folder, [NAMES[0], NAMES[0], *NAMES[2:]])
    elif how == "listed in two ways":
        edit_names(folder, [NAMES[0], "./images/../images/000.png", *NAMES[2:]])
    elif how == "by a link":
        (folder / NAMES[1]).unlink()
        (folder / NAMES[1]).symlink_to(folder / NAMES[0])
    elif how == "no suffix, two files":
        edit_names(folder, named("images/{}"))
        shutil.copy(folder / NAMES[1], folder / "images/001.jpg")
    elif how == "two folders":
        edit_names(folder, FLAT)
        shutil.copytree(folder / "images", folder / "images_2")
    elif how == "two suffixes":
        edit_names(folder, named("images/{}.webp"))
        shutil.copy(folder / NAMES[1], folder / "images/001.jpg")


def edit_names(folder, names):
    content = json.loads((folder / "transforms.json").read_text())
    for frame, name in zip(content["frames"], names, strict=True):
        frame["file_path"] = name
    (folder / "transforms.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "how, reason",
    [
        ("listed twice", r"views 0 and 1 are both of picture .*images/000\.png"),
        ("listed in two ways", "views 0 and 1 are both of picture"),
        ("by a link", "views 0 and 1 are both of picture"),
        ("no suffix, two files", r"may be .*001\.png or .*001\.jpg"),
        ("two folders", r"'000\.png' may be .*images/000\.png or .*images_2/000\.png"),
        ("two suffixes", r"001\.webp' may be"),
    ],
)
def test_two_pictures_for_one_view_and_two_views_of_one_picture_are_refused(tmp_path, how, reason):
    double(write_dots(tmp_path), how)
    with pytest.raises(UserError, match=reason):
        folders.read_scene_folder(tmp_path)


def lose(folder, *views):
    for view in views:
        (folder / NAMES[view]).unlink()
    return folder


def test_missing_pictures_are_counted_and_named_and_the_rest_is_read(tmp_path, capsys):
    lose(write_dots(tmp_path / "in" / "scene"), 1)
    write_dots(tmp_path / "in" / "whole")
    shards, report = run(nerf_json, tmp_path / "in", tmp_path / "out", *KEEP)
    assert [shards[i].num_views for i in range(2)] == [VIEWS - 1, VIEWS]
    assert_balls_where_projected(shards[0], POINTS.astype(np.float32), 0.25)
    assert report["notes"]["scene"]["left_out"] == {"images/001.png": "picture not found"}
    assert "left_out" not in report["notes"]["whole"] and report["views_left_out"] == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("0 skipped, 1 views of the others left out (1: picture not found)")


@pytest.mark.parametrize(
    "lost, more, count",
    [
        ((0, 1), (), 0),
        ((0, 1), ("--min-views", "2"), 2),
        ((0, 1, 2), ("--min-views", "1"), 0),
        ((3,), ("--min-views", "4"), 0),
    ],
)
def test_a_scene_of_too_few_pictures_is_refused(tmp_path, lost, more, count):
    lose(write_dots(tmp_path / "in" / "scene"), *lost)
    write_dots(tmp_path / "in" / "whole")
    shards, report = run(nerf_json, tmp_path / "in", tmp_path / "out", *KEEP, *more)
    assert [s["scene_id"] for s in report["skipped"]] == ([] if count else ["scene"])
    assert report["views"] == VIEWS + count
    for entry in report["skipped"]:
        assert f"{len(lost)} of {VIEWS} pictures are missing" in entry["reason"]
        assert NAMES[lost[0]] in entry["reason"]


@pytest.mark.parametrize("other", ["masks", "depth", "thumbs_small", "photos"])
def test_nothing_of_the_same_name_takes_the_place_of_a_missing_picture(tmp_path, other):
    write_dots(tmp_path)
    shutil.copytree(tmp_path / "images", tmp_path / other)
    lose(tmp_path, 2)
    with pytest.raises(UserError, match=r"frame 2: .*images/002\.png not found"):
        folders.read_scene_folder(tmp_path)
    if other != "photos":  # where the stated folder is not there at all, such folders do not count
        lose(tmp_path, 0, 1, 3)
        with pytest.raises(UserError, match=r"frame 0: .*images/000\.png not found"):
            folders.read_scene_folder(tmp_path)


def test_sampling_opens_a_scene_whose_asked_for_views_are_there(tmp_path):
    lose(write_dots(tmp_path), 0, 2)
    views = open_views(tmp_path)
    assert (views.num_views, views.references.tolist()) == (VIEWS, [1, 3])
    notes = [str(note) for note in read_inputs(tmp_path, 32, references=[3]).notes]
    assert f"2 of {VIEWS} pictures are missing: those of views 0, 2." in notes[-1]
    with pytest.raises(UserError, match=r"view 2 has no picture: .*images/002\.png"):
        open_views(tmp_path, references=[1, 2])
    lose(tmp_path, 1, 3)
    with pytest.raises(UserError, match=r"000\.png not found"):
        open_views(tmp_path)


# Zero123 folders: one picture and one pose for each number.


@pytest.mark.parametrize("extra, said", [
    ("000.webp", r"several pictures: 000\.png and 000\.webp"),
    ("001.jpg", r"several pictures: 001\.jpg and 001\.png"),
    ("0002.png", r"several pictures: 0002\.png and 002\.png"),
    ("003.PNG", r"several pictures: 003\.PNG and 003\.png"),
    ("0001.npy", r"several poses: 0001\.npy and 001\.npy"),
])  # fmt: skip
def test_two_files_for_one_number_are_refused(tmp_path, extra, said):
    folder = write_zero123(tmp_path / "object", render_balls())
    original = "001.npy" if extra.endswith(".npy") else "000.png"
    shutil.copy(folder / original, folder / extra)
    with pytest.raises(UserError, match=said):
        folders.read_scene_folder(tmp_path / "object")


def archive(path, pose):
    with path.open("wb") as file:
        np.savez(file, pose=pose)


def as_objects(path, pose):
    np.save(path, np.array([pose, None], object), allow_pickle=True)


@pytest.mark.parametrize("write, said", [
    (archive, "is an .npz archive of pose"),
    (as_objects, "is not a whole .npy file"),
    (lambda path, pose: np.save(path, pose[:2]), r"\(2, 4\)"),
    (lambda path, pose: np.save(path, pose.astype(complex)), "complex"),
    (lambda path, pose: path.write_bytes(b""), "is not a whole .npy file"),
    (lambda path, pose: np.save(path, pose * np.inf), "NaN or infinit|must be finite|holds"),
])  # fmt: skip
def test_files_that_hold_no_pose_skip_their_scene_alone(tmp_path, write, said):
    for name in ("broken", "good"):
        write_zero123(tmp_path / "in" / name, render_balls())
    pose = np.load(tmp_path / "in/broken/001.npy")
    write(tmp_path / "in/broken/001.npy", pose)
    _, report = run(zero123, tmp_path / "in", tmp_path / "out")
    ((skipped,), count) = report["skipped"], report["scenes"]
    assert (skipped["scene_id"], count) == ("broken", 1)
    assert re.search(said, skipped["reason"]) and "Error" not in skipped["reason"]


# COLMAP.


def write_text(folder, name_of=None, **options):
    name_of = name_of or (lambda view: f"{view:03d}.png")
    return write_scene(folder, *CAMERA, pinhole, binary=False, name_of=name_of, **options)


def edit(folder, change):
    file = folder / "sparse/0/images.txt"
    file.write_bytes(change(file.read_text()).encode("utf-8"))
    return folder


def lines(text):
    return [line for line in text.splitlines() if not line.startswith("#")]


UNCOMMON = {
    "no points lines": lambda text: "\n".join(lines(text)[::2]) + "\n",
    "empty points lines": lambda text: "\n\n".join(lines(text)[::2]) + "\n\n",
    "last line trimmed": lambda text: "\n\n".join(lines(text)[::2]),
    "byte-order mark": lambda text: "\ufeff" + text,
    "Windows' ends": lambda text: text.replace("\n", "\r\n"),
    "comments between": lambda text: text.replace("\n5.0", "\n# points\n5.0"),
    "blank lines at the end": lambda text: text + "\n\n\n",
}


@pytest.mark.parametrize("case", UNCOMMON)
@pytest.mark.parametrize("pattern", ["{:03d}.png", "shot {} (copy).png", "a b/{}  c.png"])
def test_all_views_of_a_text_model_are_read(tmp_path, case, pattern):
    write_text(tmp_path / "one", pattern.format)
    edit(tmp_path / "one", UNCOMMON[case])
    shards, report = run(colmap, tmp_path / "one", tmp_path / "out", *KEEP, "--up", "file")
    assert (shards[0].num_views, report["views_left_out"]) == (VIEWS, 0)
    np.testing.assert_allclose(shards[0].c2w, askew_cameras(), atol=1e-5)
    assert_balls_where_projected(shards[0], askew(POINTS).astype(np.float32), 0.25)


@pytest.mark.parametrize("change, said", [
    (lambda text: text[: text.rindex(" 7 ")], "neither a picture nor"),
    (lambda text: text + lines(text)[0] + "\n\n", "listed twice"),
    (lambda text: text.replace("\n5.0 6.0 -1", "\n5.0 6.0", 1), "neither a picture nor"),
    (lambda text: text.replace("\n5.0 6.0 -1", "", 1), "neither a picture nor"),
    (lambda text: text + "what is this\n", "neither a picture nor"),
    (lambda text: text.replace(" 7 ", " seven ", 1), "no picture's pose"),
])  # fmt: skip
def test_text_models_that_lost_lines_are_refused(tmp_path, change, said):
    folder = edit(write_text(tmp_path), change)
    with pytest.raises(UserError, match=f"images.txt: .*{said}"):
        folders.read_scene_folder(folder)


def keep_first(text, count):
    return "\n".join(lines(text)[: 2 * count]) + "\n"


@pytest.mark.parametrize("base", ["sparse", "colmap/sparse"])
@pytest.mark.parametrize("sizes, chosen", [((2, 4), 1), ((4, 2), 0), ((3, 3), 0), ((1, 2, 4), 2)])
def test_of_several_models_the_largest_is_read_and_all_are_named(
    tmp_path, capsys, base, sizes, chosen
):
    folder = write_text(tmp_path / "one")
    (folder / "sparse").rename(folder / "whole")
    for number, size in enumerate(sizes):
        shutil.copytree(folder / "whole/0", folder / base / str(number))
        file = folder / base / str(number) / "images.txt"
        file.write_text(keep_first(file.read_text(), size))
    more = ("--min-views", "1", *KEEP)
    shards, report = run(colmap, folder, tmp_path / "out", *more)
    assert shards[0].num_views == sizes[chosen]
    (remark,) = report["notes"]["one"]["remarks"]
    assert remark in capsys.readouterr().out and "--model" in remark
    for number, size in enumerate(sizes):
        assert f"{base}/{number} ({size} pictures)" in remark
    assert f"{base}/{chosen} was read" in remark
    assert report["views_left_out"] == VIEWS - sizes[chosen]
    last = len(sizes) - 1
    shards, _ = run(colmap, folder, tmp_path / "out2", *more, "--model", f"{base}/{last}")
    assert shards[0].num_views == sizes[last]
    assert folders.read_scene_folder(folder).num_views == sizes[chosen]


def test_a_model_without_the_number_0_is_found(tmp_path):
    folder = write_text(tmp_path)
    (folder / "sparse/0").rename(folder / "sparse/3")
    assert folders.read_scene_folder(folder).num_views == VIEWS


def test_pictures_that_are_not_in_the_model_are_counted_and_named(tmp_path, capsys):
    folder = write_text(tmp_path / "one")
    (folder / "images/more").mkdir()
    for name in ("late.png", "more/blurred.JPG"):
        Image.new("RGB", (96, 72)).save(folder / "images" / name)
    (folder / "images/notes.txt").write_text("no picture")
    _, report = run(colmap, folder, tmp_path / "out", *KEEP)
    assert report["notes"]["one"]["left_out"] == {
        "late.png": "not in the COLMAP model",
        "more/blurred.JPG": "not in the COLMAP model",
    }
    assert "2 views of the others left out (2: not in the COLMAP model)" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["images", "pictures", "."])
@pytest.mark.parametrize("pattern", ["{:03d}.png", "C:\\x\\{:03d}.png", "images/{:03d}.jpg"])
def test_pictures_of_a_model_are_found_elsewhere(tmp_path, place, pattern):
    folder = write_text(tmp_path / "one")
    for view in range(VIEWS):
        name = pattern.format(view)
        edit(folder, lambda text, old=f" {view:03d}.png", new=name: text.replace(old, f" {new}"))
    if place != "images":
        (folder / place).mkdir(exist_ok=True)
        for view in range(VIEWS):
            (folder / "images" / f"{view:03d}.png").rename(folder / place / f"{view:03d}.png")
        (folder / "images").rmdir()
    shards, report = run(colmap, folder, tmp_path / "out", *KEEP, "--up", "file")
    assert_balls_where_projected(shards[0], askew(POINTS).astype(np.float32), 0.25)
    elsewhere = place != "images" or pattern != "{:03d}.png"
    exact = place == "." and pattern == "{:03d}.png"
    assert bool(report["notes"]["one"].get("remarks")) == (elsewhere and not exact)


def test_a_model_with_missing_pictures_gives_the_others(tmp_path):
    folder = write_text(tmp_path / "one")
    (folder / "images/001.png").unlink()
    shards, report = run(colmap, folder, tmp_path / "out", *KEEP, "--up", "file")
    assert_balls_where_projected(shards[0], askew(POINTS).astype(np.float32), 0.25)
    assert report["notes"]["one"]["left_out"] == {"001.png": "picture not found"}
    views = open_views(folder)
    assert (views.num_views, views.references.tolist()) == (VIEWS, [0, 2, 3])


@pytest.mark.parametrize("size", ["0 0", "96 0", "0 72"])
def test_cameras_of_no_size_are_named(tmp_path, size):
    folder = write_text(tmp_path)
    file = folder / "sparse/0/cameras.txt"
    file.write_text(file.read_text().replace("96 72", size))
    with pytest.raises(UserError, match=f"camera 7 of {size.replace(' ', ' x ')} pixels"):
        folders.read_scene_folder(folder)
