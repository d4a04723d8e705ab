"""Many small runs side by side: methods, sparsities and seeds, and what came out."""
