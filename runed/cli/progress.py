"""The progress of long work on standard error: bars on a terminal, otherwise one line a step, and of a job one now and then."""

from __future__ import annotations

import re
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from runed.cli.boundary import complain
from runed.errors import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, Task, TaskID

_MEGABYTE = 1_000_000
_STYLE = "green"
"""The colour of marks and bars. It can be read on light and on dark terminals, and all words have the terminal's own colour."""

_BAR = 24
"""Characters of a bar."""

_NUMBERS_SECONDS = 3.0
"""Seconds after which a line is printed of which only the numbers are new."""

_TEXTS_SECONDS = 30.0
"""Seconds between two lines about the texts of a job, where bars cannot be shown. A shorter job has none."""

_SLOW = 10
"""The number a second below which a decimal tells something."""

_DIGITS = re.compile(r"\d+")


class ProgressDisplay:
    """Shows the steps of long work, one after another. Costs nothing until the first step. Several threads may use it.

    Args:
        keep: Whether the bars of completed steps stay on the terminal.
        wanted: Whether to show anything; None means as the setting `progress` says.
    """

    def __init__(self, *, keep: bool = False, wanted: bool | None = None) -> None:
        self._lock = threading.RLock()
        self._keep = keep
        self._wanted = wanted
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self.shown = ""
        """The step that is shown; "" for none."""
        self._step = ""
        self._counted = False
        self._line = ""
        self._printed_at = 0.0
        self._began: tuple[float, int] | None = None  # the time and the texts of the first update of a step
        self._texts = (0, 0)
        self._told: threading.Event | None = None  # set when the lines about the texts of a job end

    @property
    def live(self) -> bool:
        """Whether standard error is a terminal, which can show bars."""
        # While bars are shown, rich replaces sys.stderr, before its version 15 by an object that says to be no terminal.
        return self._bars is not None or (sys.stderr is not None and sys.stderr.isatty())

    def update(self, step: str, done: int = 0, total: int = 0, *, unit: str = "bytes", detail: str = "") -> None:
        """Show the progress of a step. A new step ends the last one.

        Args:
            step: The name of the step; each step has a bar of its own.
            done: The number of units that are done.
            total: The number of all units; 0 if unknown.
            unit: The name of the units. If they are not bytes, the rate is shown too. If they are texts, those of a job, a line
                is printed every `_TEXTS_SECONDS` where there are no bars.
            detail: A sentence about the step, which is shown instead of its name.
        """
        with self._lock:
            if self._wanted is None:
                from runed.settings import load_settings  # noqa: PLC0415 # the command has read them already

                self._wanted = load_settings().progress
            if not self._wanted:
                return
            self.shown = step
            if self.live:
                self._draw(step, done, total, unit, printable(detail or step))
            elif unit == "texts":
                self._print_texts(step, done, total)
            else:
                self._print(printable(detail or step))

    def _draw(self, step: str, done: int, total: int, unit: str, detail: str) -> None:
        if self._bars is None:
            self._bars = _make_bars(keep=self._keep)
            self._bars.start()
        amount = self._amount(done, total, unit)
        # rich cannot remove a total: a full bar would stay full during work of unknown length. So such work gets a new bar.
        if (step, total > 0) != (self._step, self._counted) or self._task is None:
            self._end_step()
            self._step, self._counted = step, total > 0
            self._task = self._bars.add_task(
                detail, total=total or None, completed=done, amount=amount, counted=total > 0, ended=False
            )
        else:
            self._bars.update(self._task, description=detail, completed=done, total=total or None, amount=amount)

    def drop(self) -> None:
        """Remove the bar of the present step, which was interrupted, and release the terminal."""
        with self._lock:
            if self._bars is not None and self._task is not None:
                self._bars.remove_task(self._task)
                self._task = None
            self.close()

    def close(self) -> None:
        """End the last step and release the terminal. A later update shows a new bar."""
        with self._lock:
            self.shown = ""
            if self._told is not None:
                self._told.set()
                self._told = None
            if self._bars is not None:
                self._end_step()
                self._bars.stop()
                self._bars = None

    def _amount(self, done: int, total: int, unit: str) -> str:
        if unit == "bytes":
            return f"{done / _MEGABYTE:,.1f}/{total / _MEGABYTE:,.1f} MB" if total else ""
        amount = f"{done:,}/{total:,} {unit}" if total else f"{done:,} {unit}"
        speed = self._task_now().speed if self._bars is not None and self._task is not None and total else None
        return f"{amount}, {rate_of(speed, 1)}/s" if speed else amount

    def _print_texts(self, step: str, done: int, total: int) -> None:
        """Print every `_TEXTS_SECONDS` how far a job is, also while an engine works on many texts and none is done."""
        if step != self._step or self._began is None:
            self._step, self._began = step, (time.monotonic(), done)
        self._texts = (done, total)
        if self._told is None:
            self._told = threading.Event()
            threading.Thread(target=self._tell_texts, args=[self._told], daemon=True).start()

    def _tell_texts(self, ended: threading.Event) -> None:
        while not ended.wait(_TEXTS_SECONDS):
            with self._lock:
                if not ended.is_set():
                    complain(self._texts_line())

    def _texts_line(self) -> str:
        assert self._began is not None
        done, total = self._texts
        passed, new = time.monotonic() - self._began[0], done - self._began[1]
        line = f"{self._step}: {done:,} of {total:,} texts ({done / total:.0%})" if total else f"{self._step}: {done:,} texts"
        if total and new and passed:
            line += f", {rate_of(new, passed)}/s, {_time(round((total - done) * passed / new))} left"
        return line

    def _print(self, line: str) -> None:
        # Lines that differ only in their numbers would fill a log if all were printed, and none would look like a hang.
        renewed = line != self._line and time.monotonic() - self._printed_at >= _NUMBERS_SECONDS
        if _DIGITS.sub("", line) != _DIGITS.sub("", self._line) or renewed:
            complain(line)
            self._line, self._printed_at = line, time.monotonic()

    def _task_now(self) -> Task:
        assert self._bars is not None
        assert self._task is not None
        return self._bars.tasks[self._bars.task_ids.index(self._task)]

    def _end_step(self) -> None:
        """Mark the step as done, or remove its bar if it is not done."""
        if self._bars is None or self._task is None:
            return
        task = self._task_now()
        if task.total is not None and task.completed < task.total:
            self._bars.remove_task(self._task)
        else:
            total = task.total or 1
            self._bars.update(self._task, total=total, completed=total, ended=True)
        self._task = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is not None:
            self.drop()  # a step that failed or was interrupted must not be marked as done
        else:
            self.close()


def rate_of(number: float, seconds: float) -> str:
    """Return how many there are a second, with a decimal where it tells something."""
    rate = number / seconds
    return f"{rate:,.{int(rate < _SLOW)}f}"


def _time(seconds: int) -> str:
    """Return a time as `h:mm:ss`, as the bars show it."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _make_bars(*, keep: bool) -> Progress:
    # 60 ms that a command which does not wait does not spend.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415
    from rich.theme import Theme  # noqa: PLC0415

    class Mark(SpinnerColumn):
        """A spinner until the step has ended: a full bar may be followed by work such as a check."""

        def render(self, task: Task) -> RenderableType:
            return Text("✓", style=_STYLE) if task.fields["ended"] else self.spinner.render(task.get_time())

    class Remaining(TimeRemainingColumn):
        """The time that is left of a download or a job. Other work has none, and what has ended needs none."""

        def render(self, task: Task) -> Text:
            return super().render(task) if task.fields["counted"] and not task.finished else Text()

    return Progress(
        Mark(style=_STYLE),
        # The words go over several lines on a narrow terminal, and no figure is cut off.
        TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
        BarColumn(bar_width=_BAR, style="dim", complete_style=_STYLE, finished_style=_STYLE, pulse_style=_STYLE),
        TextColumn("{task.fields[amount]}", markup=False),
        Remaining(),
        console=Console(stderr=True, theme=Theme({"progress.remaining": "none"})),
        transient=not keep,
    )
