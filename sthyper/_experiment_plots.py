"""Figures of one experiment; matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthyper._journal_view import TrialSummary
from sthyper.constants import ST_DECISION, ST_TRIAL_ID, ST_TUNER_TIME
from sthyper.errors import MissingExtra
from sthyper.trial import SchedulerDecision, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

__all__ = ["plot_running_best", "plot_trials"]

_Point = tuple[float, float]


@contextmanager
def _axes(figure_path: str | Path | None, figsize: tuple[float, float] | None) -> Iterator[Axes]:
    """Yield axes; afterwards the figure is saved, or shown if there is no path."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "visual") from None
    if figure_path is None:
        import matplotlib.pyplot as plt

        figure: Any = plt.figure(figsize=figsize, layout="constrained")
        yield figure.add_subplot()
        plt.show()
        return
    # Without pyplot: no window, no global state.
    figure = Figure(figsize=figsize, layout="constrained")
    yield figure.add_subplot()
    path = Path(figure_path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def plot_running_best(
    rows: Iterable[Mapping[str, Any]],
    metric: str,
    mode: str,
    title: str,
    figure_path: str | Path | None = None,
    plt_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Draw the best value so far over the time of the experiment.

    Args:
        rows: Reports in the order of arrival.
        metric: Name of the metric.
        mode: ``"min"`` or ``"max"``.
        title: Title of the figure.
        figure_path: Where the figure is saved; ``None`` shows it.
        plt_kwargs: Arguments of ``Axes.step``.
    """
    times: list[float] = []
    values: list[float] = []
    for row in rows:
        value = row.get(metric)
        if not is_finite(value) or ST_TUNER_TIME not in row:
            continue
        assert value is not None
        better = not values or (value < values[-1] if mode == "min" else value > values[-1])
        times.append(row[ST_TUNER_TIME])
        values.append(value if better else values[-1])
    with _axes(figure_path, None) as axes:
        axes.step(times, values, where="post", **(plt_kwargs or {}))
        axes.set(xlabel="wall-clock time (s)", ylabel=f"best {metric}", title=title)
        axes.grid(alpha=0.3)


def plot_trials(
    rows: Iterable[Mapping[str, Any]],
    trials: Mapping[int, TrialSummary],
    metric: str,
    title: str,
    figure_path: str | Path | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw the values of every trial over the time of the experiment.

    Args:
        rows: Reports in the order of arrival.
        trials: Trials by id.
        metric: Name of the metric.
        title: Title of the figure.
        figure_path: Where the figure is saved; ``None`` shows it.
        figsize: Width and height in inches, default 12 x 4.
        ax: Axes to draw on instead of a figure of their own.
    """
    curves: dict[int, list[list[_Point]]] = {}
    ends: dict[str, dict[int, _Point]] = {"stopped": {}, "paused": {}}
    for row in rows:
        trial_id, value = row[ST_TRIAL_ID], row.get(metric)
        if value is None or ST_TUNER_TIME not in row:
            continue
        pieces = curves.setdefault(trial_id, [[]])
        if not is_finite(value):
            pieces.append([])  # a gap
            continue
        point = (row[ST_TUNER_TIME], float(value))
        pieces[-1].append(point)
        decision = row.get(ST_DECISION)
        if decision == SchedulerDecision.STOP:
            ends["stopped"][trial_id] = point
        elif decision == SchedulerDecision.PAUSE and trials[trial_id].status == Status.paused:
            ends["paused"][trial_id] = point
    with _axes(figure_path, figsize or (12.0, 4.0)) if ax is None else nullcontext(ax) as axes:
        from matplotlib.collections import LineCollection

        segments: list[list[_Point]] = []
        colours: list[str] = []
        for trial_id, pieces in curves.items():
            for piece in filter(None, pieces):
                segments.append(piece)
                colours.append(f"C{trial_id % 10}")
        axes.add_collection(LineCollection(segments, colors=colours, linewidths=1.2, alpha=0.7))
        points = [point for piece in segments for point in piece]
        point_colours = [colour for piece, colour in zip(segments, colours, strict=True) for _ in piece]
        axes.scatter(*_columns(points), c=point_colours, s=8, linewidths=0)
        for label, marker, colour in (("stopped", "x", "red"), ("paused", "s", "dimgray")):
            if ends[label]:
                size = 40 if marker == "x" else 16
                axes.scatter(*_columns(ends[label].values()), c=colour, marker=marker, s=size, label=label, zorder=3)
        if ends["stopped"] or ends["paused"]:
            axes.legend()
        axes.autoscale_view()
        axes.set(xlabel="wall-clock time (s)", ylabel=metric, title=title)
        axes.grid(alpha=0.3)


def is_finite(value: object) -> bool:
    """Whether ``value`` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _columns(points: Iterable[_Point]) -> tuple[list[float], list[float]]:
    points = list(points)
    return [x for x, _ in points], [y for _, y in points]
