"""Lines on the terminal while an experiment runs."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sthyper.constants import ENV_QUIET
from sthyper.trial import Status, Trial
from sthyper.tuning_status import TuningStatus, metric_name_mode

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["ProgressPrinter"]

_STYLES = {
    "started": "cyan",
    "resumed": "cyan",
    "paused": "yellow",
    "stopped": "magenta",
    "completed": "green",
    "failed": "bold red",
}
_MAX_CONFIG_WIDTH = 100


class ProgressPrinter:
    """Prints a line at each start, resume, pause and end of a trial, and now and then the table of trials.

    Nothing is printed when ``STHYPER_QUIET=1``, or when ``stream`` is not given and stdout is no terminal.

    Args:
        print_update_interval: Seconds between two tables.
        metric_names: Metrics of the scheduler; all of them are shown, the best value is that of the first.
        mode: ``"min"`` or ``"max"``, or a list with a mode for each metric.
        stream: Where to print; default stdout. Lines are coloured if it is a terminal.
        resource_attr: Name of the resource in reports, such as ``"epoch"``; shown if it is given.
        hyperparameters: Entries of the configuration that are shown; default all.
        clock: Returns the seconds of the experiment; default counts from the construction.

    Raises:
        ValueError: If ``print_update_interval`` is negative.
    """

    def __init__(
        self,
        print_update_interval: float,
        metric_names: Sequence[str],
        mode: str | Sequence[str],
        stream: TextIO | None = None,
        resource_attr: str | None = None,
        hyperparameters: Iterable[str] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if not print_update_interval >= 0:
            raise ValueError(f"print_update_interval must be a number of seconds >= 0, got {print_update_interval!r}")
        self.print_update_interval = print_update_interval
        self._metric_names = list(metric_names)
        self._metric, self._mode = metric_name_mode(self._metric_names, mode, 0)
        self._resource_attr = resource_attr
        self._hyperparameters = None if hyperparameters is None else list(hyperparameters)
        start = time.monotonic()
        self._clock = clock or (lambda: time.monotonic() - start)
        self._stream = _usable(sys.stdout if stream is None else stream, given=stream is not None)
        self._console: Console | None = None
        self._next_table = self._clock() + print_update_interval

    # ---- news ----------------------------------------------------------------------------------------

    def trial_started(self, trial: Trial, milestone: float | None = None) -> None:
        """A new trial was started; the scheduler decides about it at ``milestone``."""
        self._trial_line(trial, "started", self._next(milestone), {})

    def trial_resumed(self, trial: Trial, milestone: float | None = None) -> None:
        """A paused trial was resumed; the scheduler decides about it at ``milestone``."""
        self._trial_line(trial, "resumed", self._next(milestone), {})

    def trial_paused(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """A trial was paused after the report ``result``."""
        self._trial_line(trial, "paused", self._at(result), result)

    def trial_ended(
        self,
        trial: Trial,
        status: Status,
        reason: str | None,
        result: Mapping[str, Any],
        stdout_path: str | Path | None,
    ) -> None:
        """A trial ended.

        Args:
            trial: The trial.
            status: ``Completed``, ``Stopped`` or ``Failed``.
            reason: Why, ``None`` if in order.
            result: Its last report, empty if there is none.
            stdout_path: File with what it printed.
        """
        word = status.value.lower()
        detail = self._at(result) + (f": {_one_line(reason)}" if reason else "")
        self._trial_line(trial, word, detail, result, stdout_path)

    def message(self, text: str) -> None:
        """Print a line of another kind."""
        self._print(text)

    def maybe_table(self, status: TuningStatus) -> None:
        """Print the table of trials if it is time again."""
        if self._stream is None or self._clock() < self._next_table:
            return
        self._next_table = self._clock() + self.print_update_interval
        if status.num_trials_started:
            self._print(_crop(status.table(), self._width()), stamp=False)
        self._print(status.summary() + self._best_text(status))

    def finish(self, status: TuningStatus) -> None:
        """Print the summary and the best value at the end."""
        best = status.best(self._metric, self._mode)
        self._print(status.summary())
        if best is not None:
            config = _pairs(self._shown(status.trial(best[0]).config))
            self._print(f"best {self._metric} {_number(best[1])} in trial {best[0]}   {config}".rstrip())

    # ---- lines ---------------------------------------------------------------------------------------

    def _trial_line(
        self,
        trial: Trial,
        word: str,
        detail: str,
        result: Mapping[str, Any],
        path: str | Path | None = None,
    ) -> None:
        if self._stream is None:
            return
        parts = [f"trial {trial.trial_id} {word}{detail}"]
        metrics = [f"{name} {_number(result[name])}" for name in self._metric_names if name in result]
        parts.append("  ".join(metrics))
        config = _pairs(self._shown(trial.config))
        parts.append(config if len(config) <= _MAX_CONFIG_WIDTH else config[: _MAX_CONFIG_WIDTH - 1] + "…")
        if path is not None:
            parts.append(_short_path(path))
        self._print("   ".join(filter(None, parts)), _STYLES.get(word, ""), word)

    def _shown(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if self._hyperparameters is None:
            return dict(config)
        return {name: config[name] for name in self._hyperparameters if name in config}

    def _next(self, milestone: float | None) -> str:
        if milestone is None:
            return ""
        return f", next decision at {self._resource_attr or 'resource'} {_number(milestone)}"

    def _at(self, result: Mapping[str, Any]) -> str:
        name = self._resource_attr
        return f" at {name} {_number(result[name])}" if name is not None and name in result else ""

    def _best_text(self, status: TuningStatus) -> str:
        best = status.best(self._metric, self._mode)
        return "" if best is None else f", best {self._metric} {_number(best[1])} (trial {best[0]})"

    def _width(self) -> int:
        return shutil.get_terminal_size((120, 24)).columns

    def _print(self, text: str, style: str = "", word: str = "", stamp: bool = True) -> None:
        if self._stream is None:
            return
        if stamp:
            text = f"[{self._clock():7.1f}s] {text}"
        try:
            if style and self._stream.isatty():
                self._print_styled(text, style, word)
            else:
                print(text, file=self._stream, flush=True)
        except (OSError, ValueError):
            self._stream = None  # the reader has gone; the experiment goes on

    def _print_styled(self, text: str, style: str, word: str) -> None:
        from rich.console import Console
        from rich.text import Text

        if self._console is None:
            self._console = Console(file=self._stream, highlight=False, soft_wrap=True)
        line = Text(text)
        start = text.find(f" {word}") + 1
        line.stylize(style, start, start + len(word))
        self._console.print(line)


def _usable(stream: TextIO | None, given: bool) -> TextIO | None:
    if stream is None or os.environ.get(ENV_QUIET) == "1":
        return None
    return stream if given or stream.isatty() else None


def _pairs(config: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_number(value)}" for name, value in config.items())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _crop(text: str, width: int) -> str:
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in text.splitlines())


def _short_path(path: str | Path) -> str:
    """Return the path below the working directory or the home folder, whichever is shorter, or in full."""
    full = os.path.abspath(path)
    home = os.path.expanduser("~") + os.sep
    shown = [full, f"~{os.sep}{full.removeprefix(home)}"] if full.startswith(home) else [full]
    here = os.getcwd() + os.sep
    if full.startswith(here):
        shown.append(full.removeprefix(here))
    return min(shown, key=len)
