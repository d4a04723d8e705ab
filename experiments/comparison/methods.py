"""The methods of the comparison: those of all experiments, a replica at a time."""

import optax
from ml_collections import ConfigDict

from experiments.comparison.replicas import MakeTransform, Replica
from experiments.training.sparse import NEED_SPARSITY, START_DENSE, sparse_optimizer


def first_sparsity(name: str, sparsity: float, config: ConfigDict) -> float | None:
    """Gives the sparsity of a method's first masks.

    Args:
        name: A key of `experiments.training.sparse.LABELS`.
        sparsity: The sparsity that the method is to end at.
        config: An experiment's configuration.

    Returns:
        The sparsity: 0 for methods that start dense, None for those that make their
        first masks themselves.
    """
    if name in NEED_SPARSITY:
        return None
    if name in START_DENSE:
        return 0.0
    return config.granet_st_initial_sparsity if name == "granet_st" else sparsity


def make_transform(
    name: str,
    inner: optax.GradientTransformation,
    config: ConfigDict,
    total_steps: int,
    sparsity: float | None = None,
) -> MakeTransform:
    """Wraps the optimizer with a method.

    Args:
        name: A key of `experiments.training.sparse.LABELS`.
        inner: The optimizer to wrap.
        config: An experiment's configuration; `experiments/configs/digits.py` says what
            the fields mean.
        total_steps: The length of the run.
        sparsity: The sparsity of all replicas, for the methods of
            `experiments.training.sparse.NEED_SPARSITY`; None for each its own.

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
            sparsity=replica.sparsity if sparsity is None else sparsity,
            seed=replica.seed,
            masks=replica.masks,
        )

    return transform
