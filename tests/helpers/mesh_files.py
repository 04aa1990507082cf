"""Mesh files written by hand: glowing cubes at known places, as glTF and OBJ, and broken ones.

Both formats have y up, so a file's (x, y, z) is (x, -z, y) in a world with z up.
"""

import base64
import json
import struct

import numpy as np

HALF = 0.15  # of a cube's side, in file units
# No symmetry: every flip or swap of axes moves a cube.
CENTERS = np.array([
    [0.05, -0.45, -0.75], [1.95, -0.1, 0.15], [0.7, 0.85, -0.2], [1.4, 0.1, -0.6],
])  # fmt: skip
COLORS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], float)  # linear RGB
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
FACES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def world_cubes():
    """(centers [4, 3], half side) of the cubes as they must be rendered: unit box, z up."""
    low, high = CENTERS.min(0) - HALF, CENTERS.max(0) + HALF
    scale = 1 / (high - low).max()
    x, y, z = (scale * (CENTERS - (low + high) / 2)).T
    return np.stack([x, -z, y], -1), scale * HALF


def write_obj(path):
    """The cubes as one OBJ with a material library beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines, number = [f"mtllib {path.stem}.mtl"], 1
    for cube, center in enumerate(CENTERS):
        lines += [f"o cube{cube}", f"usemtl color{cube}"]
        lines += ["v {} {} {}".format(*(center + HALF * corner)) for corner in CORNERS]
        lines += ["f " + " ".join(str(number + i) for i in face) for face in FACES]
        number += 8
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".mtl").write_text(
        "".join(
            f"newmtl color{i}\nKd 0 0 0\nKs 0 0 0\nKe {r} {g} {b}\n"
            for i, (r, g, b) in enumerate(COLORS)
        )
    )


def write_gltf(path, points=None, scene=None):
    """One cube mesh, placed by nested nodes with a turn and scales; `points` replaces its corners.

    scene: what to merge into the file's JSON.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    points = np.asarray(CORNERS if points is None else points, "<f4")
    triangles = np.array([[f[0], f[i], f[i + 1]] for f in FACES for i in (1, 2)], "<u2")
    buffer = points.tobytes() + triangles.tobytes()
    attributes = {"attributes": {"POSITION": 0}, "indices": 1}
    cubes = range(len(CENTERS))
    # A quarter turn about y takes (x, y, z) to (z, y, -x); the parent undoes it and scales by 10.
    half = np.sqrt(0.5)
    content = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [
            {"children": [i + 1 for i in cubes], "scale": [10] * 3, "rotation": [0, half, 0, half]},
            *(
                {"mesh": i, "translation": [-z / 10, y / 10, x / 10], "scale": [HALF / 10] * 3}
                for i, (x, y, z) in enumerate(CENTERS.tolist())
            ),
        ],
        "meshes": [{"primitives": [{**attributes, "material": i}]} for i in cubes],
        "materials": [
            {
                "pbrMetallicRoughness": {"baseColorFactor": [0, 0, 0, 1], "metallicFactor": 0},
                "emissiveFactor": color.tolist(),
            }
            for color in COLORS
        ],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": 5126,
                "count": 8,
                "type": "VEC3",
                "min": [-1] * 3,
                "max": [1] * 3,
            },
            {"bufferView": 1, "componentType": 5123, "count": 36, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 96},
            {"buffer": 0, "byteOffset": 96, "byteLength": 72},
        ],
        "buffers": [
            {
                "byteLength": len(buffer),
                "uri": "data:application/octet-stream;base64," + base64.b64encode(buffer).decode(),
            }
        ],
        **(scene or {}),
    }
    path.write_text(json.dumps(content))


def write_broken(folder):
    """One file for each thing that keeps an object from being rendered. Returns {id: reason}."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cut_off.glb").write_bytes(struct.pack("<4sIIII", b"glTF", 2, 500, 400, 0x4E4F534A))
    (folder / "infinite.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1e400 0\nf 1 2 3\n")
    (folder / "no_faces.obj").write_text("v 0 0 0\nv 1 0 0\n")
    write_gltf(folder / "not_finite.gltf", np.where(CORNERS > 0, np.nan, CORNERS))
    write_gltf(folder / "one_point.gltf", np.zeros((8, 3)), {"nodes": [{"mesh": 0}]})
    write_obj(folder / "textureless.obj")
    library = folder / "textureless.mtl"
    library.write_text(library.read_text() + "map_Kd not_there.png\n")
    return {
        "cut_off": "Blender cannot read it",
        "infinite": "line 3 has a NaN or infinite vertex",
        "no_faces": "no mesh with faces",
        "not_finite": "NaN or infinite vertices",
        "one_point": "in one point",
        "textureless": "texture not_there.png is missing",
    }
