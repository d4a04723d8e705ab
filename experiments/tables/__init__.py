"""Tables of results: what belongs in them, what was published, what is still to run."""
