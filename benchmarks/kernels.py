"""How many kernels a compiled program has, read off its text.

XLA's CPU backend compiles kernels of equal bodies once, so that the time to compile a
program grows with the number of distinct bodies, not with the number of kernels.
"""

import re

_COMPUTATION = re.compile(r"^(?:ENTRY )?(%\S+) \(.*\{$")
_FUSION = re.compile(r" fusion\(.*\bcalls=(%[\w.-]+)")
_NAME = re.compile(r"%[\w.-]+")
# What tells equal bodies apart, and is no part of what they compute.
_NOTES = re.compile(r', metadata=\{(?:"[^"]*"|[^{}"])*\}|/\*.*?\*/')


def distinct_kernels(text: str) -> int:
    """Counts the distinct bodies of a program's fusions.

    Two bodies are equal if they have the same instructions on the same shapes with the
    same constants in the same order, whatever these are called.

    Args:
        text: `compiled.as_text()`. With XLA's former CPU emitters
            (`--xla_cpu_use_fusion_emitters=false`) operations that stand alone are no
            fusions, and are not counted.

    Returns:
        How many there are.
    """
    bodies = _computations(text)
    return len({_normalized(name, bodies) for name in _FUSION.findall(text)})


def _computations(text: str) -> dict[str, list[str]]:
    """Splits a program into the lines of its computations, by their names."""
    bodies: dict[str, list[str]] = {}
    body: list[str] = []
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            body = bodies[found[1]] = []
        elif line.startswith("  "):
            body.append(_NOTES.sub("", line))
    return bodies


def _normalized(name: str, bodies: dict[str, list[str]]) -> str:
    """Numbers the names in a body as they come, and writes out what it calls."""
    numbers: dict[str, str] = {}

    def replace(found: re.Match[str]) -> str:
        if found[0] in bodies:
            return "{" + _normalized(found[0], bodies) + "}"
        return numbers.setdefault(found[0], f"%{len(numbers)}")

    return "\n".join(_NAME.sub(replace, line) for line in bodies[name])
