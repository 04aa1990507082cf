"""Zero123 renders inside archives, read as if they were unpacked, and the released selection."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from data_prep import zero123
from data_prep.lib import archives
from escherjax.data import shards as records
from escherjax.errors import UserError
from tests.helpers.scene_folders import (
    assert_balls_where_projected,
    render_balls,
    run,
    write_zero123,
)

ORDER = "dbace"  # of the archive's folders; not sorted
OPTIONS = ("--shards", "2", "--heldout", "2", "--resolution", "32")


@pytest.fixture(scope="module")
def renders(tmp_path_factory):
    """views_release/ with five scenes of two to four views, of which one lacks a pose."""
    root = tmp_path_factory.mktemp("renders") / "views_release"
    rendered = render_balls()
    for number, name in enumerate(ORDER):
        part = tuple(array[: 2 + number % 3] for array in rendered)
        write_zero123(root / name, part)
    (root / "c" / "001.npy").unlink()
    (root / "d" / "BLENDER_EEVEE.txt").write_text("no view")
    return root


def pack(root, path, mode="w", before=(), after=()):
    """An archive of the folder with its scenes in ORDER; (TarInfo, bytes) before and after them."""
    with tarfile.open(path, mode) as archive:
        for info, data in before:
            archive.addfile(info, io.BytesIO(data))
        for name in ORDER:
            archive.add(root / name, f"{root.name}/{name}")
        for info, data in after:
            archive.addfile(info, io.BytesIO(data))
    return path


def member(name, data=b"", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def shards(out):
    return {path.name: path.read_bytes() for path in sorted(out.glob("*array_record*[0-9]"))}


def ids(folder, split="train"):
    source = records.open_shards(folder, split)
    return [source[place].scene_id for place in range(len(source))]


def test_plain_archive_gives_the_bytes_of_the_unpacked_folder(renders, tmp_path):
    source, unpacked = run(zero123, renders, tmp_path / "folder", *OPTIONS)
    assert_balls_where_projected(source[0])
    path = pack(renders, tmp_path / "views_release.tar")
    _, report = run(zero123, path, tmp_path / "archive", *OPTIONS)
    assert shards(tmp_path / "archive") == shards(tmp_path / "folder")
    assert report["splits"] == unpacked["splits"] == {"train": 2, "heldout": 2}
    assert "view 001 has no pose" in report["skipped"][0]["reason"]
    assert not list((tmp_path / "archive").glob(".import"))


def test_compressed_archive_gives_the_same_scenes_and_splits_in_its_own_order(renders, tmp_path):
    run(zero123, renders, tmp_path / "folder", *OPTIONS)
    path = pack(renders, tmp_path / "views_release.tar.gz", "w:gz")
    run(zero123, path, tmp_path / "archive", *OPTIONS)
    assert ids(tmp_path / "folder") == ["a", "b"] and ids(tmp_path / "archive") == ["b", "a"]
    assert ids(tmp_path / "folder", "heldout") == ["d", "e"] == ids(tmp_path / "archive", "heldout")
    for split in ("train", "heldout"):
        folder, archive = (records.open_shards(tmp_path / n, split) for n in ("folder", "archive"))
        expected = {folder[i].scene_id: records.encode_scene(folder[i]) for i in range(2)}
        assert expected == {archive[i].scene_id: records.encode_scene(archive[i]) for i in range(2)}


def test_joined_gzip_files_are_read_to_their_end(renders, tmp_path):
    data = pack(renders, tmp_path / "plain.tar").read_bytes()
    half = len(data) // 2
    path = tmp_path / "joined.tgz"
    path.write_bytes(gzip.compress(data[:half]) + gzip.compress(data[half:]))
    run(zero123, path, tmp_path / "out")
    assert sorted(ids(tmp_path / "out")) == list("abde")


@pytest.mark.parametrize("ending, mode", [("tar", "w"), ("tar.gz", "w:gz")])
def test_stopped_import_of_an_archive_goes_on_from_its_list(
    renders, tmp_path, monkeypatch, ending, mode
):
    path = pack(renders, tmp_path / f"views_release.{ending}", mode)
    run(zero123, path, tmp_path / "whole", *OPTIONS)
    read, out = archives.Archive.read, tmp_path / "out"
    last = "views_release/a" if ending == "tar.gz" else "views_release/d"

    def stop(self, folder):
        if folder == last:
            raise KeyboardInterrupt
        return read(self, folder)

    monkeypatch.setattr(archives.Archive, "read", stop)
    with pytest.raises(KeyboardInterrupt):
        run(zero123, path, out, *OPTIONS)
    kept = shards(out)
    assert len(kept) == {"tar": 2, "tar.gz": 1}[ending]
    monkeypatch.setattr(archives.Archive, "read", read)
    monkeypatch.setattr(archives.Archive, "_list", None)  # the list is there already
    run(zero123, path, out, *OPTIONS)
    assert shards(out) == shards(tmp_path / "whole")


def test_members_that_leave_the_folder_are_refused_and_named(renders, tmp_path):
    picture = (renders / "a" / "000.png").read_bytes()
    evil = [
        member("../000.png", picture),
        member("/tmp/000.png", picture),
        member("views_release/../../x/001.png", picture),
        member("views_release/device/000.png", kind=tarfile.CHRTYPE),
        member("views_release/note.txt", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("views_release/e/001.png", kind=tarfile.LNKTYPE, link="views_release/a/000.png"),
    ]
    path = pack(renders, tmp_path / "views_release.tar", before=evil[:3], after=evil[3:])
    _, report = run(zero123, path, tmp_path / "out")
    assert report["refused_members"].keys() == {info.name for info, _ in evil}
    assert report["refused_members"]["../000.png"] == "leads out of the folder"
    assert report["refused_members"]["views_release/device/000.png"].startswith("is a device")
    assert ids(tmp_path / "out") == ["a", "b", "d"]
    reasons = {entry["scene_id"]: entry["reason"] for entry in report["skipped"]}
    assert "e/001.png (is a link)" in reasons["e"]


def test_scene_in_several_parts_needs_a_plain_archive(renders, tmp_path):
    last = (renders / "b" / "000.png").read_bytes()
    later = [member("views_release/a/000.png", last)]  # replaces the first, as on unpacking
    path = pack(renders, tmp_path / "x.tar", after=later)
    source, _ = run(zero123, path, tmp_path / "plain", "--resolution", "0")
    assert source[0].scene_id == "a" and source[0].images[0] == last
    path = pack(renders, tmp_path / "x.tar.gz", "w:gz", after=later)
    _, report = run(zero123, path, tmp_path / "gz")
    reasons = {entry["scene_id"]: entry["reason"] for entry in report["skipped"]}
    assert "lies in 2 parts of a compressed archive" in reasons["a"] and len(reasons) == 2


def damaged(path, how):
    data = path.read_bytes()
    if how == "cut between members":
        with tarfile.open(path) as archive:
            data = data[: archive.getmembers()[8].offset]
    elif how == "damaged header":
        with tarfile.open(path) as archive:
            place = archive.getmembers()[8].offset
        data = data[:place] + b"?" * 512 + data[place + 512 :]
    else:
        data = data[: len(data) // 2]
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["cut between members", "damaged header", "cut .tar", "cut .gz"])
def test_damaged_archive_is_refused_before_anything_is_written(renders, tmp_path, how):
    name, mode = ("x.tar.gz", "w:gz") if how.endswith(".gz") else ("x.tar", "w")
    path = pack(renders, tmp_path / name, mode)
    damaged(path, how)
    with pytest.raises(UserError, match="is damaged or cut off behind .* members"):
        run(zero123, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_archive_without_scenes_and_finished_data_sets_are_refused(renders, tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(*member("readme"))
    with pytest.raises(UserError, match="no scenes in .*x.tar"):
        run(zero123, path, tmp_path / "out")
    pack(renders, path)
    run(zero123, path, tmp_path / "out2")
    with pytest.raises(UserError, match="holds a data set already"):
        run(zero123, path, tmp_path / "out2")


def test_too_large_a_scene_is_skipped(renders, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_SCENE_BYTES", 5000)
    big = [member("views_release/a/000.png", bytes(6000))]
    path = pack(renders, tmp_path / "x.tar", after=big)
    _, report = run(zero123, path, tmp_path / "out")
    reasons = {entry["scene_id"]: entry["reason"] for entry in report["skipped"]}
    assert "a/000.png has 6000 bytes" in reasons["a"]


def test_id_lists_select_and_hold_out_and_unknown_ids_are_named(renders, tmp_path):
    chosen, heldout = tmp_path / "ids.json", tmp_path / "heldout.txt"
    chosen.write_text(json.dumps(["e", "a", "zz", "b"]))
    heldout.write_text("a\n\nyy\n")
    options = ("--ids", str(chosen), "--heldout-ids", str(heldout))
    for source in (renders, pack(renders, tmp_path / "v.tar.gz", "w:gz")):
        out = tmp_path / f"out-{source.name}"
        _, report = run(zero123, source, out, *options)
        assert sorted(ids(out)) == ["b", "e"] and ids(out, "heldout") == ["a"]
        assert report["ids"] == {"given": 4, "unknown": ["zz"]}
        assert report["heldout_ids"] == {"given": 2, "unknown": ["yy"]}
    for text, reason in (
        ("[1]", "lists 1; expected ids"),
        ("[", "cannot be read as a list"),
        ("x", "none of its 1"),
    ):
        chosen.write_text(text)
        with pytest.raises(UserError, match=reason):
            run(zero123, renders, tmp_path / "out", *options)
    with pytest.raises(UserError, match="exclude each other"):
        run(zero123, renders, tmp_path / "out", "--heldout", "1", *options[2:])
    with pytest.raises(UserError, match="leaves none of 5 scenes"):
        run(zero123, renders, tmp_path / "out", "--heldout", "9")


def test_released_filter_takes_twelve_views_of_which_two_may_be_empty(renders, tmp_path):
    root = tmp_path / "renders"
    for name, views, empty in (("good", 12, 2), ("empty", 12, 3), ("few", 11, 0), ("many", 13, 0)):
        (root / name).mkdir(parents=True)
        for view in range(views):
            alpha = 0 if view < empty else 255
            picture = Image.new("RGBA", (8, 8), (9, 9, 9, alpha))
            picture.save(root / name / f"{view:03d}.png")
            pose = np.eye(4)[:3]
            pose[2, 3] = -1 - view
            np.save(root / name / f"{view:03d}.npy", pose)
    _, report = run(zero123, root, tmp_path / "out", "--released-filter")
    assert ids(tmp_path / "out") == ["good"]
    reasons = {entry["scene_id"]: entry["reason"] for entry in report["skipped"]}
    assert "3 views are empty" in reasons["empty"] and "has 11 views" in reasons["few"]
    assert "has 13 views" in reasons["many"]
    with pytest.raises(UserError, match="--released-filter excludes"):
        run(zero123, root, tmp_path / "o", "--released-filter", "--num-views", "11")
