"""Deep."""

from ml_collections import ConfigDict

from experiments.configs import digits


def get_config() -> ConfigDict:
    """Gives the configuration.

    Returns:
        The fields; those not set here are explained in `experiments/configs/digits.py`.
    """
    config = digits.get_config()
    config.model = "digits_mlp"
    config.model_options.widths = (128,) * 24
    config.methods = ("dense", "static", "snip", "iter_snip", "force")
    config.compared_with = ("snip",)
    config.sparsities = (0.99, 0.995)
    config.epochs = 20
    config.learning_rate = 0.005  # chosen for the dense network; see above
    config.update_interval_steps = 14
    config.initialization_rounds = 60
    return config
