"""Meshes rendered by Blender: cameras, depth and outlines against projections of known geometry.

Tests that start Blender are skipped unless its environment is there already; ESCHERJAX_TEST_BPY=1
makes it (1 GB).
"""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from data_prep.render_meshes import __main__ as render_meshes
from data_prep.render_meshes import environment
from escherjax import cameras
from escherjax.data.formats.folders import read_scene_folder
from escherjax.errors import UserError
from tests.helpers.mesh_files import (
    COLORS,
    CORNERS,
    world_cubes,
    write_broken,
    write_gltf,
    write_obj,
)
from tests.helpers.scene_folders import run

SIZE = 96
VIEWS = 8
FAST = [
    "--resolution",
    str(SIZE),
    "--samples",
    "16",
    "--no-denoise",
    "--view-transform",
    "Standard",
    "--num-views",
    str(VIEWS),
    "--focal-mm",
    "25",
    "45",
]


@pytest.fixture(scope="module")
def blender_python():
    if not (environment.environment_folder().is_dir() or os.environ.get("ESCHERJAX_TEST_BPY")):
        pytest.skip("Blender's environment is not here; ESCHERJAX_TEST_BPY=1 makes it")
    return environment.blender_python()


@pytest.fixture(scope="module")
def rendered(blender_python, tmp_path_factory):
    """(scenes by id, report, folder of views) of good, broken and crashing objects.

    Made by a run that was stopped at its last object, and one that finished it.
    """
    folder = tmp_path_factory.mktemp("meshes")
    write_gltf(folder / "meshes" / "gltf.gltf")
    write_obj(folder / "meshes" / "obj.obj")
    write_broken(folder / "meshes" / "broken")
    write_obj(folder / "meshes" / "crash.obj")
    # Starts the real renderer, but for the object that is to crash it.
    wrapper = folder / "python"
    wrapper.write_text(
        "#!/bin/sh\n"
        'grep -qs crash.obj "$3/job.json" && kill -SEGV $$\n'
        f'exec {blender_python} "$@"\n'
    )
    wrapper.chmod(0o755)
    views = folder / "views"
    arguments = [
        folder / "meshes",
        folder / "out",
        *FAST,
        "--shards",
        "2",
        "--depth",
        "--mask",
        "--views-folder",
        str(views),
        "--blender-python",
        str(wrapper),
    ]

    def stop_at_last(python, job, *more):
        if job["model"].endswith("obj.obj"):
            raise KeyboardInterrupt
        return render_object(python, job, *more)

    render_object = environment.render_object
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(environment, "render_object", stop_at_last)
        run(render_meshes, *arguments)
    source, report = run(render_meshes, *arguments)
    scenes = {source[i].scene_id: source[i] for i in range(len(source))}
    return scenes, report, views


def decode(scene):
    return np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in scene.images])


@pytest.mark.parametrize("name", ["gltf", "obj"])
def test_cubes_are_seen_where_cameras_project_their_corners(rendered, name):
    scene = rendered[0][name]
    pictures = decode(scene)
    centers, half = world_cubes()
    corners = (centers[:, None] + half * CORNERS).astype(np.float32)  # [4, 8, 3]
    errors = []
    for picture, c2w, K in zip(pictures, scene.c2w, scene.K, strict=True):
        pixels, depth = cameras.project(corners.reshape(-1, 3), c2w, K)
        pixels, depth = pixels.reshape(4, 8, 2), depth.reshape(4, 8)
        low, high = pixels.min(1), pixels.max(1)
        for cube, color in enumerate(COLORS):
            nearer = depth.mean(1) < depth[cube].mean()
            overlap = (low < high[cube] + 2).all(1) & (high > low[cube] - 2).all(1)
            hidden = (nearer & overlap).any()
            outside = (low[cube] < 1).any() or (high[cube] > SIZE - 1).any()
            if hidden or outside:
                continue
            same = np.abs(picture[..., :3] / 255.0 - color).max(-1) < 0.3
            rows, columns = np.nonzero(same & (picture[..., 3] > 127))
            seen = [[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]
            errors.append(np.array(seen) - [low[cube], high[cube]])
    errors = np.array(errors)
    assert len(errors) >= 20  # of 32; some hide each other
    # A half-covered pixel ends at most one pixel from the outline, a corner's tip less than that.
    assert np.abs(errors).max() < 1.0
    # Both ends are off alike, outwards. The mean of some 50 such errors is within 0.15 of 0; a
    # principal point half a pixel off is not.
    np.testing.assert_allclose(errors.mean((0, 1)), 0, atol=0.15)


@pytest.mark.parametrize("name", ["gltf", "obj"])
def test_depth_leads_back_to_the_faces_of_the_cubes(rendered, name):
    scenes, _, views = rendered
    scene = scenes[name]
    centers, half = world_cubes()
    for view in range(scene.num_views):
        depth = np.load(views / name / f"{view:03d}_depth.npz")["depth"]
        assert depth.dtype == np.float32 and depth.shape == (SIZE, SIZE)
        rows, columns = np.nonzero(depth)
        rays = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))])
        points = (np.linalg.inv(scene.K[view]) @ rays * depth[rows, columns]).T
        points = points @ scene.c2w[view, :3, :3].T + scene.c2w[view, :3, 3]
        side = np.abs(points[:, None] - centers).max(-1).min(1)  # to the nearest cube
        # The ray stays within 0.005 pixels of the centre: 0.0002 at this size and slant.
        np.testing.assert_allclose(side, half, atol=1e-3)
        alpha = decode(scene)[view, ..., 3]
        assert not ((alpha == 255) & (depth == 0)).any()
        assert not ((alpha == 0) & (depth > 0)).any()


def test_views_folder_holds_what_the_record_holds(rendered):
    scenes, _, views = rendered
    scene, folder = scenes["gltf"], read_scene_folder(views / "gltf")
    np.testing.assert_array_equal(decode(folder), decode(scene))
    np.testing.assert_allclose(folder.c2w, scene.c2w, atol=1e-6)
    np.testing.assert_allclose(folder.K, scene.K, rtol=1e-6)
    focal = scene.K[:, 0, 0] / SIZE * 32
    assert focal.min() >= 25 and focal.max() <= 45 and focal.std() > 1
    masks = [np.asarray(Image.open(views / "gltf" / f"{i:03d}_mask.png")) for i in range(VIEWS)]
    np.testing.assert_array_equal(masks, decode(scene)[..., 3])


def test_unusable_objects_are_left_out_with_their_reason(rendered, tmp_path):
    scenes, report, views = rendered
    assert sorted(scenes) == ["gltf", "obj"]
    reasons = {entry["scene_id"]: entry["reason"] for entry in report["skipped"]}
    expected = {f"broken/{name}": text for name, text in write_broken(tmp_path).items()}
    expected["crash"] = "SIGSEGV"
    assert sorted(reasons) == sorted(expected)
    for name, text in expected.items():
        assert text in reasons[name]
    assert sorted(path.name for path in views.iterdir()) == ["gltf", "obj"]


def test_pictures_are_stored_in_the_format_asked_for(rendered, tmp_path):
    scenes, _, views = rendered
    model = views.parent / "meshes" / "gltf.gltf"
    more = ["--format", "webp", "--quality", "100", "--views-folder", str(tmp_path / "views")]
    again, _ = run(render_meshes, model, tmp_path / "out", *FAST, *more)
    assert {Image.open(io.BytesIO(data)).format for data in again[0].images} == {"WEBP"}
    np.testing.assert_array_equal(decode(again[0]), decode(scenes["gltf"]))  # 100 is lossless
    assert Image.open(tmp_path / "views" / "gltf" / "000.png").format == "PNG"


def test_object_rendered_alone_with_other_threads_has_the_same_bytes(rendered, tmp_path):
    scenes, _, views = rendered
    model = views.parent / "meshes" / "gltf.gltf"
    again, _ = run(render_meshes, model, tmp_path / "out", *FAST, "--workers", "1")
    assert again[0].images == scenes["gltf"].images
    np.testing.assert_array_equal(again[0].c2w, scenes["gltf"].c2w)


def test_real_meshes_fill_their_outlines_and_a_skinned_one_stands_at_rest(
    blender_python, data_dir, tmp_path
):
    shutil.copytree(data_dir / "models" / "spot_obj", tmp_path / "models" / "spot_obj")
    shutil.copy(data_dir / "models" / "fox_lowpoly.glb", tmp_path / "models")
    model = data_dir / "models" / "spot_obj" / "spot.obj"
    source, report = run(render_meshes, tmp_path / "models", tmp_path / "out", *FAST)
    fox = report["notes"]["fox_lowpoly"]
    # Longest side and middle of the file's bind pose; its first animation leans out of it.
    np.testing.assert_allclose(1 / fox["scale"], 154.72, rtol=1e-4)
    np.testing.assert_allclose(fox["center"], [0, 10.735, 39.393], atol=0.01)
    scene = next(source[i] for i in range(2) if source[i].scene_id == "spot_obj/spot")
    lines = [line.split() for line in model.read_text().splitlines() if line.startswith("v ")]
    x, y, z = np.array([line[1:4] for line in lines], np.float64).T
    points = np.stack([x, -z, y], -1)  # the file has y up
    low, high = points.min(0), points.max(0)
    points = ((points - (low + high) / 2) / (high - low).max()).astype(np.float32)
    center = report["notes"]["spot_obj/spot"]["center"]
    np.testing.assert_allclose(center, (low + high) / 2, atol=1e-5)
    for picture, c2w, K in zip(decode(scene), scene.c2w, scene.K, strict=True):
        pixels = cameras.project(points, c2w, K)[0].clip(0, SIZE)  # near ones leave the picture
        rows, columns = np.nonzero(picture[..., 3] > 25)
        seen = [[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]
        # 1: of the picture's whole pixels; 0.5: the pixel filter spreads a pixel's rays.
        np.testing.assert_allclose(seen, [pixels.min(0), pixels.max(0)], atol=1.5)


def test_object_that_takes_too_long_is_stopped(tmp_path):
    slow = tmp_path / "python"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    slow.chmod(0o755)
    with pytest.raises(UserError, match=r"not rendered in 1 s \(--timeout\)"):
        environment.render_object(slow, {}, tmp_path, timeout_s=1)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_python_without_blender_is_named(tmp_path):
    write_obj(tmp_path / "meshes" / "one.obj")
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho No module named bpy\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(UserError, match="cannot start Blender.*No module named bpy[^$]*libx11"):
        run(render_meshes, tmp_path / "meshes", tmp_path / "out", "--blender-python", str(fake))
    with pytest.raises(UserError, match="is not a file"):
        run(render_meshes, tmp_path / "meshes", tmp_path / "out", "--blender-python", "nowhere")


@pytest.mark.slow  # installs pip
def test_environment_that_cannot_be_made_leaves_nothing_behind(tmp_path, monkeypatch):
    if environment.sys.version_info[:2] != environment.PYTHON_VERSION:
        pytest.skip("makes the environment of the running Python")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    partial = tmp_path / "escherjax" / f"bpy-{environment.BPY_VERSION}.partial"
    (partial / "bin").mkdir(parents=True)  # what a killed installation leaves
    (partial / "bin" / "python").write_text("half")
    with pytest.raises(UserError, match=f"registry.*bpy=={environment.BPY_VERSION}"):
        environment.blender_python()
    assert not partial.exists() and not environment.environment_folder().exists()
