"""The methods of the comparison: those of all experiments, a replica at a time."""

import optax
from ml_collections import ConfigDict

from experiments.comparison.replicas import MakeTransform, Replica
from experiments.training.sparse import sparse_optimizer


def first_sparsity(name: str, sparsity: float, config: ConfigDict) -> float:
    """Gives the sparsity of a method's first masks.

    Args:
        name: A key of `experiments.training.sparse.LABELS`.
        sparsity: The sparsity that the method is to end at.
        config: An experiment's configuration.

    Returns:
        The sparsity: 0 for methods that start dense.
    """
    if name in ("dense", "gmp", "granet"):
        return 0.0
    return config.granet_st_initial_sparsity if name == "granet_st" else sparsity


def make_transform(
    name: str,
    inner: optax.GradientTransformation,
    config: ConfigDict,
    total_steps: int,
) -> MakeTransform:
    """Wraps the optimizer with a method.

    Args:
        name: A key of `experiments.training.sparse.LABELS`.
        inner: The optimizer to wrap.
        config: An experiment's configuration; `experiments/configs/digits.py` says what
            the fields mean.
        total_steps: The length of the run.

    Returns:
        A function replica -> wrapped optimizer. The replica may be traced: its numbers
        need not be known when the function is compiled.
    """

    def transform(replica: Replica) -> optax.GradientTransformationExtraArgs:
        return sparse_optimizer(
            name,
            inner,
            config,
            total_steps,
            sparsity=replica.sparsity,
            seed=replica.seed,
            masks=replica.masks,
        )

    return transform
