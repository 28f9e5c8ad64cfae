"""Figures and animations of schedules; matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthyper.errors import MissingExtra, closest
from sthyper.selftuning.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["animate_schedules", "plot_schedules"]

_X = {"step": "training steps", "epoch": "epoch", "time": "time (s)"}
_COLUMNS = 3
_PANEL = (4.0, 2.8)
_WIDE = 30.0

Schedules = Schedule | Mapping[str, Schedule] | Sequence[Schedule]
_Curve = tuple[list[float], list[float]]


def plot_schedules(
    schedules: Schedules,
    path: str | Path | None = None,
    *,
    names: Sequence[str] | None = None,
    x: str = "epoch",
    scales: bool = True,
    losses: bool = True,
    title: str | None = None,
) -> None:
    """Draw the trajectories of one or several runs: a panel for each hyperparameter, one for scales, one for losses.

    Several runs that began at different values show whether tuning finds the same schedule from all of them.

    Args:
        schedules: A schedule, several, or several by label.
        path: Where the figure is saved (``.png``, ``.pdf``, ``.svg``); its folder is made. ``None`` shows it.
        names: The hyperparameters; default all.
        x: ``"step"``, ``"epoch"`` or ``"time"``.
        scales: Whether to draw scales, if they were recorded.
        losses: Whether to draw losses by epoch, if they were recorded.
        title: Title of the figure.

    Raises:
        MissingExtra: Without matplotlib.
        ValueError: If a schedule is empty or lacks steps for ``x="step"``, or a name or ``x`` is unknown.
    """
    runs = _labelled(schedules)
    panels = _panels(runs, names, x, scales, losses)
    if path is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise MissingExtra("matplotlib", "visual") from None
        _draw(plt.figure(), panels, x, title, len(runs))
        plt.show()
        return
    target = Path(path).expanduser()
    figure = _figure()
    _draw(figure, panels, x, title, len(runs))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)


def animate_schedules(
    schedules: Schedules,
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    x: str = "epoch",
    scales: bool = True,
    losses: bool = True,
    title: str | None = None,
    frames: int = 60,
    fps: int = 12,
) -> Path:
    """Write an animation in which the trajectories grow.

    Args:
        schedules: A schedule, several, or several by label.
        path: Where it is saved; its folder is made. ``.gif`` by Pillow; ``.mp4`` needs ffmpeg, without it a GIF of the
            same name is written, with a warning.
        names: The hyperparameters; default all.
        x: ``"step"``, ``"epoch"`` or ``"time"``.
        scales: Whether to draw scales, if they were recorded.
        losses: Whether to draw losses by epoch, if they were recorded.
        title: Title of the figure.
        frames: Number of frames.
        fps: Frames a second.

    Returns:
        The file that was written.

    Raises:
        MissingExtra: Without matplotlib.
        ValueError: See :func:`plot_schedules`; also for another ending of ``path``, and if ``frames`` or ``fps`` is
            not positive.
    """
    target = Path(path).expanduser()
    if target.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"path must end in .gif or .mp4, got {str(path)!r}")
    for argument, number in (("frames", frames), ("fps", fps)):
        if number < 1:
            raise ValueError(f"{argument} must be at least 1, got {number!r}")
    runs = _labelled(schedules)
    panels = _panels(runs, names, x, scales, losses)
    figure = _figure()
    from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, FuncAnimation, PillowWriter

    lines = _draw(figure, panels, x, title, len(runs))
    first = min(xs[0] for _, (xs, _) in lines)
    last = max(xs[-1] for _, (xs, _) in lines)

    def show(frame: int) -> list[Any]:
        reached = first + (last - first) * (frame + 1) / frames
        for line, (xs, ys) in lines:
            n = sum(1 for position in xs if position <= reached)
            line.set_data(xs[:n], ys[:n])
        return [line for line, _ in lines]

    writer: AbstractMovieWriter
    if target.suffix.lower() == ".mp4" and FFMpegWriter.isAvailable():
        writer = FFMpegWriter(fps=fps)
    else:
        if target.suffix.lower() == ".mp4":
            target = target.with_suffix(".gif")
            warnings.warn(f"ffmpeg was not found: {target} is written instead", RuntimeWarning, stacklevel=2)
        writer = PillowWriter(fps=fps)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Placed once: to do so for each frame takes most of the time.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    FuncAnimation(figure, show, frames=frames, init_func=lambda: [line for line, _ in lines]).save(target, writer)
    return target


class _Panel:
    """Curves of one part of a figure."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.curves: list[tuple[str, int, str, _Curve]] = []

    def add(self, label: str, colour: int, style: str, xs: Any, ys: Any) -> None:
        """Add a curve without its gaps; one without points is left out."""
        points = [(a, b) for a, b in zip(xs.tolist(), ys.tolist(), strict=True) if math.isfinite(a + b)]
        if points:
            self.curves.append((label, colour, style, ([a for a, _ in points], [b for _, b in points])))

    def is_logarithmic(self) -> bool:
        numbers = [number for *_, (_, ys) in self.curves for number in ys]
        return min(numbers) > 0 and max(numbers) >= _WIDE * min(numbers)


def _labelled(schedules: Schedules) -> dict[str, Schedule]:
    if isinstance(schedules, Schedule):
        schedules = [schedules]
    if not isinstance(schedules, Mapping):
        schedules = {f"run {i}" if len(schedules) > 1 else "": run for i, run in enumerate(schedules, 1)}
    if not schedules:
        raise ValueError("schedules must hold at least one schedule")
    for label, run in schedules.items():
        if not isinstance(run, Schedule):
            raise TypeError(f"schedules must be Schedule objects, got {run!r}")
        if not run:
            which = f"the schedule {label!r}" if label else "the schedule"
            raise ValueError(f"{which} is empty: nothing was recorded")
    return dict(schedules)


def _panels(
    runs: Mapping[str, Schedule], names: Sequence[str] | None, x: str, scales: bool, losses: bool
) -> list[_Panel]:
    if x not in _X:
        raise ValueError(f"x must be one of {list(_X)}, got {x!r}{closest(x, _X)}")
    for label, run in runs.items():
        if bool(run.column(x).isnan().all()):
            which = f"the schedule {label!r}" if label else "the schedule"
            raise ValueError(f"x={x!r}: {which} knows no {x}; choose another one of {list(_X)}")
    known = list(dict.fromkeys(name for run in runs.values() for name in run.names))
    wanted = known if names is None else list(names)
    for name in wanted:
        if name not in known:
            raise ValueError(f"names: there is no hyperparameter {name!r}{closest(name, known)}; known are {known}")
    result = []
    for name in wanted:
        panel = _Panel(name)
        for i, (label, run) in enumerate(runs.items()):
            if name in run.names:
                panel.add(label, i, "-", run.column(x), run.values(name))
        result.append(panel)
    if scales:
        panel = _Panel("scale")
        for i, (label, run) in enumerate(runs.items()):
            for j, name in enumerate(name for name in wanted if name in run.names):
                # In a figure of one run colours tell hyperparameters apart, else runs.
                text = f"{label} {name}".strip()
                panel.add(
                    text, i if len(runs) > 1 else j, ("-", "--", ":", "-.")[j % 4], run.column(x), run.scales(name)
                )
        result.append(panel)
    if losses:
        panel = _Panel("loss" if len(runs) == 1 else "loss (dashed: training)")
        for i, (label, run) in enumerate(runs.items()):
            for what, style, j in (("train_loss", "--", 0), ("val_loss", "-", 1)):
                text = f"{label} {'training' if j == 0 else 'validation'}".strip()
                panel.add(text, i if len(runs) > 1 else j, style, run.column(x, "epoch"), run.column(what, "epoch"))
        result.append(panel)
    return [panel for panel in result if panel.curves]


def _figure() -> Figure:
    """Return a figure without pyplot: no window, no global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "visual") from None
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure


def _draw(figure: Figure, panels: list[_Panel], x: str, title: str | None, n_runs: int) -> list[tuple[Any, _Curve]]:
    """Draw all panels and return their lines with the points of each."""
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure.set_layout_engine("constrained")
    figure.set_size_inches(_PANEL[0] * columns, _PANEL[1] * rows)
    if title is not None:
        figure.suptitle(title)
    lines: list[tuple[Any, _Curve]] = []
    for i, panel in enumerate(panels, 1):
        axes: Axes = figure.add_subplot(rows, columns, i)
        for label, colour, style, (xs, ys) in panel.curves:
            marker = "o" if len(xs) == 1 else ""
            (line,) = axes.plot(xs, ys, style, color=f"C{colour % 10}", marker=marker, label=label, linewidth=1.4)
            lines.append((line, (xs, ys)))
        axes.set(xlabel=_X[x], ylabel=panel.label)
        if panel.is_logarithmic():
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        if len(panel.curves) > 1 and (i == 1 or n_runs == 1):
            axes.legend(fontsize="x-small")
    return lines
