"""The public names: all there, documented, typed, and light to import."""

import inspect
import subprocess
import sys

import pytest

import sparsejax as sj

PROMISED = [
    "random_masks",
    "dense_masks",
    "apply_masks",
    "prune_magnitude",
    "regrow_gradient",
    "regrow_random",
    "sparsity",
    "density",
    "count_active",
    "jaccard",
    "masks_of",
    "check",
    "chain",
    "prune",
    "drop",
    "grow",
    "drop_and_grow",
    "pack_masks",
    "unpack_masks",
    "kth_largest",
    "top_k_mask",
    "granet_transform",
    "gmp_transform",
    "rigl_transform",
    "set_transform",
    "itop_transform",
    "snfs_transform",
    "dsr_transform",
    "mest_transform",
    "static_transform",
    "sparsify",
    "init_sparse",
    "get_masks",
    "summary",
    "cubic_sparsity",
    "cosine_prune_rate",
]

FUNCTIONS = [name for name in sj.__all__ if inspect.isfunction(getattr(sj, name))]
CLASSES = [name for name in sj.__all__ if inspect.isclass(getattr(sj, name))]


@pytest.mark.parametrize("name", PROMISED)
def test_promised_names_are_public_functions(name):
    assert name in FUNCTIONS


def test_all_is_sorted_and_names_what_the_package_imports():
    assert list(sj.__all__) == sorted(sj.__all__)
    assert sorted([*FUNCTIONS, *CLASSES, "scores"]) == sorted(sj.__all__)
    imported = {
        name
        for name, thing in vars(sj).items()
        if not name.startswith("_")
        and (thing is sj.scores or not inspect.ismodule(thing))
    }
    assert imported == set(sj.__all__)


def section(doc: str, title: str) -> str:
    """The lines of a docstring's section, up to the next blank line at its level."""
    _, _, rest = inspect.cleandoc(doc).partition(f"\n{title}:\n")
    lines = []
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        lines.append(line)
    return "\n".join(lines)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_document_and_annotate_each_parameter_and_what_they_return(name):
    function = getattr(sj, name)
    signature = inspect.signature(function)
    first, *_ = function.__doc__.splitlines()
    assert first.endswith(".")
    arguments = section(function.__doc__, "Args")
    for parameter in signature.parameters.values():
        name = {parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "") + parameter.name
        assert f"    {name}: " in arguments
        assert parameter.annotation is not inspect.Parameter.empty
    returned = signature.return_annotation
    assert returned is not inspect.Signature.empty
    assert (returned is None) == (not section(function.__doc__, "Returns").strip())


@pytest.mark.parametrize("name", CLASSES)
def test_classes_document_each_attribute(name):
    thing = getattr(sj, name)
    attributes = section(thing.__doc__, "Attributes")
    for field in thing.__annotations__:
        assert f"    {field}: " in attributes


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_refuse_arguments_say_so(name):
    """A public function that raises in its own body has a Raises section."""
    function = getattr(sj, name)
    if "raise ValueError" in inspect.getsource(function).replace(function.__doc__, ""):
        assert "ValueError" in function.__doc__


def test_importing_loads_no_framework():
    program = (
        "import sys, sparsejax; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert {"sparsejax", "jax", "optax", "numpy"} <= set(loaded)
    heavy = {"flax", "orbax", "tensorflow", "haiku", "equinox", "matplotlib", "torch"}
    assert not heavy & set(loaded)


def test_version_is_a_release_number():
    assert all(part.isdigit() for part in sj.__version__.split("."))
