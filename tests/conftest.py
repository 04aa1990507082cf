"""CPU with 8 simulated devices, exact float32 products, and the optional reference data."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

# One cache of compiled programs for all workers, and for the processes that tests start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parent.parent / ".jax_cache")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


def _shared(name: str) -> Path:
    folder = REPOSITORY.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"optional reference data '{name}' is not here")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Inputs and outputs of the original network; the test is skipped where they are missing."""
    return _shared("golden")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Small real posed images; the test is skipped where they are missing."""
    return _shared("data")


@pytest.fixture(scope="session", params=["6dof", "4dof"])
def golden(request, golden_dir):
    """(cape name, pipeline folder, dict-like of arrays) of both tiny networks of the original."""
    folder = golden_dir / f"eschernet-{request.param}-tiny"
    return request.param, folder, np.load(folder / "io.npz")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def compiled_fast():
    """Programs as the compiler first makes them, where most of a test's time is its work."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
