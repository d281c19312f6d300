"""One line of progress for a task: a live bar with an estimate on a terminal, a line now and then elsewhere."""

import os
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def line_console(**how) -> Console:
    """A console that prints lines as they are: no markup, no colours of numbers, no breaks. how: Console's own."""
    return Console(markup=False, highlight=False, soft_wrap=True, **how)


class Reporter:
    """`report(done, total, text)` as work proceeds; a context manager. console: `line_console`'s.

    On a terminal: bar, count, elapsed and remaining time. Otherwise (logs, CI) a plain line at most every `every`
    seconds, with the same estimate. after: seconds in which nothing is shown, for work that is mostly over by then.
    """

    def __init__(self, title: str, console: Console, every: float = 30.0, after: float = 0.0):
        self.title, self.console, self.every, self.after = title, console, every, after
        self.first: tuple[float, float] | None = None  # time and count of the first report: resumed work has a start
        self.last, self.began = 0.0, time.monotonic()
        self.bar = None
        if console.is_terminal:
            text, left = TextColumn("{task.description}"), TextColumn("left")
            columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), left, TimeRemainingColumn())
            self.bar = Progress(*columns, console=console, transient=True, speed_estimate_period=60)

    def __enter__(self):
        if self.bar:
            self.task = self.bar.add_task(self.title, total=None)
            if not self.after:
                self.bar.start()
        return self

    def __exit__(self, *_):
        if self.bar:
            self.bar.stop()

    def __call__(self, done: float, total: float, text: str = "") -> None:
        if time.monotonic() - self.began < self.after:
            return
        if self.bar:
            if self.after:
                self.bar.start()  # does nothing the second time
            self.bar.update(self.task, completed=done, total=total, description=f"{self.title}  {text}")
            return
        now = time.monotonic()
        self.first = self.first or (now, done)
        if now - self.last < self.every and done < total:
            return
        self.last = now
        spent, count = now - self.first[0], done - self.first[1]
        left = f", about {spent / count * (total - done):.0f} s left" if count > 0 and done < total else ""
        self.console.print(f"{self.title}  {done:g}/{total:g}  {text}{left}")


def patient_reporter(title: str) -> Reporter:
    """A Reporter that is silent for 3 seconds: of a check that usually takes no time."""
    return Reporter(title, line_console(stderr=True, quiet=os.environ.get("RANK", "0") != "0"), after=3.0)
