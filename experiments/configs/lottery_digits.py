"""Lottery tickets on scikit-learn's digits: five seeds, in every form, with controls.

    python -m experiments.lottery --config=experiments/configs/lottery_digits.py \
        --workdir=DIR

The questions of Frankle and Carbin (arXiv 1803.03635), Frankle et al. (arXiv
1912.05671) and Renda et al. (arXiv 2003.02389): do weights rewound to the beginning, or
to early in the run, train as well as the dense network; does it take the weights, or
the learning rate alone; and is it the masks or the weights that matter?
`docs/lottery.md` says what came out. No paper has numbers for this network.
"""

from ml_collections import ConfigDict

from experiments.configs.plasticity_digits import training_config


def get_config() -> ConfigDict:
    """Gives the configuration.

    Returns:
        The fields; those of training are explained in
        `experiments/configs/plasticity_digits.py`.
    """
    config = training_config()
    config.epochs = 12

    # After which epochs weights are taken to rewind to. The others are compared with 0.
    config.rewind_epochs = (0, 1, 6)
    # How long is fine-tuned in a round, at the last learning rate.
    config.fine_tuning_epochs = 12
    # Rounds drop about this part of the active weights, so that they end at these.
    config.fraction = 0.2
    config.sparsities = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
    return config
