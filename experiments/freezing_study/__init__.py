"""Freezing against pruning: the same masks, with the other weights as drawn or 0."""
