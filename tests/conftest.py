"""Settings for all tests: eight virtual CPU devices, set before JAX is first used."""

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Compiles without expensive passes: tests of small programs mostly compile."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
