"""Space-to-depth pixels as latents."""

import numpy as np
import pytest

from escherjax.errors import UserError
from escherjax.models.vae import PixelCodec


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_round_trip_is_exact_for_any_leading_axes(patch, rng):
    codec = PixelCodec(patch)
    for shape in ((8, 12, 3), (2, 8, 12, 3), (2, 3, 8, 12, 3)):
        images = rng.normal(size=shape).astype(np.float32)
        latents = codec.encode(images)
        assert latents.shape == (*shape[:-3], 8 // patch, 12 // patch, codec.latent_channels)
        np.testing.assert_array_equal(codec.decode(latents), images)


def test_a_latent_position_holds_its_own_patch():
    images = np.arange(4 * 6 * 3, dtype=np.float32).reshape(4, 6, 3)
    latents = PixelCodec(2).encode(images)
    np.testing.assert_array_equal(latents[1, 2], images[2:4, 4:6].ravel())


def test_sizes_that_do_not_fit_are_refused():
    codec = PixelCodec(4)
    with pytest.raises(UserError, match="10 x 12"):
        codec.encode(np.zeros((1, 10, 12, 3)))
    with pytest.raises(UserError, match="12 x 10"):
        codec.encode(np.zeros((1, 12, 10, 3)))
    with pytest.raises(UserError, match="channels .*got 4"):
        codec.decode(np.zeros((1, 2, 2, 4)))
    with pytest.raises(UserError, match="patch"):
        PixelCodec(0)
