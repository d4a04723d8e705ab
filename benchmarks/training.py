"""Whole training, sparse against dense, through the loop of `experiments.cifar`.

    python -m benchmarks.training --data_dir=TFDS_DIRECTORY --steps=3000 --log_every=500

Trains the network of a configuration on the whole of CIFAR-10, dense and with GraNet,
in turns, and compares images a second. Evaluation, checkpoints and compilation are
left out of the time, topology updates are in it, at the configuration's interval
where the run is long enough for it.
"""

import argparse
import importlib
import statistics
import tempfile

from benchmarks.timing import machine
from experiments.train import train_and_evaluate


def images_per_second(options: argparse.Namespace, method: str) -> float:
    """Trains for some steps and evaluates.

    Args:
        options: The command line.
        method: "dense" or the name of a method.

    Returns:
        Images a second.
    """
    module = importlib.import_module(f"experiments.configs.{options.config}")
    config = module.get_config(f"method={method},sparsity={options.sparsity}")
    config.data_dir = options.data_dir
    config.dtype = options.dtype
    config.batch_size = options.batch_size
    if options.validation_examples is not None:
        config.validation_examples = options.validation_examples
    config.total_steps = options.steps
    config.log_every_steps = options.log_every
    config.steps_per_call = options.steps_per_call
    interval = min(config.update_interval_steps, max(1, options.steps // 4))
    config.update_interval_steps = interval
    config.checkpoint_every_steps = options.steps
    config.evaluate_every_epochs = 1_000_000  # at the end alone
    with tempfile.TemporaryDirectory() as workdir:
        outcome = train_and_evaluate(config, workdir)
    speed = outcome.examples_per_second
    print(
        f"{method}: {speed:.1f} images/s, test accuracy {outcome.test_accuracy:.4f} "
        f"after {options.steps} steps; the interval of updates is {interval} steps"
    )
    return speed


def main() -> None:
    """Measures and prints the ratio."""
    parser = argparse.ArgumentParser(description="Time sparse and dense training.")
    parser.add_argument("--config", default="cifar_vgg19", help="or cifar_resnet50")
    parser.add_argument("--data_dir", help="where cifar10 is, prepared for TFDS")
    parser.add_argument("--method", default="granet")
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--dtype", default="float32", help="of the computation")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3000, help="of each run")
    parser.add_argument("--log_every", type=int, default=500, help="steps; and timed")
    parser.add_argument("--steps_per_call", type=int, default=50, help="1 on a CPU")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each")
    parser.add_argument(
        "--validation_examples", type=int, help="fewer than 5000 for a CPU's sake"
    )
    options = parser.parse_args()
    print(f"{options.config}, batch {options.batch_size}, {options.dtype}; {machine()}")
    speeds: dict[str, list[float]] = {"dense": [], options.method: []}
    for _ in range(options.repeats):
        for method, found in speeds.items():
            found.append(images_per_second(options, method))
    medians = {method: statistics.median(found) for method, found in speeds.items()}
    ratio = medians[options.method] / medians["dense"]
    print(f"{options.method} trains at {ratio:.3f} times the speed of dense.")


if __name__ == "__main__":
    main()
