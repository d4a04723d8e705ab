"""What must hold of a configuration, and how one is refused that does not keep it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

Condition = tuple[str, bool, str]  # field, whether it is fine, what is allowed


def refuse_unless(config: ConfigDict, conditions: Iterable[Condition]) -> None:
    """Refuses a configuration that fails a condition.

    Args:
        config: The configuration.
        conditions: What must hold, checked in this order; a dot in a field leads to one
            inside it.

    Raises:
        ValueError: At the first that does not hold.
    """
    for field, is_fine, allowed in conditions:
        if not is_fine:
            value: Any = config
            for name in field.split("."):
                value = value[name]
            raise ValueError(f"config.{field} must be {allowed}; got {value!r}.")


def distinct(values: Sequence[Any]) -> bool:
    """Tells whether there are values, all different.

    Args:
        values: The values.

    Returns:
        Whether it is so.
    """
    return len(set(values)) == len(values) > 0


def split_conditions(config: ConfigDict) -> Iterator[Condition]:
    """Says what the fields of a split into three parts must be.

    Args:
        config: `split_seed`, `validation_share` and `test_share`.

    Yields:
        The conditions.
    """
    yield "split_seed", 0 <= config.split_seed < 2**32, "in [0, 2^32)"
    for field in ("validation_share", "test_share"):
        yield field, 0.02 <= config[field] <= 0.45, "in [0.02, 0.45]"


def seeds_condition(config: ConfigDict, lacking: str) -> Condition:
    """Says what the field "seeds" must be where means over seeds are shown.

    Args:
        config: The configuration.
        lacking: What a single seed has none of, such as "interval".

    Returns:
        The condition.
    """
    is_fine = (
        distinct(config.seeds)
        and len(config.seeds) > 1
        and all(isinstance(s, int) and 0 <= s < 2**31 for s in config.seeds)
    )
    allowed = f"two or more different integers in [0, 2^31), or there is no {lacking}"
    return "seeds", is_fine, allowed
