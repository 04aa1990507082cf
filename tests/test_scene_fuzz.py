"""Scene files damaged at random end in a message or a scene, never in another exception."""

import json
import random

import pytest

from escherjax.data.formats import folders
from escherjax.data.inputs import open_views
from escherjax.errors import UserError
from tests.helpers.colmap_folders import write_scene
from tests.helpers.dot_folders import PINHOLE, pinhole, write_dots

TIMES = 60  # damaged files for each seed
NUMBERS = (None, 0, -1, -0.0, 1e-300, 1e300, 10**400, float("nan"), float("inf"), True, False)
TEXTS = ("", "x", "images/000.png", "images", ".", "..", "/", "\\", "\0a", "a" * 5000, "C:\\", "é")
OTHERS = ([], {}, [1], [[1]], ["a"], {"mode": 3})
FIELDS = (
    "w",
    "h",
    "fl_x",
    "fl_y",
    "cx",
    "cy",
    "k1",
    "k2",
    "k4",
    "p1",
    "camera_model",
    "is_fisheye",
)
PARTS = ("lens", "camera_angle_x", "camera_angle_y", "file_path", "transform_matrix", "frames")


def read(folder):
    """Whether each of both readers reads the folder; anything but a UserError is raised."""
    results = []
    for reader in (folders.read_scene_folder, open_views):
        try:
            reader(folder)
            results.append(True)
        except UserError:
            results.append(False)
    return results


def damage_fields(content, rng):
    frames = content["frames"]
    for _ in range(rng.randint(1, 3)):
        part = rng.choice([content, *frames])
        field, value = rng.choice(FIELDS + PARTS), rng.choice(NUMBERS + TEXTS + OTHERS)
        if field == "transform_matrix" and field in part and isinstance(part[field], list):
            part[field][0] = [value, *part[field][0][1:]]
        else:
            part[field] = value


def damage_text(text, rng):
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text))
        how = rng.choice(["cut", "delete", "insert", "insert", "insert"])
        piece = rng.choice(["\n", " ", "9", "-", "x", "nan", "\t", "é", "\r", "1e999", "\0"])
        rest = "" if how == "cut" else text[place + (how == "delete") :]
        text = text[:place] + (piece if how == "insert" else "") + rest or " "
    return text


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_transforms_with_damaged_fields(tmp_path, seed):
    rng = random.Random(seed)
    write_dots(tmp_path, fields={**PINHOLE, "k1": 0.1})
    file = tmp_path / "transforms.json"
    whole = file.read_text()
    results = []
    for _ in range(TIMES):
        content = json.loads(whole)
        damage_fields(content, rng)
        file.write_text(json.dumps(content))
        results += read(tmp_path)
    assert True in results and False in results


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_text_models_with_damaged_lines(tmp_path, seed):
    pytest.importorskip("pycolmap")
    rng = random.Random(seed)
    lens = ("PINHOLE", (90.0, 90.0, 49.0, 35.0))
    write_scene(tmp_path, *lens, pinhole, binary=False)
    files = [tmp_path / "sparse/0" / name for name in ("cameras.txt", "images.txt")]
    whole = [file.read_text() for file in files]
    results = []
    for _ in range(TIMES):
        for file, text in zip(files, whole, strict=True):
            file.write_text(damage_text(text, rng) if rng.random() < 0.8 else text)
        results += read(tmp_path)
    assert True in results and False in results
