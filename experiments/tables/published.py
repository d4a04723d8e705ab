"""Published accuracies, each with its source and whether it was verified.

Verified: read in a public source that quotes the paper's own table. Unverified: from
memory, no copy of the source could be opened; it agrees with every verified number, but
is no fact and no target, and is shown as unverified or not at all.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """One published number.

    Attributes:
        value: Test accuracy in %, the mean where there were several runs.
        deviation: Standard deviation over runs; None where it is not given.
        source: Where it stands.
        verified: Whether it was read in a public source.
        note: What is different about it, such as another sparsity.
    """

    value: float
    deviation: float | None
    source: str
    verified: bool
    note: str = ""


# (method, sparsity) -> its number; dense at sparsity 0.
Numbers = Mapping[tuple[str, float], Published]

# Names of methods that have published numbers here and are not run.
OTHER_LABELS = {
    "str": "STR",
}

_GRANET = (
    "GraNet (arXiv 2106.10404), Table 2, as the public repository HaroonKhawaja/BaCP "
    "quotes it in docs/published_comparators.md"
)
_GRASP = f"{_GRANET}; the deviation from GraSP (arXiv 2002.07376), Table 2"
_GRANET_DENSE = (
    "GraNet (arXiv 2106.10404), Tables 1, 2, 6 and 9, as the public repository "
    "HaroonKhawaja/BaCP quotes them in results/reference/dense_reference.json"
)
_RECOLLECTION = "GraNet (arXiv 2106.10404), from memory"
_READMES = "the READMEs of Chase, ITOP and RigL"
_ACDC = "the repository of AC/DC (arXiv 2106.12379)"
_STR = "the README of STR (arXiv 2002.03231)"


def _verified(
    value: float, deviation: float | None = None, source: str = _GRANET, note: str = ""
) -> Published:
    return Published(value, deviation, source, True, note)


def _unverified(value: float) -> Published:
    return Published(value, None, _RECOLLECTION, False)


def _dense(value: float, deviation: float, source: str = _GRANET_DENSE) -> Numbers:
    return {("dense", 0.0): _verified(value, deviation, source)}


def _row(method: str, **columns: Published | float) -> Numbers:
    """Lays a row out: s90=93.8 is at 90 %; a bare number is one from memory."""
    return {
        (method, int(name[1:]) / 100): number
        if isinstance(number, Published)
        else _unverified(number)
        for name, number in columns.items()
    }


_V = _verified
PUBLISHED: dict[str, Numbers] = {
    "digits": {},
    "cifar10_vgg19_narrow": {},
    "cifar10_vgg19": {
        **_dense(93.85, 0.05),
        **_row(
            "snip",
            s90=_V(93.63),
            s95=_V(93.43, 0.20, _GRASP),
            s98=_V(92.05, 0.28, _GRASP),
        ),
        **_row(
            "grasp",
            s90=_V(93.30),
            s95=_V(93.04, 0.18, _GRASP),
            s98=_V(92.19, 0.12, _GRASP),
        ),
        **_row("synflow", s90=_V(93.35)),
        **_row("set", s90=_V(92.46), s95=91.73, s98=89.18),
        **_row("rigl", s90=_V(93.38, 0.11), s95=93.06, s98=91.98),
        **_row("gmp", s90=_V(93.59, 0.10), s95=93.58, s98=93.52),
        **_row("granet_st", s90=93.73, s95=93.66, s98=93.38),
        **_row("granet", s90=_V(93.80, 0.10), s95=93.72, s98=93.63),
    },
    "cifar100_vgg19": {
        **_dense(73.43, 0.08),
        **_row(
            "snip",
            s90=_V(72.84, 0.22, _GRASP),
            s95=_V(71.83, 0.23, _GRASP),
            s98=_V(58.46),
        ),
        **_row(
            "grasp",
            s90=_V(71.95, 0.18, _GRASP),
            s95=_V(71.23, 0.12, _GRASP),
            s98=_V(68.90),
        ),
        **_row("synflow", s98=_V(70.94)),
        **_row("set", s90=72.36, s95=69.81, s98=65.94),
        **_row("rigl", s90=73.13, s95=72.14, s98=_V(69.82, 0.09)),
        **_row("gmp", s90=73.10, s95=72.30, s98=_V(72.07, 0.37)),
        **_row("granet_st", s90=73.30, s95=73.18, s98=72.04),
        **_row("granet", s90=74.48, s95=73.10, s98=_V(72.35, 0.26)),
    },
    "cifar10_resnet50": {
        **_dense(94.75, 0.01),
        **_row("snip", s95=_V(90.86)),
        **_row("grasp", s95=_V(91.32)),
        **_row("synflow", s95=_V(91.22)),
        **_row("rigl", s90=94.45, s95=_V(93.86, 0.25), s98=93.26),
        **_row("gmp", s90=94.34, s95=_V(94.52, 0.08), s98=94.19),
        **_row("granet_st", s90=94.64, s95=_V(94.38, 0.28), s98=94.01),
        **_row("granet", s90=94.49, s95=_V(94.44, 0.01), s98=94.34),
    },
    "cifar100_resnet50": {
        **_dense(78.23, 0.18),
        **_row("snip", s90=_V(73.14)),
        **_row("grasp", s90=_V(73.28)),
        **_row("synflow", s90=_V(73.37)),
        **_row("rigl", s90=_V(76.50, 0.33), s95=76.03, s98=75.06),
        **_row("gmp", s90=_V(76.91, 0.23), s95=76.42, s98=75.58),
        **_row("granet_st", s90=77.89, s95=77.16, s98=77.14),
        **_row("granet", s90=_V(77.29, 0.45), s95=76.71, s98=76.10),
    },
    "imagenet_resnet50": {
        **_dense(76.8, 0.09, _READMES),
        **_row("set", s80=_V(72.9, 0.39, _READMES), s90=_V(69.6, 0.23, _READMES)),
        **_row("dsr", s80=_V(73.3, None, _READMES), s90=_V(71.6, None, _READMES)),
        **_row(
            "snfs",
            s80=_V(75.2, 0.11, _READMES, "ERK"),
            s90=_V(72.9, 0.06, _READMES, "ERK"),
        ),
        **_row(
            "rigl",
            s80=_V(75.1, 0.05, _READMES, "ERK"),
            s90=_V(73.0, 0.04, _READMES, "ERK"),
        ),
        **_row(
            "rigl_itop",
            s80=_V(75.84, 0.05, _READMES, "ERK"),
            s90=_V(73.82, 0.08, _READMES, "ERK"),
        ),
        **_row(
            "mest",
            s80=_V(75.39, None, _READMES, "EM or EM&S, not said"),
            s90=_V(72.58, None, _READMES, "EM or EM&S, not said"),
        ),
        **_row("acdc", s80=_V(76.45, None, _ACDC), s90=_V(75.03, None, _ACDC)),
        **_row(
            "str",
            s80=_V(76.12, None, _STR, "at 81.27 %"),
            s90=_V(74.31, None, _STR, "at 90.23 %"),
        ),
        **_row("granet_st", s80=76.0, s90=74.5),
        **_row("granet", s80=75.8, s90=74.2),
    },
}
