"""Training few of the weights: masks that freeze the others instead of pruning them.

Wimmer et al., "Dimensionality Reduced Training by Pruning and Freezing Parts of a Deep
Neural Network, a Survey", arXiv 2205.08099, sets both beside each other: a mask says
which weights are trained, and the others are 0 or stay as they were drawn.
"""
