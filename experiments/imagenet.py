"""Sparse training on ImageNet, or any folder of images by class.

    python -m experiments.imagenet \
        --config=experiments/configs/imagenet_resnet50.py:method=granet,sparsity=0.9 \
        --workdir=runs/resnet50_granet_90

A workdir that holds a checkpoint is resumed. SIGTERM saves and exits with code 75.
"""

from experiments.launch import run

if __name__ == "__main__":
    run()
