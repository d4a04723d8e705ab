"""Joining the processes of a run, before JAX looks for devices."""

import os

import jax


def join_processes(
    distributed: bool,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Joins this process to the others of the run, if there are others.

    Args:
        distributed: Whether to join even where no scheduler says so.
        coordinator: host:port of process 0, where no scheduler tells it.
        processes: How many processes there are.
        process: The number of this one, from 0.

    Raises:
        ValueError: If some of coordinator, processes and process are given, not all.
    """
    given = [coordinator is not None, processes is not None, process is not None]
    if any(given) and not all(given):
        raise ValueError(
            "coordinator, processes and process must be given together; got "
            f"{coordinator=}, {processes=}, {process=}."
        )
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    scheduled = int(os.environ.get("SLURM_NTASKS", "1")) > 1 or len(hosts) > 1
    if distributed or all(given) or scheduled:
        jax.distributed.initialize(coordinator, processes, process)
