"""A request of the web page, run by a network: passes, progress, the dolly zoom."""

import numpy as np
import pytest

from escherjax.cameras import Cameras, from_spherical, paths
from escherjax.data.formats.transforms import parse_views
from escherjax.demo import jobs, panels
from escherjax.demo.limits import Limits
from escherjax.demo.session import Session
from escherjax.models import eschernet
from escherjax.models.diffusion.sampling import Sampling
from escherjax.reports import sheets
from escherjax.sample import memory, plans
from escherjax.sample.pipeline import Pipeline
from tests.helpers.random_models import random_params
from tests.helpers.tiny import tiny_config

NUM_STEPS, NUM_VIEWS, AT_ONCE = 2, 5, 2


@pytest.fixture(scope="module")
def pipe():
    config = tiny_config(latents__kind="pixels", latents__patch=4)
    model = eschernet.from_config(config)
    params = random_params(model.parameter_shapes(config.resolution), np.random.default_rng(0))
    return Pipeline(model, params, config.resolution)


def test_more_views_than_memory_holds_are_generated_in_passes_and_a_dolly_is_zoomed(
    pipe, monkeypatch
):
    conditioning = plans.conditioning_budget(1, None)
    held = pipe.estimate_memory(conditioning, AT_ONCE, 1.0).working / 0.75  # of it is counted on
    monkeypatch.setattr(memory, "free_bytes", lambda: held)
    session = Session(pipe.resolution, Limits(), Sampling(NUM_STEPS, 1.0))
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    session.add_posed("a", image, from_spherical(1.0, 0.3, 1.8))
    session.set_path(name="dolly", num_views=NUM_VIEWS)
    request, seen = session.request(), []

    views = jobs.generate(
        pipe, jobs.Job(request, lambda job: seen.append((job.step, job.num_steps)))
    )
    cameras = Cameras(request.reference_c2w), Cameras(request.targets.c2w)
    plan = pipe.plan_views(*cameras, "auto", None, 1.0)
    assert len(plan.passes) > 1 and max(len(one.targets) for one in plan.passes) <= AT_ONCE
    total = NUM_STEPS * len(plan.passes)
    assert seen == [(step, total) for step in range(1, total + 1)]

    images = request.images / np.float32(255)
    # on_step, so that the compiled program serves again
    generated = sheets.to_uint8(
        pipe.generate(images, *cameras, NUM_STEPS, 1.0, on_step=lambda *_: None, plan=plan)
    )
    zoom = paths.dolly_zoom(request.targets.c2w)
    assert zoom[0] > 1.4 and zoom[-1] == 1
    expected, K = sheets.zoom_center(generated, np.tile(np.eye(3), (NUM_VIEWS, 1, 1)), zoom)
    np.testing.assert_array_equal(views, expected)
    assert (views[0] != generated[0]).any()
    lenses = [lens for _, _, lens in parse_views(panels.transforms_json(request, 16), "a file")]
    focal = [lens["fl_x"] / lenses[-1]["fl_x"] for lens in lenses]
    np.testing.assert_allclose(focal, zoom, rtol=1e-6)  # float32
    assert {lens["cx"] for lens in lenses} == {8.0}
