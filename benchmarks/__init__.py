"""Measurements: each prints ratios of medians measured side by side in one run."""
