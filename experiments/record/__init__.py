"""The record of a run: metrics, progress, environment and a report of one page."""
