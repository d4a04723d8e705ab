"""SIGTERM: finish the step, save, and leave with a code that says so."""

import signal
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again.
EXIT_PREEMPTED = 75


class Preempted(Exception):
    """Training was stopped from outside after its state had been saved."""


class PreemptionWatch:
    """Tells when the run should save and leave, at the same step on every process.

    A context manager; outside of it, SIGTERM does what it did before.
    """

    def __init__(self) -> None:
        """Makes a watch that does not watch yet."""
        self._asked = False
        self._previous: Any = None

    def __enter__(self) -> "PreemptionWatch":
        """Starts to watch for SIGTERM."""
        # With several processes, jax.distributed has its own watch, which agrees on a
        # step: all must save the same one.
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives the signal back to what handled it before."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def should_stop(self, step: int) -> bool:
        """Tells whether to save at this step and leave.

        Args:
            step: The step just finished; every process asks at each one.

        Returns:
            True once, at the same step on every process.
        """
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._asked
