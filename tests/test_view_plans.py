"""View plans: which views are drawn together and from what. No network here."""

import itertools

import numpy as np
import pytest

from escherjax.cameras import Cameras, from_spherical
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.sample import plans
from escherjax.sample.pipeline import Pipeline
from escherjax.sample.plans import Pass, Plan, extra_cameras, make_plan, view_distances
from tests.helpers.tiny import tiny_config

CHUNKED = ("anchors", "autoregressive")


def orbit(count, polar=1.2, radius=1.5, start=0.0):
    azimuth = start + 2 * np.pi * np.arange(count) / count
    return from_spherical(np.full(count, polar), azimuth, np.full(count, radius))


def scattered(count, seed):
    rng = np.random.default_rng(seed)
    return from_spherical(
        rng.uniform(0.3, 2.8, count), rng.uniform(-3, 3, count), rng.uniform(1.2, 2.5, count)
    )


def moved(c2w, seed=0):
    """The same cameras in a world that was turned and shifted."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    motion = np.eye(4)
    motion[:3, :3] = rotation * np.sign(np.linalg.det(rotation))
    motion[:3, 3] = [3.0, -5.0, 2.0]
    return (motion @ c2w).astype(np.float32)


@pytest.mark.parametrize("name", plans.NAMES)
@pytest.mark.parametrize(("num_refs", "num_targets", "chunk"), [(1, 1, 1), (3, 25, 8), (12, 40, 7)])
def test_every_target_is_drawn_once_from_what_is_there(name, num_refs, num_targets, chunk):
    references, targets = scattered(num_refs, 0), scattered(num_targets, 1)
    plan = make_plan(name, references, targets, chunk=chunk)
    plans.check_plan(plan, num_refs, num_targets)
    drawn = []
    for one in plan.passes:
        assert set(one.drawn) <= set(drawn)
        drawn += one.targets
    assert sorted(drawn) == list(range(num_targets))
    sizes = [len(one.targets) for one in plan.passes]
    if plan.name != "joint":
        assert max(sizes) <= chunk
        assert len(sizes) == -(-num_targets // chunk)


@pytest.mark.parametrize("name", CHUNKED)
@pytest.mark.parametrize("budget", [1, 2, 5, 30])
def test_every_conditioning_set_is_within_the_budget(name, budget):
    plan = make_plan(name, scattered(4, 0), orbit(30), chunk=6, max_conditioning=budget)
    for one in plan.passes:
        assert 1 <= one.num_conditioning <= budget
        assert len(one.references) >= min(4, (budget + 1) // 2)
    assert plan.shape[0] <= budget and plan.shape[1] <= 6
    later = plan.passes[1:]
    assert all(one.drawn for one in later) == (budget > 1)


def test_auto_is_joint_where_the_targets_fit_one_chunk():
    references = scattered(3, 0)
    assert make_plan("auto", references, orbit(16), chunk=16).name == "joint"
    assert make_plan("auto", references, orbit(17), chunk=16).name == "anchors"


@pytest.mark.parametrize("name", CHUNKED)
def test_one_chunk_is_the_joint_plan(name):
    references, targets = scattered(5, 0), orbit(9)
    (chunked,) = make_plan(name, references, targets, chunk=9).passes
    (joint,) = make_plan("joint", references, targets).passes
    assert chunked == joint


def slow_distance(a, b, scale):
    cosine = float(a[:3, 2].astype(np.float64) @ b[:3, 2])
    apart = float(np.linalg.norm(a[:3, 3].astype(np.float64) - b[:3, 3])) / scale
    return np.hypot(apart, np.arccos(np.clip(cosine, -1, 1)))


def test_distances_are_those_of_centres_and_gazes():
    """Within the grid of a thousandth and the arccosine's rounding, 4e-4 for float32 axes."""
    c2w = np.concatenate([scattered(6, 0), orbit(3)])
    centres = c2w[:, :3, 3].astype(np.float64)
    scale = np.sqrt(((centres - centres.mean(0)) ** 2).sum(-1).mean())
    found = view_distances(c2w)
    for i, j in itertools.product(range(9), repeat=2):
        assert found[i, j] / 1000 == pytest.approx(slow_distance(c2w[i], c2w[j], scale), abs=1.5e-3)
    same_place = from_spherical(np.array([1.0, 1.0]), np.array([0.0, np.pi / 2]), np.ones(2))
    same_place[:, :3, 3] = [1.0, 2.0, 3.0]
    turned = view_distances(same_place)[0, 1] / 1000  # the angle alone
    assert turned == pytest.approx(np.arccos(np.cos(1.0) ** 2), abs=1e-3)


def test_conditioning_views_are_the_nearest_by_exhaustive_search():
    """The first view chosen is the best single one, as trying each of them shows."""
    references, targets = scattered(20, 2), scattered(12, 3)
    plan = make_plan("anchors", references, targets, chunk=4, max_conditioning=2)
    distances = view_distances(np.concatenate([references, targets]))
    for one in plan.passes[1:]:
        columns = [20 + t for t in one.targets]
        best_reference = min(range(20), key=lambda r: sum(distances[r, c] for c in columns))
        anchors = plan.passes[0].targets
        best_anchor = min(anchors, key=lambda a: sum(distances[20 + a, c] for c in columns))
        assert one.references == (best_reference,) and one.drawn == (best_anchor,)
    # With as many anchors as targets in a chunk, each target has its nearest anchor of all.
    plan = make_plan("anchors", references, targets, chunk=4, max_conditioning=8)
    anchors = plan.passes[0].targets
    for one in plan.passes[1:]:
        for target in one.targets:
            from_target = distances[20 + target]
            assert min(from_target[20 + a] for a in one.drawn) == min(
                from_target[20 + a] for a in anchors
            )


def test_anchors_cover_the_path():
    """Farthest points: no view is farther from an anchor than the anchors are from each other."""
    for targets in (orbit(48), scattered(60, 4)):
        for count in (1, 2, 7, 12):
            plan = make_plan("anchors", scattered(2, 0), targets, chunk=12, num_anchors=count)
            anchors = list(plan.passes[0].targets)
            assert len(anchors) == count and 0 in anchors
            if count < 3:
                continue
            assert len(targets) - 1 in anchors
            distances = view_distances(np.concatenate([scattered(2, 0), targets]))[2:, 2:]
            hole = distances[anchors].min(0).max()
            inner = [a for a in anchors if a != len(targets) - 1]
            between = distances[np.ix_(inner, inner)]
            assert hole <= between[~np.eye(len(inner), dtype=bool)].min()


def test_an_autoregressive_chunk_sees_its_window_alone():
    plan = make_plan("autoregressive", scattered(2, 0), orbit(30), chunk=5, window=3)
    for one in plan.passes[1:]:
        start = one.targets[0]
        assert one.targets == tuple(range(start, start + 5))
        assert one.drawn == (start - 3, start - 2, start - 1)


@pytest.mark.parametrize("name", CHUNKED)
def test_the_order_of_references_changes_nothing(name):
    references = np.concatenate([orbit(6, 0.9), scattered(6, 5)])  # ties, and none
    order = np.random.default_rng(0).permutation(12)
    plan = make_plan(name, references, orbit(24), chunk=8, max_conditioning=5)
    other = make_plan(name, references[order], orbit(24), chunk=8, max_conditioning=5)
    for one, two in zip(plan.passes, other.passes, strict=True):
        assert one.targets == two.targets and one.drawn == two.drawn
        assert set(one.references) == {int(order[i]) for i in two.references}


@pytest.mark.parametrize("name", CHUNKED)
def test_a_moved_and_scaled_world_changes_nothing(name):
    references, targets = orbit(6, 0.9), orbit(24)
    plan = make_plan(name, references, targets, chunk=8, max_conditioning=5)
    enlarge = np.where(np.arange(4) == 3, 7.0, 1.0) * np.ones((4, 1))
    enlarge[3] = 1.0
    for world in (moved, lambda c2w: c2w * enlarge):
        assert plan == make_plan(
            name, world(references), world(targets), chunk=8, max_conditioning=5
        )


class FakeProgram:
    """Marks each view by its number, and notes what each pass was given."""

    view_devices = 1

    def __init__(self):
        self.seen = []

    def __call__(self, params, scenes, sampling, on_step):
        (n,), (m,) = scenes.num_references, scenes.num_targets
        grey = (scenes.images[0, :n, 0, 0, 0].astype(float) / 2 + 0.5).round(3).tolist()
        cameras = scenes.reference_cameras.c2w[0, :n], scenes.target_cameras.c2w[0, :m]
        self.seen.append((grey, *cameras))
        return np.stack([[np.full((2, 2, 3), 0.5 + 0.1 * i) for i in scenes.view_numbers[0]]])


def test_passes_get_the_views_that_their_plan_names():
    plan = Plan("mine", (Pass((0,), (), (2,)), Pass((1, 0), (2,), (0, 1))))
    images = np.stack([np.full((4, 4, 3), 0.1), np.full((4, 4, 3), 0.2)])
    references, targets = scattered(2, 0), scattered(3, 1)
    config = tiny_config()
    pipe = Pipeline(eschernet.from_config(config), {}, config.resolution)
    pipe._program = FakeProgram()
    views = pipe.generate(images, Cameras(references), Cameras(targets), plan=plan)
    np.testing.assert_allclose(views[:, 0, 0, 0], [0.5, 0.6, 0.7])
    (first, c2w_1, targets_1), (second, c2w_2, targets_2) = pipe._program.seen
    assert first == [0.1] and second == [0.2, 0.1, 0.7]  # made in half size, given in full
    np.testing.assert_array_equal(c2w_1, references[:1])
    np.testing.assert_array_equal(targets_1, targets[2:])
    np.testing.assert_array_equal(c2w_2, np.stack([references[1], references[0], targets[2]]))
    np.testing.assert_array_equal(targets_2, targets[:2])


def test_extra_cameras_stand_beside_the_targets_and_look_at_the_same_point():
    references, targets = orbit(3), orbit(2, 1.0, start=0.4)
    for c2w in (references, targets):
        c2w[:, :3, 3] += [1.0, 2.0, 0.5]  # the point that all look at
    extra = extra_cameras(references, targets, 5)
    assert extra.shape == (5, 4, 4)
    offset = extra[:, :3, 3] - [1.0, 2.0, 0.5]
    np.testing.assert_allclose(np.linalg.norm(offset, axis=-1), 1.5, atol=1e-5)
    gaze = extra[:, :3, 2]
    np.testing.assert_allclose(gaze, -offset / 1.5, atol=1e-5)
    azimuth = np.degrees(np.arctan2(offset[:, 1], offset[:, 0])) - np.degrees(0.4)
    np.testing.assert_allclose(azimuth % 360, [10, 190, 350, 170, 20], atol=1e-3)
    alone = extra_cameras(targets[:1], targets[:1], 2)  # looks one way only: repeated
    np.testing.assert_array_equal(alone, targets[[0, 0]])


@pytest.mark.parametrize(
    ("arguments", "reasons"),
    [
        ({"name": "pyramid"}, ["got 'pyramid'", "joint, anchors"]),
        (
            {"chunk": 0, "window": 0},
            ["chunk must be at least 1, got 0", "window must be at least 1, got 0"],
        ),
        ({"max_conditioning": 0}, ["max_conditioning must be at least 1, got 0"]),
        ({"num_anchors": 9, "chunk": 8}, ["num_anchors must be at most chunk = 8, got 9"]),
        (
            {"reference_c2w": np.zeros((0, 4, 4))},
            ["a reference and a target at least"],
        ),
    ],
)
def test_wrong_settings_are_all_named(arguments, reasons):
    settings = {"name": "anchors", "reference_c2w": orbit(2), "target_c2w": orbit(4)} | arguments
    with pytest.raises(UserError) as error:
        make_plan(**settings)
    for reason in reasons:
        assert reason in str(error.value)


def test_a_plan_that_does_not_fit_is_refused_with_all_its_faults():
    plan = Plan("mine", (Pass((0, 5), (), (0, 1)), Pass((), (3,), (1, 9)), Pass((), (), ())))
    with pytest.raises(UserError) as error:
        plans.check_plan(plan, 2, 4)
    for reason in (
        "references [5]",
        "targets [9]",
        "generated views [3]",
        "generates nothing",
        "no view to start from",
        "No pass generates the targets [2, 3]",
        "[1] are generated more",
    ):
        assert reason in str(error.value)
