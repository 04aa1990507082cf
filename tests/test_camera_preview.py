"""The picture of cameras: marks stand where the cameras project."""

import numpy as np
from PIL import Image

from escherjax.cameras import from_spherical, paths
from escherjax.reports import preview, sheets

REFERENCE = from_spherical(np.array([0.7]), np.array([1.0]), np.array([2.5]))


def color_at(picture, place):
    u, v = np.floor(place).astype(int)
    return picture[v, u]


def is_near(color, wanted):
    return np.abs(color.astype(int) - wanted).max() < 12  # smooth edges


def test_one_reference_and_a_hundred_targets_are_marked_where_they_stand():
    targets = paths.archimedean(100, 1.8)
    picture = preview.render_preview(REFERENCE, targets, ["7"], is_path=True)
    panels = preview.layout(np.concatenate([REFERENCE, targets]))
    assert len(panels) == 3
    for number, panel in enumerate(panels):
        place = panel.place(REFERENCE[0, :3, 3])
        assert is_near(color_at(picture, place), sheets.REFERENCE)
        blue = sum(
            is_near(color_at(picture, panel.place(c2w[:3, 3])), sheets.SAMPLE) for c2w in targets
        )
        assert blue >= 90  # axes' names and the reference hide a few
        places = panel.place(np.concatenate([REFERENCE, targets])[:, :3, 3])
        left = number * preview.PANEL
        assert (places[:, 0] > left).all() and (places[:, 0] < left + preview.PANEL).all()
        assert (places[:, 1] > 0).all() and (places[:, 1] < picture.shape[0]).all()


def test_seen_from_above_x_is_right_and_y_is_up_at_one_scale():
    above = preview.layout(REFERENCE)[2]
    origin, x, y, z = above.place(np.concatenate([np.zeros((1, 3)), np.eye(3)]))
    np.testing.assert_allclose(x - origin, [above.scale, 0], atol=1e-9)
    np.testing.assert_allclose(y - origin, [0, -above.scale], atol=1e-9)
    np.testing.assert_allclose(z, origin, atol=1e-9)


def test_from_the_side_z_is_up_and_the_near_camera_hides_the_far():
    side = preview.layout(REFERENCE)[0]  # from azimuth 30
    origin, up = side.place(np.array([[0.0, 0, 0], [0, 0, 1]]))
    np.testing.assert_allclose(up[0], origin[0], atol=1e-9)
    assert up[1] < origin[1]
    azimuth = np.radians([30.0, 210.0])
    near, far = from_spherical(np.full(2, np.pi / 2), azimuth, np.full(2, 2.0))
    assert near[:3, 3] @ side.out > far[:3, 3] @ side.out


def test_a_line_joins_the_targets_of_a_path_and_closes_loops():
    targets = paths.orbit(4, 2.0, 0.0)
    above = preview.layout(np.concatenate([REFERENCE, targets]))[2]

    def has_line(first, second, **settings):
        picture = preview.render_preview(REFERENCE, targets, ["0"], **settings)
        middle = (targets[first, :3, 3] + targets[second, :3, 3]) / 2
        return bool((color_at(picture, above.place(middle)) < 250).any())

    assert has_line(1, 2, is_path=True) and not has_line(1, 2)
    assert has_line(3, 0, is_path=True, closed=True) and not has_line(3, 0, is_path=True)


def test_the_picture_is_a_png(tmp_path):
    path = tmp_path / "new" / "cameras.png"
    preview.save_preview(path, REFERENCE, REFERENCE, ["0"])  # targets on the reference
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
