"""Reports on masks and runs."""

from sparsejax.analysis.summary import summary as summary
