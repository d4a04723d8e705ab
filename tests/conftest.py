"""Settings for all tests: eight virtual CPU devices, set before JAX is first used."""

import os
from collections.abc import Iterator

import jax
import pytest

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
