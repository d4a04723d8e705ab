"""Pruning at random and generalisation: a two-layer network on signal and noise."""
