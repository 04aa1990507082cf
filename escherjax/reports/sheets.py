"""Pictures for people: contact sheets of views, animations, one curve, enlarged middles."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from escherjax import cameras
from escherjax.errors import UserError
from escherjax.files import whole_file

REFERENCE, TARGET, SAMPLE = (214, 96, 31), (110, 110, 110), (31, 105, 196)
_GAP, _FRAME = 6, 3
_MIN_TILE = 96  # smaller images are shown larger

log = logging.getLogger(__name__)


def scene_sheet(
    path: Path,
    references: np.ndarray,
    samples: np.ndarray,
    targets: np.ndarray,
) -> None:
    """Writes one picture of B scenes: references on the left, samples below the true targets.

    references: [B, N, H, W, 3]; samples, targets: [B, M, H, W, 3], uint8. Orange frames are
    references, grey ones true views, blue ones samples. Small images are enlarged by a whole
    number.
    """
    zoom = max(1, -(-_MIN_TILE // references.shape[2]))
    rows = []
    for scene in range(references.shape[0]):
        refs = _strip(references[scene], REFERENCE, zoom)
        true = _strip(targets[scene], TARGET, zoom)
        made = _strip(samples[scene], SAMPLE, zoom)
        blank = np.full_like(refs, 255)
        rows.append(np.concatenate([_beside(refs, true), _beside(blank, made)]))
    _save(path, _with_legend(_stacked(rows), _legend(with_targets=True)))


def contact_sheet(
    path: Path,
    references: np.ndarray,
    samples: np.ndarray,
    targets: np.ndarray | None = None,
    columns: int = 6,
) -> None:
    """Writes one picture of one scene: its references first, then its samples, row by row.

    references: [N, H, W, 3]; samples, targets: [M, H, W, 3], uint8. Where true targets are given,
    each row of samples stands under a row of them. Frames as in `scene_sheet`.
    """
    zoom = max(1, -(-_MIN_TILE // references.shape[1]))
    blocks = [(references, REFERENCE)]
    for start in range(0, len(samples), columns):
        if targets is not None:
            blocks.append((targets[start : start + columns], TARGET))
        blocks.append((samples[start : start + columns], SAMPLE))
    rows = [
        _strip(images[start : start + columns], color, zoom)
        for images, color in blocks
        for start in range(0, len(images), columns)
    ]
    _save(path, _with_legend(_stacked(rows), _legend(targets is not None)))


def save_animation(
    folder: Path, images: np.ndarray, closed: bool = True, frames_per_sec: int = 15
) -> list[Path]:
    """Writes [M, H, W, 3] uint8 as a looping orbit.gif; with imageio-ffmpeg as orbit.mp4 too.

    closed: the last view leads on to the first; else they are shown there and back again.
    Raises UserError if ffmpeg fails.
    """
    if not closed:
        images = np.concatenate([images, images[-2:0:-1]])
    path = folder / "orbit.gif"
    first, *rest = (Image.fromarray(image) for image in images)
    first.save(path, save_all=True, append_images=rest, duration=1000 // frames_per_sec, loop=0)
    try:
        import imageio_ffmpeg

        ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # the latter on systems that it has no ffmpeg for
        log.info("no orbit.mp4: it needs imageio-ffmpeg (pip install 'escherjax[video]')")
        return [path]
    video = folder / "orbit.mp4"
    _save_video(ffmpeg, video, images, frames_per_sec)
    return [path, video]


def _save_video(ffmpeg: str, path: Path, images: np.ndarray, frames_per_sec: int) -> None:
    """Writes [M, H, W, 3] uint8 as H.264 of high quality, which every browser plays.

    Its own call of ffmpeg: imageio-ffmpeg's forks this process, which JAX warns of, as its threads
    could be caught holding locks. Without a `preexec_fn` Python does not fork.
    """
    height, width = images.shape[1:3]
    source = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {frames_per_sec} -i -"
    even = "scale=trunc(iw/2+0.5)*2:trunc(ih/2+0.5)*2"  # yuv420p has even sides only
    result = f"-vcodec libx264 -crf 10 -pix_fmt yuv420p -vf {even}"
    command = [ffmpeg, *f"-y -v error {source} {result}".split(), str(path)]
    done = subprocess.run(command, input=images.tobytes(), capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()[-500:]
        raise UserError(
            f"{path} could not be written by {ffmpeg}: {reason or f'exit code {done.returncode}'}. "
            "It must be an ffmpeg with libx264; IMAGEIO_FFMPEG_EXE names another one."
        )


def line_chart(path: Path, x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> None:
    """Writes one curve as a PNG: values y over x, both [n], y on a logarithmic axis.

    The values are light; their mean over a twentieth of the points about each is dark.
    """
    from matplotlib.figure import Figure

    reach = max(1, len(y) // 20)
    smooth = [y[max(0, i - reach) : i + reach + 1].mean() for i in range(len(y))]
    figure = Figure((6.4, 3.6), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel=x_name, title=y_name, yscale="log")
    axes.grid(color="0.9")
    for values, color, width in ((y, "#bed2eb", 1), (smooth, "#1f69c4", 2.5)):
        axes.plot(x, np.maximum(values, 1e-12), color=color, linewidth=width)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        figure.savefig(file, format="png")


def save_images(folder: Path, images: np.ndarray) -> list[Path]:
    """Writes [M, H, W, 3] uint8 as 000.png, 001.png, ... and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        _save(path, image)
    return paths


def zoom_center(
    images: np.ndarray, K: np.ndarray, zoom: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Enlarges pictures about their middles, as longer lenses would have taken them.

    images: [M, H, W, 3] uint8; K: [M, 3, 3] in their pixels; zoom: [M] >= 1, of which 1 changes
    nothing. The middle 1/zoom of a picture is cut out, to fractions of a pixel, and resized (cubic)
    to the whole size. Returns (images, K) of the results.
    """
    height, width = images.shape[1:3]
    zoomed, K = images.copy(), np.array(K, np.float32)
    for view in np.flatnonzero(zoom != 1).tolist():
        half = np.array([width, height]) / (2 * zoom[view])
        middle = np.array([width, height]) / 2
        box = (*(middle - half), *(middle + half))
        picture = Image.fromarray(images[view])
        zoomed[view] = picture.resize((width, height), Image.Resampling.BICUBIC, box)
        cut = cameras.crop_intrinsics(K[view], box[0], box[1])
        K[view] = cameras.resize_intrinsics(cut, zoom[view], zoom[view])
    return zoomed, K


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as uint8, rounded to nearest."""
    return np.round(np.clip(np.asarray(images), 0.0, 1.0) * 255.0).astype(np.uint8)


def _strip(images: np.ndarray, color: tuple[int, int, int], zoom: int) -> np.ndarray:
    """[V, H, W, 3] side by side, each in a frame of `color`."""
    tiles = []
    for image in images:
        large = Image.fromarray(np.repeat(np.repeat(image, zoom, axis=0), zoom, axis=1))
        framed = np.asarray(ImageOps.expand(large, _FRAME, color))
        tiles.append(np.pad(framed, ((0, 0), (0, _GAP), (0, 0)), constant_values=255))
    return np.concatenate(tiles, axis=1)


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    gap = np.full((left.shape[0], 2 * _GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of any width below each other, white around."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate(
        [
            np.pad(
                row, ((_GAP, 0), (_GAP, _GAP + width - row.shape[1]), (0, 0)), constant_values=255
            )
            for row in rows
        ]
    )


def _legend(with_targets: bool) -> list[tuple[str, tuple[int, int, int]]]:
    named = [("reference", REFERENCE), ("true view", TARGET), ("sample", SAMPLE)]
    return named if with_targets else [named[0], named[2]]


def _with_legend(sheet: np.ndarray, legend: list[tuple[str, tuple[int, int, int]]]) -> np.ndarray:
    height = 24
    image = Image.new("RGB", (sheet.shape[1], sheet.shape[0] + height), "white")
    image.paste(Image.fromarray(sheet), (0, height))
    drawing, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    left = _GAP
    for name, color in legend:
        drawing.rectangle((left, 8, left + 11, 19), fill=color)
        drawing.text((left + 16, 5), name, fill="black", font=font)
        left += 16 + int(drawing.textlength(name, font=font)) + 16
    return np.asarray(image)


def _save(path: Path, image: np.ndarray) -> None:
    """Writes a PNG whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        Image.fromarray(image).save(file, format="PNG")
