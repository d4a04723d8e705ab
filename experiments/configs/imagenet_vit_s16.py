"""ViT-S/16 on ImageNet, after Beyer et al. (arXiv 2205.01580), without its mixing.

    python -m experiments.imagenet \
        --config=experiments/configs/imagenet_vit_s16.py:method=granet,sparsity=0.8 \
        --workdir=runs/vit_s16_granet_80

After the colon: method (one of `experiments.configs.common.METHODS`), sparsity.

90 epochs at batch 1024 of AdamW: cosine schedule to 0.001 after 8 epochs of warm-up,
gradients clipped at norm 1. Their RandAugment and MixUp are not here: their 76 % is no
number for this recipe. The patch embedding and the head stay dense; `prunable` chooses
what is pruned. Topology updates are as far apart in images as those of
`imagenet_resnet50.py`. Cost and our own result: not run.
"""

from ml_collections import ConfigDict

from experiments.configs import imagenet_resnet50


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns the configuration for "method=...,sparsity=..."."""
    config = imagenet_resnet50.get_config(argument)
    config.model = "vit_s16"
    config.sync_batch_norm = False  # there is no batch norm
    config.prunable = (("^stem/", False), ("^head/", False))
    config.output_layer = ""
    config.batch_size = config.reference_batch_size = 1024
    config.update_interval_steps = 500
    config.epochs = 90
    config.optimizer = "adamw"
    config.schedule = "cosine"
    config.learning_rate = 1e-3
    config.warmup_epochs = 8
    config.weight_decay = 0.1
    config.clip_norm = 1.0
    config.label_smoothing = 0.0
    config.checkpoint_every_steps = 1251  # an epoch
    return config
