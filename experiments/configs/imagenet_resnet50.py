"""ResNet-50 on ImageNet, GraNet's recipe (arXiv 2106.10404).

    python -m experiments.imagenet \
        --config=experiments/configs/imagenet_resnet50.py:method=granet,sparsity=0.9 \
        --workdir=runs/resnet50_granet_90

After the colon: method (one of `experiments.configs.common.METHODS`), sparsity (0.8,
0.9 in the paper).

100 epochs at batch 128, as in the paper: 1,000,900 steps, topology updates every 4000,
gradual pruning over the first 30 epochs. The rate and the intervals follow the batch:
`--config.batch_size=1024` has eight times the rate and an eighth of the interval. Batch
norm is synchronized, so that a run is the same on any number of devices. Any folder of
images by class trains the same way: `--config.dataset=folder:PATH`. Cost and our own
result: not run.
"""

from ml_collections import ConfigDict

from experiments.configs.common import base_config, parse


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns the configuration for "method=...,sparsity=..."."""
    config = base_config()
    config.update(parse(argument, method="granet", sparsity=0.9))
    config.dataset = "imagenet2012"
    config.validation_examples = 10_000
    config.augment = "imagenet"
    config.image_size = 224
    config.workers = 8
    config.model = "resnet50"
    config.sync_batch_norm = True
    config.reference_batch_size = 128
    config.epochs = 100
    config.warmup_epochs = 5
    config.drop_at = (0.3, 0.6, 0.9)
    config.nesterov = False
    config.weight_decay = 1e-4
    config.decay_batch_norm = False
    config.label_smoothing = 0.1
    config.update_interval_steps = 4000
    config.pruning_share = 0.3
    config.initialization_batches = 40  # as in FORCE's code
    # AC/DC's for ImageNet: dense to 10 %, turns of 5 %, dense from 75, sparse from 85.
    config.acdc_phases = (*(0.1 + 0.05 * turn for turn in range(14)), 0.85)
    config.seed = 17
    config.log_every_steps = 100
    config.checkpoint_every_steps = 5000
    return config
