"""How a sparsity is shared out over layers, against the papers' rules in NumPy."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsejax as sj

moderate = settings(max_examples=150, deadline=None, derandomize=True)

DENSITIES = [0.5, 0.2, 0.1, 0.05, 0.02]


def resnet50(stem: int, classes: int) -> list[tuple[int, ...]]:
    """The prunable kernels of a bottleneck ResNet-50, as HWIO."""
    shapes: list[tuple[int, ...]] = [(stem, stem, 3, 64)]
    channels = 64
    for blocks, width in [(3, 64), (4, 128), (6, 256), (3, 512)]:
        for block in range(blocks):
            shapes += [(1, 1, channels, width), (3, 3, width, width)]
            shapes += [(1, 1, width, 4 * width)]
            if block == 0:
                shapes += [(1, 1, channels, 4 * width)]
            channels = 4 * width
    return [*shapes, (channels, classes)]


def vgg19(classes: int) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    channels = 3
    for width, convolutions in [(64, 2), (128, 2), (256, 4), (512, 4), (512, 4)]:
        for _ in range(convolutions):
            shapes.append((3, 3, channels, width))
            channels = width
    return [*shapes, (channels, classes)]


# Name, kernels, their number, their weights, and how many ERK forces to be dense at
# each of DENSITIES in the official GraNet code.
NETWORKS = [
    ("ImageNet ResNet-50", resnet50(7, 1000), 54, 25_502_912, [32, 8, 1, 0, 0]),
    ("CIFAR ResNet-50", resnet50(3, 10), 54, 23_467_712, [33, 10, 3, 1, 0]),
    ("VGG-19", vgg19(10), 17, 20_024_000, [6, 4, 2, 2, 2]),
]
networks = pytest.mark.parametrize(
    ("shapes", "tensors", "weights", "dense"),
    [row[1:] for row in NETWORKS],
    ids=[row[0] for row in NETWORKS],
)


def named(shapes):
    return {f"layer{i}": shape for i, shape in enumerate(shapes)}


def erk_densities(shapes: list[tuple[int, ...]], density: float) -> list[float]:
    """The rule of Evci et al.: density epsilon * sum(shape) / prod(shape), at most 1.

    Epsilon solves: what the sparse layers hold plus the dense layers is the budget.
    While a layer's density would exceed 1, the one with the largest is made dense.
    """
    dense: set[int] = set()
    while True:
        budget, capacity, raw = 0.0, 0.0, {}
        for i, shape in enumerate(shapes):
            size = math.prod(shape)
            if i in dense:
                budget -= size * (1 - density)
            else:
                budget += size * density
                raw[i] = sum(shape) / size
                capacity += raw[i] * size
        epsilon = budget / capacity
        largest = max(raw.values())
        if epsilon * largest <= 1:
            return [1.0 if i in dense else epsilon * raw[i] for i in range(len(shapes))]
        dense |= {i for i in raw if raw[i] == largest}


@networks
def test_networks_have_the_published_numbers_of_weights(
    shapes, tensors, weights, dense
):
    assert len(shapes) == tensors
    assert sum(map(math.prod, shapes)) == weights


@networks
def test_erk_forces_as_many_layers_dense_as_the_official_code(
    shapes, tensors, weights, dense
):
    for density, expected in zip(DENSITIES, dense):
        counts = sj.layer_counts(named(shapes), 1 - density, "erk").values()
        full = [c == math.prod(s) for c, s in zip(counts, shapes)]
        assert sum(full) == expected


@networks
@pytest.mark.parametrize("density", DENSITIES)
def test_erk_counts_are_the_papers_densities_to_the_unit(
    shapes, tensors, weights, dense, density
):
    counts = sj.layer_counts(named(shapes), 1 - density, "erk")
    assert sum(counts.values()) == round(density * weights)
    for count, shape, share in zip(
        counts.values(), shapes, erk_densities(shapes, density)
    ):
        assert abs(count - share * math.prod(shape)) <= 1.01


def test_erdos_renyi_uses_the_last_two_axes_and_erk_all():
    """By hand: er raw 5/6 and 20/100; erk raw 11/54 and 20/100."""
    shapes = {"conv": (3, 3, 2, 3), "dense": (10, 10)}
    er = sj.layer_counts(shapes, 0.5, "er")
    epsilon = 77 / (54 * 5 / 6 + 100 * 20 / 100)
    assert epsilon * 5 / 6 < 1
    assert er == {"conv": round(epsilon * 45), "dense": round(epsilon * 20)}
    erk = sj.layer_counts(shapes, 0.5, "erk")
    assert erk == {"conv": round(77 / 31 * 11), "dense": round(77 / 31 * 20)}


def test_erk_makes_a_layer_dense_that_would_be_more_than_full():
    counts = sj.layer_counts({"wide": (100, 100), "narrow": (100, 2)}, 0.9, "erk")
    assert counts == {"wide": 820, "narrow": 200}


LAYERS = st.lists(
    st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple),
    min_size=1,
    max_size=6,
)


@moderate
@given(LAYERS, st.floats(0, 0.99), st.sampled_from(["uniform", "er", "erk"]))
def test_counts_add_up_exactly_and_fit_their_layers(shapes, sparsity, distribution):
    sizes = [math.prod(shape) for shape in shapes]
    total = round((1 - sparsity) * sum(sizes))
    if distribution != "uniform" and total < len(shapes):
        with pytest.raises(ValueError, match="less than one a layer"):
            sj.layer_counts(named(shapes), sparsity, distribution)
        return
    counts = list(sj.layer_counts(named(shapes), sparsity, distribution).values())
    assert sum(counts) == total
    least = 0 if distribution == "uniform" else 1
    assert all(least <= c <= size for c, size in zip(counts, sizes))
    if distribution == "uniform":
        assert all(abs(c - (1 - sparsity) * s) < 1.5 for c, s in zip(counts, sizes))


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
def test_sparsity_0_is_dense(distribution):
    shapes = named([(3, 4), (1, 1), (2, 2, 3, 5)])
    counts = sj.layer_counts(shapes, 0.0, distribution)
    assert counts == {name: math.prod(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("distribution", ["er", "erk"])
def test_the_least_budget_gives_each_layer_one_weight(distribution):
    shapes = named([(10, 10), (5, 20), (1, 1)])
    sparsity = 1 - 3 / 201
    assert set(sj.layer_counts(shapes, sparsity, distribution).values()) == {1}


def test_fixed_layers_keep_their_sparsity_and_the_others_make_up_for_it():
    shapes = {"first": (10, 10), "a": (20, 20), "b": (25, 20)}
    counts = sj.layer_counts(shapes, 0.8, "uniform", fixed={"first": 0.0})
    assert counts["first"] == 100
    assert sum(counts.values()) == 200
    assert counts["a"] + counts["b"] == 100
    assert abs(counts["a"] - 400 / 9) < 1


def test_all_layers_fixed_at_the_sparsity_asked_for():
    shapes = {"a": (10, 10), "b": (10, 20)}
    counts = sj.layer_counts(shapes, 0.5, "erk", fixed={"a": 0.5, "b": 0.5})
    assert counts == {"a": 50, "b": 100}


def test_a_function_gives_densities_by_path():
    def densities(shapes, density):
        assert density == pytest.approx(0.3)
        assert shapes == {"a": (10, 10), "b": (10, 20)}
        return {"a": 0.5, "b": 0.2}

    counts = sj.layer_counts({"a": (10, 10), "b": (10, 20)}, 0.7, densities)
    assert counts == {"a": 50, "b": 40}


def test_uniform_except_leaves_the_named_layers_dense():
    shapes = named(resnet50(7, 1000))
    counts = sj.layer_counts(shapes, 0.8, sj.uniform_except(["layer0"]))
    assert counts["layer0"] == 9408
    assert sum(counts.values()) == round(0.2 * 25_502_912)
    rest = (round(0.2 * 25_502_912) - 9408) / (25_502_912 - 9408)
    for path, shape in shapes.items():
        if path != "layer0":
            assert abs(counts[path] - rest * math.prod(shape)) <= 1


def test_the_largest_remainders_are_rounded_up():
    """Of 10 weights for sizes 20, 22 and 18, 10 / 3, 11 / 3 and 3 are due."""
    shapes = {"a": (4, 5), "b": (2, 11), "c": (3, 6)}
    counts = sj.layer_counts(shapes, 1 - 10 / 60, "uniform")
    assert counts == {"a": 3, "b": 4, "c": 3}
