"""Renders one mesh file with Blender's Cycles. Runs in Blender's Python: bpy, NumPy, no escherjax.

    python render.py FOLDER        renders FOLDER/job.json
    python render.py --probe FILE  writes what Blender and which GPUs there are

The job (JSON): model (path), resolution, samples, denoise, device ("cpu" or "gpu"), threads,
seed, view_transform, sensor_mm, world, lights (see `_add_lights`), depth (bool), and views: a list
of {c2w: [4][4] with OpenGL axes, focal_mm}. The object is scaled so that the longest side of its
bounding box is 1 and moved so that the box is centred at the origin; glTF's y up becomes z up.

Written to FOLDER: 000.png ... (RGBA, straight alpha), 000_depth.npy ... (float32 [H, W], depth
along the optical axis at the pixels' centres in units of the scaled object, 0 where there is
nothing) and answer.json: {scale, center, triangles} with x_new = scale * (x - center), or {error}
if the object cannot be rendered.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

SURFACES = ("MESH", "CURVE", "SURFACE", "FONT", "META")
GPU_KINDS = ("OPTIX", "CUDA", "HIP", "METAL", "ONEAPI")  # OptiX first: faster on the same device
FAR = 1e9  # Blender's depth where there is nothing is 1e10


class Unusable(Exception):
    """The object cannot be rendered: why, for the report."""


def main(folder: Path) -> None:
    """Renders the job in `folder`; see the head of this file."""
    parent = os.getppid()
    job = json.loads((folder / "job.json").read_text())
    try:
        answer = _render(job, folder, lambda: os.getppid() == parent)
    except Unusable as reason:
        answer = {"error": str(reason)}
    temporary = folder / "answer.tmp"
    temporary.write_text(json.dumps(answer))
    temporary.rename(folder / "answer.json")


def _render(job: dict, folder: Path, wanted: Callable[[], bool]) -> dict:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    _import_model(Path(job["model"]))
    low, high, triangles = _bounds()
    center, scale = _normalize(scene, low, high)
    _set_up_cycles(scene, job)
    _add_lights(scene, job["world"], job["lights"])
    camera = _add_camera(scene, job["sensor_mm"])

    passes = [(_colour_pass, "{:03d}.png")]
    if job["depth"]:
        passes.append((_depth_pass, "{:03d}_depth.exr"))
    for prepare, name in passes:
        prepare(scene, job)
        for number, view in enumerate(job["views"]):
            if not wanted():  # whoever asked for the object has died
                sys.exit(1)
            _place_camera(camera, view)
            scene.cycles.seed = (job["seed"] + number) % 2**31
            path = folder / name.format(number)
            scene.render.filepath = str(path)
            bpy.ops.render.render(write_still=True)
            if prepare is _depth_pass:
                np.save(folder / f"{number:03d}_depth.npy", _read_depth(path))
    return {"scale": scale, "center": center.tolist(), "triangles": triangles}


def _import_model(path: Path) -> None:
    """Reads the file into the scene, in its rest position, without its lights and cameras."""
    try:
        if path.suffix.lower() == ".obj":
            _check_obj(path)
            # The importer's default: y up and -z forward, as glTF and most OBJ files have it.
            result = bpy.ops.wm.obj_import(filepath=str(path))
        else:
            sys.modules["io_scene_gltf2"].glTF2ImportUserExtension = _ReadRestPosition
            # Not guessing, the bones rest where the file's nodes put them.
            result = bpy.ops.import_scene.gltf(
                filepath=str(path), disable_bone_shape=True, guess_original_bind_pose=False
            )
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, OSError) as error:
        # Blender's importers raise whatever a broken file makes them stumble over.
        raise Unusable(f"Blender cannot read it: {_one_line(error)}") from error
    if _ReadRestPosition.not_finite:
        raise Unusable(f"mesh '{_ReadRestPosition.not_finite[0]}' has NaN or infinite vertices.")
    if "FINISHED" not in result:
        raise Unusable("Blender cannot read it.")
    missing = sorted(
        image.name
        for image in bpy.data.images
        if image.users and image.source == "FILE" and not all(image.size)
    )
    if missing:
        raise Unusable(f"texture {', '.join(missing[:5])} is missing or broken.")
    for thing in list(bpy.context.scene.objects):
        if thing.type in ("LIGHT", "CAMERA"):
            bpy.data.objects.remove(thing)
    for armature in bpy.data.armatures:
        armature.pose_position = "REST"
    bpy.context.view_layer.update()


class _ReadRestPosition:
    """A hook of Blender's glTF importer: leaves out animations and looks for NaN.

    Blender itself would turn NaN into 0, and leave the last animation's first frame.
    """

    not_finite: list[str] = []

    def gather_import_gltf_before_hook(self, gltf) -> None:
        from io_scene_gltf2.io.imp.gltf2_io_binary import BinaryData

        gltf.data.animations = []
        for number, mesh in enumerate(gltf.data.meshes or []):
            for primitive in mesh.primitives:
                place = primitive.attributes.get("POSITION")
                if place is None:
                    continue
                points = BinaryData.decode_accessor_obj(gltf, gltf.data.accessors[place])
                if not np.isfinite(points).all():
                    self.not_finite.append(mesh.name or str(number))


def _check_obj(path: Path) -> None:
    """Raises Unusable if a vertex is not finite; Blender would put it at 0."""
    with open(path, errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            point = line.split()[1:4] if line.startswith("v ") else []
            if not all(np.isfinite(float(word)) for word in point):
                raise Unusable(f"line {number} has a NaN or infinite vertex.")


def _bounds() -> tuple[np.ndarray, np.ndarray, int]:
    """(low [3], high [3], triangles) of every surface as it is drawn: skinned and instanced.

    Vertices that belong to no face are not drawn and do not count.
    """
    low, high, triangles = np.full(3, np.inf), np.full(3, -np.inf), 0
    graph = bpy.context.evaluated_depsgraph_get()
    for instance in graph.object_instances:
        thing = instance.object
        if thing.type not in SURFACES or thing.hide_render or not instance.show_self:
            continue
        mesh = thing.to_mesh()
        corners = np.empty(len(mesh.loops), np.int32)
        mesh.loops.foreach_get("vertex_index", corners)
        points = np.empty(3 * len(mesh.vertices), np.float32)
        mesh.vertices.foreach_get("co", points)
        triangles += len(corners) - 2 * len(mesh.polygons)
        matrix = np.array(instance.matrix_world, np.float64)
        points = points.reshape(-1, 3)[np.unique(corners)] @ matrix[:3, :3].T + matrix[:3, 3]
        thing.to_mesh_clear()
        if not np.isfinite(points).all():
            raise Unusable(f"mesh '{thing.name}' has vertices that are NaN or infinite.")
        if len(points):
            low, high = np.minimum(low, points.min(0)), np.maximum(high, points.max(0))
    if not triangles:
        raise Unusable("there is no mesh with faces in it.")
    return low, high, triangles


def _normalize(scene, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, float]:
    """Puts everything under one empty that scales and moves it. Returns (center [3], scale)."""
    longest = float((high - low).max())
    if not longest > 0:
        raise Unusable("all its vertices lie in one point.")
    center, scale = (low + high) / 2, 1 / longest
    if not 1e-9 < scale < 1e9:
        raise Unusable(f"its longest side is {longest:g}, out of reach of float32.")
    root = bpy.data.objects.new("normalized", None)
    roots = [thing for thing in scene.objects if thing.parent is None]
    scene.collection.objects.link(root)
    for thing in roots:
        thing.parent = root
    root.scale = [scale] * 3
    root.location = -scale * center
    bpy.context.view_layer.update()
    moved_low, moved_high, _ = _bounds()
    error = max(np.abs(moved_low + moved_high).max() / 2, abs((moved_high - moved_low).max() - 1))
    if not error < 1e-3:  # a driver or a constraint that pulls back
        raise Unusable(f"it does not move with its root; its box is {moved_low} to {moved_high}.")
    return center, scale


def _set_up_cycles(scene, job: dict) -> None:
    render, cycles = scene.render, scene.cycles
    render.engine = "CYCLES"
    render.resolution_x = render.resolution_y = job["resolution"]
    render.resolution_percentage = 100
    render.film_transparent = True
    render.use_persistent_data = True
    render.dither_intensity = 0
    render.threads_mode, render.threads = "FIXED", job["threads"]
    cycles.use_adaptive_sampling = False
    scene.view_settings.view_transform = job["view_transform"]
    scene.view_settings.look = "None"
    if job["device"] == "gpu":
        if not _find_gpus(use=True):
            raise Unusable("Cycles finds no GPU.")
        cycles.device = "GPU"


def _find_gpus(use: bool = False) -> list[str]:
    """Names of the devices of the best kind there is; `use` chooses them all for Cycles."""
    preferences = bpy.context.preferences.addons["cycles"].preferences
    for kind in GPU_KINDS:
        try:
            preferences.compute_device_type = kind
        except TypeError:  # a kind that this build does not know
            continue
        devices = [d for d in preferences.get_devices_for_type(kind) if d.type == kind]
        if devices:
            if use:
                for device in preferences.devices:
                    device.use = device.type == kind
            return [f"{kind} {device.name}" for device in devices]
    return []


def _add_lights(scene, world_colors: list, lights: list[dict]) -> None:
    """world_colors: linear RGB looking down, level and up, blended by height; a list of 3.

    lights: {kind: "AREA" or "SUN", location [3], direction [3] that it shines along, energy (W; of
    a sun W/m^2), size (side in m; of a sun its angle in radians), color [3]}.
    """
    world = bpy.data.worlds.new("world")
    scene.world = world
    world.use_nodes = True
    tree = world.node_tree
    background = tree.nodes["Background"]
    coordinates = tree.nodes.new("ShaderNodeTexCoord")
    separate = tree.nodes.new("ShaderNodeSeparateXYZ")
    height = tree.nodes.new("ShaderNodeMapRange")  # -1 ... 1 to 0 ... 1
    height.inputs["From Min"].default_value = -1.0
    ramp = tree.nodes.new("ShaderNodeValToRGB")
    ramp.color_ramp.elements.new(0.5)
    for element, color in zip(ramp.color_ramp.elements, world_colors, strict=True):
        element.color = (*color, 1.0)
    tree.links.new(coordinates.outputs["Generated"], separate.inputs["Vector"])
    tree.links.new(separate.outputs["Z"], height.inputs["Value"])
    tree.links.new(height.outputs["Result"], ramp.inputs["Fac"])
    tree.links.new(ramp.outputs["Color"], background.inputs["Color"])
    for light in lights:
        data = bpy.data.lights.new(light["kind"], light["kind"])
        data.energy, data.color = light["energy"], light["color"]
        if light["kind"] == "SUN":
            data.angle = light["size"]
        else:
            data.size = light["size"]
        thing = bpy.data.objects.new(light["kind"], data)
        thing.location = light["location"]
        thing.rotation_mode = "QUATERNION"
        thing.rotation_quaternion = _quaternion_along(light["direction"])
        thing.visible_camera = False
        scene.collection.objects.link(thing)


def _quaternion_along(direction: list[float]):
    """The rotation that turns -z, where lights shine, to `direction`."""
    from mathutils import Vector

    return Vector(direction).to_track_quat("-Z", "Y")


def _add_camera(scene, sensor_mm: float):
    data = bpy.data.cameras.new("camera")
    data.sensor_fit, data.sensor_width = "HORIZONTAL", sensor_mm
    data.clip_start, data.clip_end = 1e-3, 1e3
    camera = bpy.data.objects.new("camera", data)
    scene.collection.objects.link(camera)
    scene.camera = camera
    return camera


def _place_camera(camera, view: dict) -> None:
    camera.data.lens = view["focal_mm"]
    camera.matrix_world = Matrix(view["c2w"])
    bpy.context.view_layer.update()
    error = np.abs(np.array(camera.matrix_world) - np.array(view["c2w"])).max()
    if not error < 1e-5:  # Blender keeps a place and a rotation, not the matrix
        raise Unusable(f"the camera stands {error:g} off its place.")


def _colour_pass(scene, job: dict) -> None:
    scene.cycles.samples = job["samples"]
    scene.cycles.use_denoising = job["denoise"]
    settings = scene.render.image_settings
    settings.file_format, settings.color_mode, settings.color_depth = "PNG", "RGBA", "8"
    settings.compression = 0  # the picture is encoded again


def _depth_pass(scene, job: dict) -> None:
    """One ray through the centre of each pixel; what is written is depth instead of colour."""
    cycles, layer = scene.cycles, scene.view_layers[0]
    cycles.samples = 1
    cycles.use_denoising = False
    cycles.pixel_filter_type, cycles.filter_width = "BOX", 0.01
    cycles.max_bounces = 0
    layer.use_pass_z = True
    tree = bpy.data.node_groups.new("depth", "CompositorNodeTree")
    tree.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
    rendered = tree.nodes.new("CompositorNodeRLayers")
    result = tree.nodes.new("NodeGroupOutput")
    tree.links.new(rendered.outputs["Depth"], result.inputs[0])
    scene.compositing_node_group = tree
    scene.render.use_compositing = True
    settings = scene.render.image_settings
    settings.file_format, settings.color_mode, settings.color_depth = "OPEN_EXR", "RGB", "32"


def _read_depth(path: Path) -> np.ndarray:
    """[H, W] float32 of an EXR, top row first."""
    image = bpy.data.images.load(str(path))
    width, height = image.size
    pixels = np.empty(4 * width * height, np.float32)
    image.pixels.foreach_get(pixels)
    bpy.data.images.remove(image)
    path.unlink()
    depth = pixels.reshape(height, width, 4)[::-1, :, 0]
    return np.where(depth < FAR, depth, np.float32(0))


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]


if __name__ == "__main__":
    if sys.argv[1] == "--probe":
        bpy.ops.wm.read_factory_settings(use_empty=True)
        found = {"version": bpy.app.version_string, "gpus": _find_gpus()}
        Path(sys.argv[2]).write_text(json.dumps(found))
    else:
        main(Path(sys.argv[1]))
