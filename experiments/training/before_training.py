"""The methods that prune before training, by name; then masks stay as they are."""

# Names in reports, in the order of reports.
LABELS = {
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "iter_snip": "Iter-SNIP",
    "force": "FORCE",
    "drive": "DRIVE",
}


def trained_as(name: str) -> str:
    """Gives the method that a method's runs are trained with.

    Args:
        name: A key of `LABELS`, or of `experiments.training.sparse.LABELS`.

    Returns:
        "static" for the former, which differ from it in their masks alone; else `name`.
    """
    return "static" if name in LABELS else name
