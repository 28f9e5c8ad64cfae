"""Experiments that have run, or still run: find them, read them, plot them."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthyper._experiment_plots import is_finite, plot_running_best, plot_trials
from sthyper._journal_view import ExperimentRecord, TrialSummary, read_experiment
from sthyper._metrics_statistics import KEEPS, ConstraintRecord, none_keeps
from sthyper.constants import (
    RESERVED_PREFIX,
    ST_CHECKPOINTS_DIRNAME,
    ST_JOURNAL_FILENAME,
    ST_METADATA_FILENAME,
    ST_RESULTS_DATAFRAME_FILENAME,
    ST_TRIAL_ID,
    ST_TRIALS_DIRNAME,
    ST_TUNER_CREATION_TIMESTAMP,
)
from sthyper.errors import closest
from sthyper.journal import read_journal
from sthyper.paths import STAMP_PATTERN, experiment_path, trim_base
from sthyper.tuning_status import metric_name_mode

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from sthyper.searchers.bayesopt.constraints import OutcomeConstraint
    from sthyper.tuner import Tuner

__all__ = [
    "ExperimentResult",
    "TrialSummary",
    "experiment_path",
    "get_metadata",
    "list_experiments",
    "load_experiment",
]

logger = logging.getLogger(__name__)

_EXPERIMENT_FILES = (
    ST_JOURNAL_FILENAME,
    ST_METADATA_FILENAME,
    ST_RESULTS_DATAFRAME_FILENAME,
    Path(ST_RESULTS_DATAFRAME_FILENAME).stem,
)


class ExperimentResult:
    """A view of an experiment's record; the record is read when something of it is asked for, and then kept.

    What is missing (no report yet, no metadata) is empty or ``None``, never an error. Values that are not finite are
    never best. If the scheduler had constraints on reported metrics, what is best is sought among the reports that
    keep them; if there are none, a warning is logged, and it is sought among those of which it is not known, or else
    among all. (A report that lacks a constrained metric has the last value that its trial reported.) Call
    :func:`load_experiment` again to see what a running experiment has added.

    Args:
        name: Name of the experiment.
        path: Its folder.
        metadata: Content of ``metadata.json``; ``None`` takes it from the journal.
        tuner: The tuner that ran it, with scheduler, searcher and statistics, if it was asked for.
    """

    def __init__(
        self,
        name: str,
        path: str | Path,
        metadata: dict[str, Any] | None = None,
        tuner: Tuner | None = None,
    ) -> None:
        self.name = name
        self.path = Path(path)
        self._metadata = metadata
        self.tuner = tuner

    @cached_property
    def _record(self) -> ExperimentRecord:
        return read_experiment(self.path)

    # ---- what was run --------------------------------------------------------------------------------

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Metadata, empty if there are none."""
        return self._record.metadata if self._metadata is None else self._metadata

    def metric_names(self) -> list[str]:
        """Return the metrics of the scheduler."""
        return list(self.metadata.get("metric_names") or [])

    def metric_mode(self) -> str | list[str]:
        """Return ``"min"`` or ``"max"``, or one of them for each metric."""
        mode: str | list[str] = self.metadata.get("metric_mode") or "min"
        return mode

    @cached_property
    def outcome_constraints(self) -> tuple[OutcomeConstraint, ...]:
        """The constraints on reported metrics that what is best has to keep."""
        from sthyper.searchers.bayesopt.constraints import OutcomeConstraint

        texts = self.metadata.get("outcome_constraints")
        if texts is None:  # of an earlier version
            return ()
        try:
            return tuple(OutcomeConstraint.from_text(text) for text in texts)
        except (TypeError, ValueError) as error:
            logger.warning("%s: the constraints in its metadata are passed over: %s", self.name, error)
            return ()

    def entrypoint_name(self) -> str | None:
        """Return the name of the training script without its ending."""
        return self.metadata.get("entrypoint")

    def creation_date(self) -> datetime | None:
        """Return the local date and time when the experiment was made."""
        created = self.metadata.get(ST_TUNER_CREATION_TIMESTAMP)
        return None if created is None else datetime.fromtimestamp(created)

    @property
    def trials(self) -> dict[int, TrialSummary]:
        """Trials by id: status, end reason, number of runs, configuration, seed."""
        return self._record.trials

    @property
    def end_reason(self) -> str | None:
        """Why the experiment ended; ``None`` if it runs or was killed."""
        return self._record.end_reason

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row for each counted report: ``trial_id``, what was reported, ``config_*`` and ``st_*`` columns."""
        return self._record.table.frame()

    # ---- the best ------------------------------------------------------------------------------------

    def best_config(self, metric: int | str = 0, by: str = "observed") -> dict[str, Any]:
        """Return the best row: ``trial_id``, what was reported and ``config_*``; empty if nothing was reported.

        Args:
            metric: Name or index of the metric.
            by: ``"observed"``: the row with the best value; ``"model"``: the last row of the trial at whose
                configuration a Gaussian process of all results has the best mean. It is the better choice if the metric
                is noisy; then the best value was mostly luck.

        Raises:
            ValueError: If the metric or ``by`` is unknown, or the record does not have the configuration space that the
                model needs.
        """
        found = self._best(metric)
        if by != "observed":
            found = self._best_by_model(metric, by)
        if found is None:
            return {}
        return {k: v for k, v in self._record.table.row(found[0]).items() if not k.startswith(RESERVED_PREFIX)}

    def _best_by_model(self, metric: int | str, by: str) -> tuple[int, int, float] | None:
        from sthyper.config_space import config_space_from_json_dict
        from sthyper.searchers.bayesopt.best import best_by_model, check_by

        check_by(by)
        text = self.metadata.get("config_space")
        if not isinstance(text, str):
            raise ValueError(f"{self.name}: by='model' needs the configuration space, which the metadata do not have")
        if not self.metric_names() and metric == 0:
            return None
        name, mode = metric_name_mode(self.metric_names(), self.metric_mode(), metric)
        reports: dict[int, list[dict[str, Any]]] = {}
        last: dict[int, int] = {}
        for index, row in enumerate(self._record.table.rows(joined=False)):
            reports.setdefault(row[ST_TRIAL_ID], []).append(row)
            last[row[ST_TRIAL_ID]] = index
        trial_id = best_by_model(
            config_space_from_json_dict(json.loads(text)),
            name,
            mode,
            self.metadata.get("resource_attr"),
            [(k, self.trials[k].config, rows, self.trials[k].status == "Completed") for k, rows in reports.items()],
            self.outcome_constraints,
        )
        return None if trial_id is None else (last[trial_id], trial_id, reports[trial_id][-1][name])

    @property
    def best_value(self) -> float | None:
        """Best finite value of the first metric (the largest with mode ``"max"``); ``None`` if there is none."""
        found = self._best(0)
        return None if found is None else found[2]

    @property
    def best_trial_id(self) -> int | None:
        """Trial with the best finite value of the first metric; ``None`` if there is none."""
        found = self._best(0)
        return None if found is None else found[1]

    @property
    def best_checkpoint(self) -> Path | None:
        """Checkpoint of the best trial: its best one if the trial marked one, else its newest file.

        The mark is by the metric alone: where a trial breaks a constraint at times, it may be of such a time.

        ``None`` if there is no best trial or it has none.
        """
        trial_id = self.best_trial_id
        if trial_id is None:
            return None
        from sthyper.checkpoints import INDEX_NAME, best_checkpoint

        folder = self._checkpoint_folder(trial_id)
        found = best_checkpoint(folder)
        return _newest_file(folder, but=INDEX_NAME) if found is None else found

    def load_best(self, model: Any, map_location: Any = None, **init_args: Any) -> Any:
        """Return a model with the weights of :attr:`best_checkpoint`.

        Args:
            model: A Lightning module class, which is made from the checkpoint by its ``load_from_checkpoint``; or a
                :class:`torch.nn.Module`, which gets the weights: the checkpoint itself or an entry of it (at any depth)
                must be a state dict with the names of the module.
            map_location: Where the weights go, as for :func:`torch.load`; default the CPU.
            **init_args: Arguments of the Lightning module that the checkpoint does not hold.

        Raises:
            FileNotFoundError: If the best trial has no checkpoint.
            TypeError: If ``model`` is neither, or ``init_args`` are given for a module.
            ValueError: If no trial has reported a finite value, the checkpoint cannot be read, or no weights in it fit
                the module.
        """
        from sthyper._load_model import load_model

        return load_model(self._existing_checkpoint(), model, map_location, init_args)

    def _existing_checkpoint(self) -> Path:
        trial_id = self.best_trial_id
        if trial_id is None:
            names = self.metric_names()
            metric = repr(names[0]) if names else "metric"
            raise ValueError(f"{self.name}: no trial has reported a finite {metric}, so that there is no best one")
        path = self.best_checkpoint
        if path is None:
            raise FileNotFoundError(
                f"{self.name}: trial {trial_id}, the best, has no checkpoint in {self._checkpoint_folder(trial_id)}; "
                "save one there in training (Reporter().checkpoint_dir, sthyper.utils, or TuneReportCallback)"
            )
        return path

    def _checkpoint_folder(self, trial_id: int) -> Path:
        root = Path(self.metadata.get("trial_backend_path") or self.path)
        return root / ST_TRIALS_DIRNAME / str(trial_id) / ST_CHECKPOINTS_DIRNAME

    def _best(self, metric: int | str) -> tuple[int, int, float] | None:
        """Return row number, trial and value of the best row."""
        if not self.metric_names() and metric == 0:
            return None
        name, mode = metric_name_mode(self.metric_names(), self.metric_mode(), metric)
        if name not in self._best_rows:
            found: tuple[int, int, float] | None = None
            record, least = ConstraintRecord(self.outcome_constraints), (KEEPS, 0.0)
            for index, row in enumerate(self._record.table.rows(joined=False)):
                rank = record.add(row[ST_TRIAL_ID], row)
                value = row.get(name)
                if is_finite(value):
                    assert value is not None
                    key = (rank, value if mode == "min" else -value)
                    if found is None or key < least:
                        found, least = (index, row[ST_TRIAL_ID], value), key
            self._best_rows[name] = found
            if found is not None and least[0] != KEEPS:
                logger.warning("%s: %s", self.name, none_keeps(self.outcome_constraints, name))
        return self._best_rows[name]

    @cached_property
    def _best_rows(self) -> dict[str, tuple[int, int, float] | None]:
        return {}

    # ---- figures and text ----------------------------------------------------------------------------

    def plot(self, metric_to_plot: int | str = 0, figure_path: str | Path | None = None, **plt_kwargs: Any) -> None:
        """Draw the best value so far over time.

        Args:
            metric_to_plot: Name or index of the metric.
            figure_path: File for the figure; ``None`` shows it.
            **plt_kwargs: Arguments of ``matplotlib.axes.Axes.step``.

        Raises:
            MissingExtra: If matplotlib is not installed.
            ValueError: If the metric is unknown.
        """
        name, mode = metric_name_mode(self.metric_names(), self.metric_mode(), metric_to_plot)
        rows = self._record.table.rows(joined=False)
        plot_running_best(rows, name, mode, self.name, figure_path, plt_kwargs)

    def plot_trials_over_time(
        self,
        metric_to_plot: int | str = 0,
        figure_path: str | Path | None = None,
        figsize: tuple[float, float] | None = None,
        ax: Axes | None = None,
    ) -> None:
        """Draw the curve of every trial over time: a red x where it was stopped, a square where it stays paused.

        Args:
            metric_to_plot: Name or index of the metric.
            figure_path: File for the figure; ``None`` shows it.
            figsize: Width and height in inches; default 12 x 4.
            ax: Axes of matplotlib to draw on; nothing is saved or shown then.

        Raises:
            MissingExtra: If matplotlib is not installed.
            ValueError: If the metric is unknown, or ``ax`` is given with another argument for the figure.
        """
        if ax is not None and (figure_path is not None or figsize is not None):
            raise ValueError("ax draws on a figure of yours: figure_path and figsize have no effect with it")
        name, _ = metric_name_mode(self.metric_names(), self.metric_mode(), metric_to_plot)
        rows = self._record.table.rows(joined=False)
        plot_trials(rows, self.trials, name, self.name, figure_path, figsize, ax)

    def __str__(self) -> str:
        counts = Counter(trial.status.value for trial in self.trials.values())
        detail = ", ".join(f"{number} {status}" for status, number in counts.most_common())
        text = f"Experiment {self.name}: {len(self._record.table)} reports of {len(self.trials)} trials"
        if detail:
            text += f" ({detail})"
        if self.best_value is not None:
            text += f"; best {self.metric_names()[0]} {self.best_value:.6g} in trial {self.best_trial_id}"
        return f"{text}\n{self.path}"

    def __repr__(self) -> str:
        return f"ExperimentResult(name={self.name!r}, path={str(self.path)!r})"


def load_experiment(
    tuner_name: str | Path, local_path: str | Path | None = None, load_tuner: bool = False
) -> ExperimentResult:
    """Load an experiment, finished or running.

    Args:
        tuner_name: Name of the experiment; its name without the time stamp, for the newest of that name; or the path
            of its folder.
        local_path: Folder that holds the experiments; default ``$STHYPER_FOLDER``, else ``~/sthyper``.
        load_tuner: Whether :attr:`ExperimentResult.tuner` is loaded, too: :meth:`sthyper.Tuner.load` does it, and takes
            backends and schedulers that cannot be made again from the record.

    Raises:
        ExperimentError: If the tuner cannot be loaded.
        FileNotFoundError: If there is no such experiment; the message names the closest one.
        TypeError: If ``load_tuner`` is no bool, or ``tuner_name`` neither a name nor a path.
    """
    if not isinstance(load_tuner, bool):
        raise TypeError(f"load_tuner must be True or False, got {load_tuner!r}")
    folder = _find(tuner_name, experiment_path(local_path=local_path))
    tuner = None
    if load_tuner:
        from sthyper.tuner import Tuner

        tuner = Tuner.load(folder)
    return ExperimentResult(folder.name, folder, _read_metadata(folder / ST_METADATA_FILENAME), tuner)


def get_metadata(
    path_filter: Callable[[str], bool] | None = None, root: str | Path | None = None
) -> dict[str, dict[str, Any]]:
    """Return the metadata of all experiments below a folder, by name; each with its folder as ``"path"``.

    A name that occurs twice is replaced by the path below the folder.

    Args:
        path_filter: Takes the path of a ``metadata.json`` and says whether it is read.
        root: The folder; default ``$STHYPER_FOLDER``, else ``~/sthyper``.
    """
    top = experiment_path(local_path=root)
    found: dict[str, dict[str, Any]] = {}
    for folder, metadata in _all_metadata(path_filter, top):
        name = folder.name if folder.name not in found else folder.relative_to(top).as_posix()
        found[name] = {**metadata, "path": str(folder)}
    return found


def list_experiments(
    path_filter: Callable[[str], bool] | None = None,
    experiment_filter: Callable[[ExperimentResult], bool] | None = None,
    root: str | Path | None = None,
) -> list[ExperimentResult]:
    """Return the experiments below a folder that have metadata and at least one report, newest first.

    Args:
        path_filter: Takes the path of a ``metadata.json`` and says whether the experiment is looked at; fast.
        experiment_filter: Takes an experiment and says whether it is returned.
        root: The folder; default ``$STHYPER_FOLDER``, else ``~/sthyper``.
    """
    found = []
    for folder, metadata in _all_metadata(path_filter, experiment_path(local_path=root)):
        experiment = ExperimentResult(folder.name, folder, metadata)
        if _has_results(folder) and (experiment_filter is None or experiment_filter(experiment)):
            found.append((metadata[ST_TUNER_CREATION_TIMESTAMP], experiment))
    found.sort(key=lambda pair: pair[0], reverse=True)
    return [experiment for _, experiment in found]


def _find(tuner_name: str | Path, root: Path) -> Path:
    if not isinstance(tuner_name, str | os.PathLike):
        raise TypeError(f"tuner_name must be the name or the path of an experiment, got {tuner_name!r}")
    name = os.fspath(tuner_name)
    if not name:
        raise ValueError("tuner_name must not be empty")
    as_path, below_root = Path(name).expanduser(), root / name
    candidates = [as_path, below_root] if os.sep in name else [below_root, as_path]
    if not Path(os.path.normpath(below_root)).is_relative_to(os.path.normpath(root)) or name in (".", ".."):
        candidates = [as_path]  # a path that leads out of the folder counts from here, as everywhere
    for folder in candidates:
        if _is_experiment(folder):
            return folder
    last = below_root.name
    bases = sorted({last, *(trim_base(base) for base in (last, last.replace("_", "-")))})
    stamped = re.compile(rf"(?:{'|'.join(map(re.escape, bases))})-({STAMP_PATTERN})\Z")
    known: list[str] = []
    for parent in [candidate.parent for candidate in candidates] if os.sep in name else [root]:
        here = [each.name for each in parent.iterdir() if _is_experiment(each)] if parent.is_dir() else []
        matches = [(match.group(1), each) for each in here if (match := stamped.match(each))]
        if matches:
            return parent / max(matches)[1]
        known += here
    bare = {re.sub(rf"-{STAMP_PATTERN}\Z", "", each) for each in known}
    hint = closest(last, sorted(known)) or closest(last, sorted(bare))
    raise FileNotFoundError(f"no experiment {name!r} in {below_root.parent}{hint}; it holds {len(known)} experiments")


def _is_experiment(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _EXPERIMENT_FILES)


def _all_metadata(path_filter: Callable[[str], bool] | None, root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for parent, names, files in os.walk(root):
        if ST_METADATA_FILENAME in files:
            names.clear()  # the trials' folders may be many
            file = Path(parent, ST_METADATA_FILENAME)
            metadata = _read_metadata(file) if path_filter is None or path_filter(str(file)) else None
            if metadata is not None and ST_TUNER_CREATION_TIMESTAMP in metadata:
                yield file.parent, metadata
        names.sort()


def _read_metadata(file: Path) -> dict[str, Any] | None:
    try:
        metadata = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s is passed over: %s", file, error)
        return None
    return metadata if isinstance(metadata, dict) else None


def _has_results(folder: Path) -> bool:
    if not (folder / ST_JOURNAL_FILENAME).is_file():
        return any((folder / name).is_file() for name in _EXPERIMENT_FILES[2:])
    try:
        return any(
            line.get("type") == "decision" and line.get("counted") for line in read_journal(folder, strict=False)
        )
    except ValueError as error:
        logger.warning("%s is passed over: %s", folder, error)
        return False


def _newest_file(folder: Path, but: str) -> Path | None:
    """Return the file that was written last; temporary and hidden files do not count, older copies count less.

    The names that a script gives to files of its own say nothing about their order. Where one of sthyper's ways to
    save is used, nothing depends on the times of files.

    Args:
        folder: Where to look, subfolders included.
        but: Name of a file that does not count.
    """
    newest: tuple[bool, int, Path] | None = None
    for parent, names, files in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if name == but or name.startswith(".") or path.suffix in (".tmp", ".part"):
                continue
            try:
                key = (path.suffix != ".previous", path.stat().st_mtime_ns, path)
            except FileNotFoundError:  # replaced by a running trial meanwhile
                continue
            newest = key if newest is None else max(newest, key)
    return None if newest is None else newest[2]
