"""Sparse training on CIFAR-10 and CIFAR-100, or any other small set of images.

    python -m experiments.cifar \
        --config=experiments/configs/cifar_vgg19.py:method=granet,sparsity=0.95 \
        --workdir=runs/vgg19_granet_95

A workdir that holds a checkpoint is resumed. SIGTERM saves and exits with code 75.
"""

from experiments.launch import run

if __name__ == "__main__":
    run()
