"""Pruning plasticity along dense runs: prune, regenerate, train on, compare."""
