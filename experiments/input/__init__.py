"""The input side: data sets, the order of examples, augmentation, and two paths.

`host` reads, augments and batches on the host; `device` does the same inside a compiled
step for sets that fit in device memory. Both see the same epochs, bit for bit, because
both follow `plan`.
"""
