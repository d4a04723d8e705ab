"""How far a run is: a bar on a terminal, a line now and then anywhere else."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any

import rich.progress
from rich.console import Console
from rich.table import Column

# Speed is over this many updates: enough to be steady, few enough to follow a change.
_WINDOW = 100


class Progress:
    """Shows steps, examples a second, time left and metrics; a context manager."""

    def __init__(
        self,
        total_steps: int,
        *,
        examples_per_step: int = 1,
        initial_step: int = 0,
        description: str = "Training",
        active: bool = True,
        line_every_seconds: float = 10.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts to count; draws nothing until it is entered.

        Args:
            total_steps: The step to end at.
            examples_per_step: The batch size, over all devices and processes.
            initial_step: The step to begin at, of a resumed run.
            description: What is going on.
            active: False on processes other than 0: nothing is drawn.
            line_every_seconds: The least time between lines, where there is no
                terminal; the last step always has one.
            console: Where to draw; the standard error stream by default.
            clock: Gives the time in seconds.
        """
        self._total = total_steps
        self._examples_per_step = examples_per_step
        self._description = description
        self._active = active
        self._line_every = line_every_seconds
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._next_line = -math.inf
        self._seen: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._metrics = ""
        self._bar: rich.progress.Progress | None = None
        if active and self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}", markup=False),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.MofNCompleteColumn(
                    # On a narrow terminal it is the metrics that are cut short.
                    table_column=Column(min_width=2 * len(str(total_steps)) + 1)
                ),
                rich.progress.TextColumn(
                    "{task.fields[figures]}",
                    markup=False,
                    table_column=Column(no_wrap=True, overflow="ellipsis"),
                ),
                console=self._console,
            )
            self._task = self._bar.add_task(
                description, total=total_steps, completed=initial_step, figures=""
            )

    @property
    def examples_per_second(self) -> float:
        """The speed over the last updates; NaN until the second one."""
        if not self._seen:
            return math.nan
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        if end <= start:
            return math.nan
        return (last - first) * self._examples_per_step / (end - start)

    def update(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Shows that a step is done.

        Args:
            step: How many steps are done.
            metrics: Numbers to show, until others are given. Reading an array waits
                for its device: give them when you log, not at every step.
        """
        self._seen.append((self._clock(), step))
        if not self._active:
            return
        if metrics is not None:
            self._metrics = "  ".join(
                f"{name} {float(value):.4g}" for name, value in metrics.items()
            )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=self._figures(step))
        elif self._clock() >= self._next_line or step >= self._total:
            self._next_line = self._clock() + self._line_every
            share = 100 * step / max(self._total, 1)
            self._console.print(
                f"{self._description} {step:,}/{self._total:,} ({share:.1f} %)  "
                f"{self._figures(step)}".rstrip(),
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def _figures(self, step: int) -> str:
        speed = self.examples_per_second
        figures = [self._metrics] if self._metrics else []
        if speed > 0:
            left = (self._total - step) * self._examples_per_step / speed
            whole = timedelta(seconds=max(round(left), 0))
            figures = [f"{speed:,.0f} examples/s", f"{whole} left", *figures]
        return "  ".join(figures)

    def __enter__(self) -> "Progress":
        """Starts to draw."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the terminal as it was, below the bar."""
        if self._bar is not None:
            self._bar.stop()
