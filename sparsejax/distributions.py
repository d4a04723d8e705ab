"""Per-layer sparsity distributions: uniform, Erdos-Renyi, Erdos-Renyi-Kernel.

All of this happens on the host, from shapes alone, in float64 and exact integers.

    uniform   every layer has the same density.
    er        density proportional to (n_in + n_out) / (n_in * n_out) (Mocanu et al.,
              "Scalable training of artificial neural networks with adaptive sparse
              connectivity", 2018).
    erk       density proportional to (n_in + n_out + w + h) / (n_in * n_out * w * h),
              with the positions w, h of a convolution (Evci et al., "Rigging the
              lottery", arXiv 1911.11134).

`kernel_axes` and `LayerRule` say which axes are inputs and outputs; those of several
heads count as one.

With "er" and "erk" a layer whose density would exceed 1 stays dense and the others
share what is left, and no layer is left without a weight. The official GraNet code
draws each weight with probability density (Bernoulli), so that its counts vary; here
they are exact.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sparsejax.checks import check_choice, check_sparsity
from sparsejax.counts import keep_count
from sparsejax.parameters import Axes, kernel_axes, kernel_dims

Shape = tuple[int, ...]
Distribution = str | Callable[[Mapping[str, Shape], float], Mapping[str, float]]

NAMES = ("erk", "er", "uniform")


def check_distribution(distribution: Distribution) -> None:
    """Raises unless a distribution is a function or the name of one.

    Args:
        distribution: The distribution got.

    Raises:
        ValueError: If it is neither.
    """
    if not callable(distribution):
        check_choice("distribution", distribution, NAMES)


def _erdos_renyi(shape: Shape, axes: tuple[Axes, Axes], kernel: bool) -> float:
    dims = kernel_dims(shape, *axes)
    dims = dims if kernel else dims[-2:]
    return sum(dims) / max(math.prod(dims), 1)


def _scale_to_budget(raw: np.ndarray, sizes: np.ndarray, budget: float) -> np.ndarray:
    """Finds densities min(1, epsilon * raw) that hold `budget` weights."""
    dense = np.zeros(len(raw), bool)
    while True:
        rest = budget - sizes[dense].sum()
        capacity = (raw * sizes)[~dense].sum()
        epsilon = rest / capacity if capacity else 0.0
        over = ~dense & (epsilon * raw > 1)
        if not over.any():
            return np.where(dense, 1.0, epsilon * raw)
        # Only the densest saturate first, as in RigL's code: scaling them down to 1
        # raises epsilon for the others.
        dense |= over & (raw == raw[over].max())


def _round_to_total(shares: np.ndarray, sizes: np.ndarray, total: int) -> np.ndarray:
    """Rounds shares to integers of an exact sum, the largest remainders upwards."""
    counts = np.minimum(np.floor(shares + 1e-9).astype(np.int64), sizes)
    order = np.argsort(counts - shares, kind="stable")
    for layer in [*order, *order]:
        if counts.sum() < total and counts[layer] < sizes[layer]:
            counts[layer] += 1
    for layer in reversed(order):
        if counts.sum() > total and counts[layer] > 0:
            counts[layer] -= 1
    return counts


def _shares(
    shapes: Mapping[str, Shape],
    sizes: np.ndarray,
    total: int,
    sparsity: float,
    distribution: Distribution,
    axes: Mapping[str, tuple[Axes, Axes]],
) -> np.ndarray:
    if callable(distribution):
        densities = distribution(shapes, 1 - sparsity)
        given = [densities.get(path, np.nan) for path in shapes]
        shares = np.array(given, np.float64) * sizes
        possible = np.all((shares >= 0) & (shares <= sizes))
        if not possible or abs(shares.sum() - total) > len(shapes):
            raise ValueError(
                "distribution must give each layer a density in [0, 1] that together "
                f"keep {total} weights for sparsity={sparsity}; got {densities}."
            )
        return shares
    if distribution == "uniform":
        return sizes * (total / sizes.sum())
    if total < np.sum(sizes > 0):
        raise ValueError(
            f'distribution="{distribution}" cannot reach sparsity={sparsity}: it '
            f"leaves {total} active weights for {len(shapes)} layers, less than one a "
            "layer; lower the sparsity."
        )
    raw = np.array(
        [_erdos_renyi(s, axes[p], distribution == "erk") for p, s in shapes.items()]
    )
    return _scale_to_budget(raw, sizes, total) * sizes


def _no_empty_layer(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    for layer in np.flatnonzero((counts == 0) & (sizes > 0)):
        counts[np.argmax(counts)] -= 1
        counts[layer] = 1
    return counts


def layer_counts(
    shapes: Mapping[str, Shape],
    sparsity: float,
    distribution: Distribution = "erk",
    fixed: Mapping[str, float] | None = None,
    axes: Mapping[str, tuple[Axes, Axes]] | None = None,
) -> dict[str, int]:
    """Returns each layer's number of active weights.

    Args:
        shapes: The shape of each prunable layer by its path.
        sparsity: Overall sparsity in [0, 1).
        distribution: "erk", "er", "uniform", or a function of (shapes, density) that
            returns each layer's density by path.
        fixed: The sparsity of layers that do not share the common budget, by path. The
            other layers make up for them.
        axes: The axes of (inputs, outputs) of layers, by path; None tells them by
            `kernel_axes`.

    Returns:
        Active weights by path; they add up to round((1 - sparsity) * n). Where every
        layer is fixed they may miss it by a weight a layer, as each is rounded.

    Raises:
        ValueError: If the distribution is unknown or cannot reach the sparsity.

    Example:
        >>> layer_counts({"a": (100, 10), "b": (10, 10)}, 0.8, "uniform")
        {'a': 200, 'b': 20}
        >>> layer_counts({"a": (100, 10), "b": (10, 10)}, 0.8, "erk")
        {'a': 186, 'b': 34}
    """
    check_distribution(distribution)
    check_sparsity("sparsity", sparsity)
    fixed = fixed or {}
    for path, own in fixed.items():
        check_choice("fixed", path, shapes)
        check_sparsity(f"fixed at {path!r}", own)
    size_of = {path: math.prod(shape) for path, shape in shapes.items()}
    counts = {p: int(keep_count(s, size_of[p])) for p, s in fixed.items()}
    free = {path: shape for path, shape in shapes.items() if path not in fixed}
    sizes = np.array([size_of[path] for path in free], np.int64)
    total = int(keep_count(sparsity, sum(size_of.values()))) - sum(counts.values())
    if not free and abs(total) <= len(fixed):
        return counts
    if not 0 <= total <= sizes.sum():
        raise ValueError(
            f"sparsity={sparsity} cannot be reached: the layers of fixed sparsity hold "
            f"{sum(counts.values())} active weights, which asks for {total} of the "
            f"{sizes.sum()} weights of the other layers."
        )
    if free:
        known = axes or {p: kernel_axes(p, len(shape)) for p, shape in free.items()}
        shares = _shares(free, sizes, total, sparsity, distribution, known)
        rounded = _round_to_total(shares, sizes, total)
        if distribution in ("er", "erk"):
            rounded = _no_empty_layer(rounded, sizes)
        counts.update(zip(free, map(int, rounded)))
    return {path: counts[path] for path in shapes}


def uniform_except(dense: Sequence[str]) -> Distribution:
    """Makes a uniform distribution that leaves some layers dense, as RigL's "uniform".

    Args:
        dense: The paths of the layers that stay dense, such as the first convolution.

    Returns:
        A function for the `distribution` argument; the other layers are uniformly
        sparser, so that the overall sparsity is met.

    Example:
        >>> spare_first = uniform_except(["a"])
        >>> layer_counts({"a": (5, 4), "b": (20, 9)}, 0.8, spare_first)
        {'a': 20, 'b': 20}
    """

    def densities(shapes: Mapping[str, Shape], density: float) -> Mapping[str, float]:
        size = {path: math.prod(shape) for path, shape in shapes.items()}
        for path in dense:
            check_choice("dense", path, size)
        held = sum(size[path] for path in dense)
        rest = sum(size.values()) - held
        shared = (density * (held + rest) - held) / max(rest, 1)
        return {path: 1.0 if path in dense else shared for path in shapes}

    return densities
