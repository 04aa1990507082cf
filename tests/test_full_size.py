"""The 860M network once, on a CPU: 16 GB of memory and a minute or two; run with -m slow."""

import jax
import numpy as np
import pytest

from escherjax.cameras import Cameras, from_spherical
from escherjax.config import load_config
from escherjax.models import eschernet


@pytest.mark.slow
def test_one_full_size_forward_runs_on_a_cpu(rng):
    config = load_config("configs/6dof.py", ["--config.dtype=float32"])
    model = eschernet.from_config(config)
    params = model.init(0, 256)
    kernel = params["unet"]["conv_out"]["kernel"]
    kernel += 0.01 * rng.normal(size=kernel.shape).astype(np.float32)  # zero in a fresh network
    params = jax.device_put(params)

    def cameras():
        angles = rng.uniform(0.3, 2.8, (2, 1, 3))
        return Cameras(from_spherical(*angles, np.full((1, 3), 1.8)))

    @jax.jit
    def predict(params, images, latents, references, targets):
        tokens = model.encode_images(params, images)
        return model.predict(params, latents, np.array([500]), tokens, references, targets)

    images = rng.uniform(-1, 1, (1, 3, 256, 256, 3)).astype(np.float32)
    latents = rng.normal(size=(1, 3, 32, 32, 4)).astype(np.float32)
    references, targets = cameras(), cameras()
    noise = np.asarray(predict(params, images, latents, references, targets))
    assert noise.shape == latents.shape and np.isfinite(noise).all() and noise.std() > 1e-3
