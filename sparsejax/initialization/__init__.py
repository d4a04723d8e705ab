"""Pruning before training, one paper one file: masks found at the initial weights.

Every method has one signature, so that one can be put in place of another:

    masks = METHOD(loss_fn, params, batches, key, sparsity, *, prunable=None, ...)

`loss_fn(params, batch)` is the mean loss of a batch; GraSP also gives it a temperature.
Data-free methods take what they need in its place and say so. Those that prune in
rounds take new batches for each, `batches(round)`. `sparsity` may be None where
`prunable` fixes that of every layer. The masks go to `static_transform`, or to any
other method that takes masks to start from.
"""
