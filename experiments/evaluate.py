"""Evaluates a checkpoint of an image run, and exports its weights.

    python -m experiments.evaluate --workdir=runs/vgg19_granet_95 --checkpoint=best
    python -m experiments.evaluate --workdir=... --checkpoint=last --export=weights.npz

Prints one line of JSON. The checkpoint is "best", the one with the highest validation
accuracy at full sparsity, or "last"; its configuration comes with it. The file that
`--export` names holds NumPy arrays: params/PATH, batch_stats/PATH and masks/PATH.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.checkpoint import Checkpointer, Restored, saved_config
from experiments.configs.common import base_config
from experiments.record import BEST, CHECKPOINTS
from experiments.run import Run, prepare_run
from experiments.train import accuracy
from sparsejax.trees import leaves_with_paths, mask_leaves

_FOLDERS = {"best": BEST, "last": CHECKPOINTS}


def restore(
    workdir: str | Path, checkpoint: str = "best", **changes: Any
) -> tuple[Run, Restored]:
    """Restores the best or the last checkpoint of a run, with fields changed."""
    folder = epath.Path(workdir) / _FOLDERS[checkpoint]
    saved = saved_config(folder)
    if saved is None:
        raise ValueError(
            f"workdir must hold a {checkpoint} checkpoint of an image run; got "
            f"'{workdir}', which has none in {folder.name}/."
        )
    config = base_config()
    with config.unlocked():
        config.update(ConfigDict(saved))
        config.update(changes)
    run = prepare_run(config)
    checkpoints = Checkpointer(
        folder, None, None, run.parallel.to_saved, run.parallel.put_state
    )
    restored = checkpoints.restore(run.parallel.saved_like())
    checkpoints.close()
    if restored is None:
        raise ValueError(f"workdir must hold a whole checkpoint; got '{workdir}'.")
    return run, restored


def evaluate(run: Run, restored: Restored) -> dict[str, Any]:
    """Evaluates the validation and test splits."""
    state = restored.state
    found: dict[str, Any] = {"step": int(state.step)}
    splits = {"validation": run.dataset.validation, "test": run.dataset.test}
    for name, split in splits.items():
        if len(split):
            found |= {f"{name}_{k}": v for k, v in accuracy(run, state, split).items()}
    sparsity = float(optax.tree.get(state.opt_state, "sparsity"))
    return found | {"sparsity": sparsity}


def export(path: Path, restored: Restored) -> None:
    """Writes weights, statistics and masks as NumPy arrays by path."""
    state = jax.device_get(restored.state)
    trees = {
        "params": dict(leaves_with_paths(state.params)),
        "batch_stats": dict(leaves_with_paths(state.batch_stats)),
        "masks": mask_leaves(sj.get_masks(state.opt_state)),
    }
    arrays = {f"{n}/{p}": x for n, tree in trees.items() for p, x in tree.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], prog="experiments.evaluate"
    )
    parser.add_argument("--workdir", required=True, help="that of the run")
    parser.add_argument("--checkpoint", choices=_FOLDERS, default="best")
    parser.add_argument("--data_dir", help="where the data is, if it has moved")
    parser.add_argument("--export", type=Path, help="an .npz file to write")
    options = parser.parse_args(arguments)
    changes = {} if options.data_dir is None else {"data_dir": options.data_dir}
    try:
        run, restored = restore(options.workdir, options.checkpoint, **changes)
        print(json.dumps(evaluate(run, restored)))
        if options.export is not None:
            export(options.export, restored)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
