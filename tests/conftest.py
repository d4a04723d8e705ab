"""Settings for all tests: eight virtual CPU devices, set before JAX is first used."""

import contextlib
import os
from collections.abc import Iterator

import jax
import pytest

from sparsejax import layouts

jax.config.update("jax_num_cpu_devices", 8)
if jax.__version_info__ < (0, 12):
    # The tests mostly compile, and XLA's former way to make kernels takes half as long.
    # Later versions have the present one alone.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"


@pytest.fixture(scope="module", autouse=True)
def forget_compiled() -> Iterator[None]:
    """Lets go of what a module has compiled, which grows to gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Compiles without expensive passes: tests of small programs mostly compile."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@contextlib.contextmanager
def as_if_on(devices: int) -> Iterator[None]:
    """Lets the library choose how leaves lie in memory as with so many devices."""
    choose = layouts.on_one_device
    layouts.on_one_device = lambda: devices == 1
    jax.clear_caches()
    yield
    layouts.on_one_device = choose
    jax.clear_caches()


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """Puts leaves together, as on a single device: less to compile."""
    with as_if_on(1):
        yield


@pytest.fixture(scope="module", params=[1, 8], ids=["one_device", "eight_devices"])
def both_layouts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test twice: with leaves together, and with each by itself."""
    with as_if_on(request.param):
        yield


@pytest.fixture(scope="module")
def strict_ranks() -> Iterator[None]:
    """Forbids arrays of different ranks to be added: often a mistake, never needed.

    Not for all tests: attention in Flax does it.
    """
    jax.config.update("jax_numpy_rank_promotion", "raise")
    yield
    jax.config.update("jax_numpy_rank_promotion", "allow")


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with a small cifar10 and a small imagenet2012 for TFDS."""
    from image_sets import write_tfds  # late: it needs the experiments extra

    data_dir = tmp_path_factory.mktemp("tfds")
    write_tfds(data_dir)
    return str(data_dir)
