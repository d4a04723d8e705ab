"""GraNet (s_i=0) at 90 % on ImageNet ResNet-50: `imagenet_resnet50.py` by one name.

    python -m experiments.imagenet \
        --config=experiments/configs/imagenet_resnet50_granet.py --workdir=gs://...

Cost and result: not run.
"""

from experiments.configs.imagenet_resnet50 import get_config as get_config
