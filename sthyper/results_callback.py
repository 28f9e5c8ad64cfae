"""Writes the table of results while an experiment runs."""

from __future__ import annotations

import csv
import io
import logging
import os
import threading
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthyper._result_table import ResultTable
from sthyper.constants import (
    ST_DECISION,
    ST_RESULTS_DATAFRAME_FILENAME,
    ST_STATUS,
    ST_TRIAL_ID,
    ST_TUNER_TIME,
)
from sthyper.errors import ExperimentError
from sthyper.trial import Status, Trial
from sthyper.tuner_callback import TunerCallback

if TYPE_CHECKING:
    import pandas as pd

    from sthyper.tuner import Tuner

__all__ = [
    "ExtraResultsComposer",
    "ModelParamsComposer",
    "StoreResultsAndModelParamsCallback",
    "StoreResultsCallback",
]

logger = logging.getLogger(__name__)

_MODEL_PREFIX = "model_"
_SUGGESTION_TIME = "cumulative_get_config_time"
_SHARE_OF_TIME = 10.0
"""A write of a large table is followed by a pause of this many times its duration."""
_SMALL_TABLE = 2000
"""Number of rows up to which a table is written at once; larger ones are written beside the tuner's loop."""


class ExtraResultsComposer(ABC):
    """Makes further columns of the results, for example from the state of the scheduler."""

    @abstractmethod
    def __call__(self, tuner: Tuner) -> dict[str, Any] | None:
        """Return the columns for the report that has just been decided, or ``None`` for none.

        Args:
            tuner: The running tuner.
        """

    def keys(self) -> list[str]:
        """Return the names of the columns, as far as they are known before."""
        return []


class StoreResultsCallback(TunerCallback):
    """Keeps a row for every counted report and writes them to ``results.csv.zip`` in the experiment's folder.

    The file is replaced atomically at most every ``results_update_interval`` seconds, seldom enough that writing
    takes no more than a tenth of the time, and at the end.

    Args:
        add_wallclock_time: Whether rows have ``st_tuner_time``, the seconds of the experiment at the report.
        extra_results_composer: Makes further columns; they are written to the journal too.

    Raises:
        TypeError: If the composer cannot be called.
    """

    def __init__(
        self, add_wallclock_time: bool = True, extra_results_composer: ExtraResultsComposer | None = None
    ) -> None:
        if extra_results_composer is not None and not callable(extra_results_composer):
            raise TypeError(f"extra_results_composer must be an ExtraResultsComposer, got {extra_results_composer!r}")
        self.add_wallclock_time = add_wallclock_time
        self.extra_results_composer = extra_results_composer
        self.csv_file: Path | None = None
        self._tuner: Tuner | None = None
        self._table = ResultTable()
        self._trials: dict[int, Trial] = {}
        self._interval = 0.0
        self._start = 0.0
        self._next_write = 0.0
        self._writer: threading.Thread | None = None

    # ---- hooks ---------------------------------------------------------------------------------------

    def on_tuning_start(self, tuner: Tuner) -> None:
        """Take the folder from the tuner; rows of an earlier experiment are dropped."""
        csv_file = Path(tuner.tuner_path) / ST_RESULTS_DATAFRAME_FILENAME
        if csv_file != self.csv_file:
            self._table = ResultTable()
            self._trials = {}
        self.csv_file = csv_file
        self._tuner = tuner
        self._interval = tuner.results_update_interval
        self._start = time.monotonic()
        self._next_write = self._start + self._interval

    def restore(self, table: ResultTable, trials: Mapping[int, Trial]) -> None:
        """Take over the rows of an experiment that is resumed.

        Args:
            table: Rows, from the journal.
            trials: The trials so far.
        """
        self._table, self._trials = table, dict(trials)

    def on_trial_result(self, trial: Trial, status: Status, result: dict[str, Any], decision: str) -> None:
        """Store a row."""
        row = {**result, ST_DECISION: decision, ST_STATUS: status.value}
        if not self.add_wallclock_time:
            row.pop(ST_TUNER_TIME, None)
        elif ST_TUNER_TIME not in row:
            row[ST_TUNER_TIME] = time.monotonic() - self._start
        row.pop(ST_TRIAL_ID, None)
        if self.extra_results_composer is not None:
            row.update(self._extra_results(self.extra_results_composer))
        self._table.append(trial.trial_id, trial.config, row)
        self._trials[trial.trial_id] = trial
        if self.csv_file is not None and time.monotonic() >= self._next_write:
            self._write_soon()

    def on_tuning_end(self) -> None:
        """Write everything."""
        self.store_results()
        self._tuner = None

    # ---- the table -----------------------------------------------------------------------------------

    def dataframe(self) -> pd.DataFrame:
        """Return all rows so far as a data frame."""
        self._fill_end_reasons()
        return self._table.frame()

    def store_results(self) -> None:
        """Write all rows now; does nothing before the experiment has started.

        A folder that cannot be written is logged: the journal has all of it.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self.csv_file is not None:
            self._fill_end_reasons()
            self._write(len(self._table), self._table.columns())

    def _write_soon(self) -> None:
        if self._writer is not None and self._writer.is_alive():
            return
        self._next_write = time.monotonic() + self._interval
        self._fill_end_reasons()
        size, columns = len(self._table), self._table.columns()
        if size <= _SMALL_TABLE:
            self._write(size, columns)
        else:
            # Seconds for a large table: decisions must not wait for it.
            self._writer = threading.Thread(target=self._write, args=(size, columns), name="sthyper-results")
            self._writer.start()

    def _write(self, size: int, columns: list[str]) -> None:
        assert self.csv_file is not None
        started = time.monotonic()
        try:
            write_csv_zip(self.csv_file, self._table, size, columns, getattr(self._tuner, "check_lock", None))
        except (OSError, ExperimentError) as error:  # the tuner hears of a lost lock itself
            logger.warning("cannot write %s (%s); the journal has the results", self.csv_file, error)
        ended = time.monotonic()
        self._next_write = ended + max(self._interval, _SHARE_OF_TIME * (ended - started))

    def _fill_end_reasons(self) -> None:
        for trial_id, trial in self._trials.items():
            if trial.end_reason is None:
                self._table.end_reasons.pop(trial_id, None)
            else:
                self._table.end_reasons[trial_id] = trial.end_reason

    def _extra_results(self, composer: ExtraResultsComposer) -> dict[str, Any]:
        assert self._tuner is not None
        values = composer(self._tuner)
        if not values:
            return {}
        if not isinstance(values, dict):
            raise TypeError(f"extra_results_composer must return a dict or None, got {values!r}")
        # NumPy scalars become plain numbers, which the journal can hold.
        plain = {str(name): value.item() if hasattr(value, "item") else value for name, value in values.items()}
        if getattr(self._tuner, "journal", None) is not None:
            self._tuner.record_extra(plain)
        return plain


class ModelParamsComposer(ExtraResultsComposer):
    """Columns of the searcher's model: ``model_<parameter>`` and ``cumulative_get_config_time``, in seconds.

    There are none for a searcher without a model, and none, with a warning, for one with several models.
    """

    def __init__(self) -> None:
        self._warned = False

    def __call__(self, tuner: Tuner) -> dict[str, Any] | None:
        """Return the columns as they are when a report has been decided."""
        searcher: Any = getattr(tuner.scheduler, "searcher", None)
        seconds = getattr(searcher, _SUGGESTION_TIME, None)
        if seconds is None:
            return None
        parameters = searcher.model_parameters()
        if any(isinstance(value, dict) for value in parameters.values()):
            if not self._warned:
                self._warned = True
                logger.warning(
                    "%s has several models (%s); their parameters are not written to the results",
                    type(searcher).__name__,
                    ", ".join(parameters),
                )
            return None
        return {f"{_MODEL_PREFIX}{name}": value for name, value in parameters.items()} | {_SUGGESTION_TIME: seconds}

    def keys(self) -> list[str]:
        """Return the name of the column that is always there."""
        return [_SUGGESTION_TIME]


class StoreResultsAndModelParamsCallback(StoreResultsCallback):
    """Keeps a row for every counted report, with the parameters of the searcher's model at that time.

    Each row has ``model_<parameter>`` (none before the model is used first) and ``cumulative_get_config_time``, the
    seconds that the searcher has taken for suggestions so far. With a searcher without a model, or with several of
    them, rows are those of :class:`StoreResultsCallback`.

    Args:
        add_wallclock_time: Whether rows have ``st_tuner_time``, the seconds of the experiment at the report.
    """

    def __init__(self, add_wallclock_time: bool = True) -> None:
        super().__init__(add_wallclock_time, ModelParamsComposer())


def write_csv_zip(
    path: Path, table: ResultTable, size: int, columns: list[str], guard: Callable[[], None] | None = None
) -> None:
    """Write the first ``size`` rows of a table as a zipped CSV file that replaces ``path`` atomically.

    Args:
        path: The file, ``results.csv.zip``; the member inside is called ``results.csv``.
        table: The rows.
        size: Number of rows.
        columns: Names of the columns.
        guard: Called when the file is complete; what it raises keeps it from replacing ``path``.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
            with archive.open(path.stem, "w", force_zip64=True) as member:
                with io.TextIOWrapper(member, encoding="utf-8", newline="") as text:
                    writer = csv.writer(text)
                    writer.writerow(columns)
                    writer.writerows([row.get(name, "") for name in columns] for row in table.rows(limit=size))
        if guard is not None:
            guard()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
