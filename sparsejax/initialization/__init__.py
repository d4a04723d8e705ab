"""Pruning before training, one paper one file: masks found at the initial weights.

Every method has one signature, so that one can be put in place of another:

    masks = METHOD(loss_fn, params, batches, key, sparsity, *, prunable=None, ...)

`loss_fn(params, batch)` is the mean loss of a batch. Data-free methods take what they
need in its place and say so. The masks go to `static_transform`, or to any other method
that takes masks to start from.
"""
