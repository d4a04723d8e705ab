"""Lottery tickets: rounds of pruning, in every form, with controls."""
