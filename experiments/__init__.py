"""Experiments: thin mains that train real networks with sparsejax."""
