"""What the image configurations share: every field, and the reading of arguments."""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.methods import names

METHODS = tuple(names("before", "during", "after"))


def parse(argument: str | None, **defaults: Any) -> dict[str, Any]:
    """Reads "name=value,name=value", what stands after a config file's colon.

    Values are in the types of the defaults, which say what names there are.

    Example:
        >>> parse("method=rigl", method="granet", sparsity=0.9)
        {'method': 'rigl', 'sparsity': 0.9}
    """
    values = dict(defaults)
    for part in filter(None, (argument or "").split(",")):
        name, separator, value = part.partition("=")
        if not separator or name not in values:
            raise ValueError(
                f"config arguments must be name=value of {', '.join(values)}; got "
                f"{part!r}."
            )
        kind = type(values[name])
        try:
            values[name] = kind(value)
        except ValueError:
            raise ValueError(
                f"{name} must be of type {kind.__name__}; got {value!r}."
            ) from None
    if values.get("method", METHODS[0]) not in METHODS:
        raise ValueError(
            f"method must be one of {', '.join(METHODS)}; got {values['method']!r}."
        )
    return values


def method_fields() -> ConfigDict:
    """Returns what methods have of their own: each its paper's values, none tuned here.

    But for the interval between updates, which is one for all unless it is set.
    """
    fields = ConfigDict()
    # The distribution of sparsity over layers where masks are random, and of Top-KAST:
    # "erk", "er" or "uniform". One for all, so that no method is favored; SET's paper
    # has "er", those of SNFS, DSR, MEST and Top-KAST "uniform".
    fields.distribution = "erk"
    # The fraction of a layer that is exchanged at an update: always (SET, DSR), or at
    # first.
    fields.prune_rate = ConfigDict(
        {
            "set": 0.3,
            "dsr": 0.1,
            "snfs": 0.5,
            "mest": 0.2,
            "rigl": 0.3,
            "rigl_itop": 0.5,
            "srigl": 0.3,
            "granet": 0.5,
        }
    )
    # Steps between topology updates; None for `update_interval_steps`.
    fields.update_intervals = ConfigDict(
        {name: placeholder(int) for name in (*fields.prune_rate, "top_kast", "gmp")}
    )
    # Where sparse-to-sparse GraNet starts.
    fields.granet_st_initial_sparsity = 0.5
    # Shares of the run at which AC/DC's sparse and dense phases start, in turn: those
    # of its authors' configuration for CIFAR.
    fields.acdc_phases = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85)
    # How many times as many weights Top-KAST trains as it runs on; chosen here.
    fields.top_kast_backward = 2.0
    # The layer whose neurons SRigL never ablates; "" where it is not pruned at all.
    fields.output_layer = "head"
    return fields


def base_config() -> ConfigDict:
    """Returns every field of an image experiment, with the values that most share.

    `dataset`, `model`, `method` and `sparsity` are to be set.
    """
    config = ConfigDict()
    # Data.
    config.dataset = placeholder(str)  # a name, folder:DIR or npz:FILE
    config.data_dir = placeholder(str)  # where TFDS data is; None for its default
    config.validation_examples = 5000  # held out of the training split
    config.num_classes = placeholder(int)  # None for the data's; refused if another
    config.augment = "cifar"  # "cifar", "imagenet" or "none"
    config.pad = 4  # pixels on each side, for "cifar"
    config.pad_mode = "reflect"  # "reflect" or "zero"
    config.image_size = placeholder(int)  # for "imagenet"
    config.device_resident = placeholder(bool)  # keep data there; None where it can be
    config.workers = 0  # processes that read and augment, where it is not
    # Model.
    config.model = placeholder(str)  # see experiments.models
    config.model_options = ConfigDict(convert_dict=True)
    config.dtype = "float32"  # of the computation; weights are float32
    config.sync_batch_norm = False  # statistics over all devices, with pmap
    # Optimizer.
    config.batch_size = 128  # over all devices
    # The rate and all *_steps but the run's length are for this batch, and follow
    # another; None leaves them as they are.
    config.reference_batch_size = placeholder(int)
    config.accumulation = 1  # parts of a batch taken one after the other
    config.epochs = 160
    config.total_steps = placeholder(int)  # instead of epochs, for a short run
    config.optimizer = "sgd"  # "sgd" or "adamw"
    config.schedule = "step"  # "step", "cosine" or "constant"
    config.learning_rate = 0.1
    config.warmup_epochs = 0
    config.drop_at = (0.5, 0.75)  # shares of the run, for "step"
    config.drop_factor = 0.1
    config.momentum = 0.9  # of "sgd"
    config.nesterov = True
    config.weight_decay = 5e-4  # "sgd": L2 added to the gradient; "adamw": decoupled
    config.decay_batch_norm = True  # also other norms and biases
    config.clip_norm = placeholder(float)  # the largest norm of all gradients together
    config.label_smoothing = 0.0
    # Method.
    config.method = placeholder(str)  # one of METHODS
    config.sparsity = placeholder(float)  # to end at
    config.prunable = placeholder(tuple)  # (regex, setting) pairs; None for all kernels
    config.update(method_fields())
    config.update_interval_steps = 1000
    config.pruning_share = 0.5  # of the run, after which gradual pruning ends
    config.initialization_batches = 1  # that pruning before training looks at
    config.initialization_rounds = placeholder(int)  # None for those of its paper
    config.rescale_to_edge_of_chaos = False  # the first weights: SBP's rescaling
    config.round_fraction = 0.2  # that a round of pruning after training takes away
    config.rewind_epochs = 1  # after which "lottery" goes back to the weights
    config.fine_tune_share = 0.25  # of a run, at its end: what fine-tuning is
    config.grasp_images_per_class = 10  # as in GraSP's code
    config.drive_dense_epochs = 5  # chosen here: the paper's number was not found
    # Run.
    config.seed = 18
    config.parallel = "pmap"  # "pmap" or "jit"
    config.shard_state = False  # over the devices, with "jit"
    config.steps_per_call = 1  # in one compiled scan, where data is on the device
    config.evaluate_every_epochs = 1
    config.log_every_steps = 100
    config.checkpoint_every_steps = 2000
    config.keep_checkpoints = 2
    config.keep_best = True  # checkpoint, by validation accuracy at full sparsity
    config.stop_on_nan = True
    config.profile_step = placeholder(int)  # from which a trace is written, for a while
    config.profile_steps = 5  # how long
    return config


def cifar_config(argument: str | None) -> ConfigDict:
    """Returns what the CIFAR experiments share, GraNet's recipe of 160 epochs.

    The argument is "method=...,sparsity=...,classes=..."; `model` is to be set.
    """
    values = parse(argument, method="granet", sparsity=0.95, classes=10)
    classes = values.pop("classes")
    if classes not in (10, 100):
        raise ValueError(f"classes must be 10 or 100; got {classes}.")
    config = base_config()
    config.update(values)
    config.dataset = f"cifar{classes}"
    config.reference_batch_size = 128
    config.steps_per_call = 50  # 1 is faster on a CPU: convolutions in a loop are slow
    # As in the official code: mirrored edges for CIFAR-10, zeros for CIFAR-100.
    config.pad_mode = "reflect" if classes == 10 else "zero"
    config.initialization_batches = classes // 10  # as in FORCE's code: 1 and 10
    return config
