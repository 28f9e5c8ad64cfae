"""The one thing that a training script needs: report metrics, get a decision.

Imports neither torch nor numpy: a script pays some milliseconds for it. The wire protocol is described in
``docs/protocol.md``.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sthyper._connection import Connection, TrialExit
from sthyper.constants import (
    ENV_CHANNEL,
    ENV_CHECKPOINT_DIR,
    ENV_COST_PER_HOUR,
    ENV_LAST_RESOURCE,
    ENV_OBJECTIVE,
    ENV_RUN,
    ENV_SEED,
    ENV_TRIAL_DIR,
    ENV_TRIAL_ID,
    MAX_METRIC_DEPTH,
    MAX_REPORT_BYTES,
    REPORT_TAG,
    RESERVED_PREFIX,
    ST_CONFIG_FILENAME,
    ST_WORKER_COST,
    ST_WORKER_ITER,
    ST_WORKER_TIME,
    ST_WORKER_TIMESTAMP,
)

__all__ = ["Reporter", "TrialExit", "check_metrics", "decode_floats", "encode_floats", "metrics_fault", "retrieve"]

_CONTINUE = "CONTINUE"
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_LARGEST = int(sys.float_info.max)

# Set while a trial runs inside the tuner's own process (``launch="inline"``): answers reports without a socket.
_inline_answer: Callable[[dict[str, Any]], str] | None = None
# ``time.monotonic()`` at which the tuned function of this process was called; a Reporter may be older than that.
_trial_start = 0.0
# Reports of this process so far, of all Reporters.
_sent = 0


class Reporter:
    """Reports metrics to the tuner and returns its decision.

    Run by hand, outside an experiment, a report is printed on stdout and the decision is CONTINUE, so every
    script runs alone too. May be used from several threads and from child processes.

    Args:
        add_time: Whether to add ``st_worker_time``, the seconds since this object was made.
        add_cost: Whether to add ``st_worker_cost`` = seconds / 3600 x ``cost_per_hour`` where the latter is known
            (needs ``add_time``).
        on_stop: ``"exit"``: an answer STOP or PAUSE raises :class:`TrialExit`, so that ``finally`` blocks run and
            loggers flush; ``"return"``: the call returns the decision and the caller ends the training.
        cost_per_hour: Price of one hour of this trial; default is the backend's ``cost_per_hour``.

    Raises:
        ValueError: For an unknown ``on_stop`` or a ``cost_per_hour`` that is negative or not finite.

    Example::

        report = Reporter()
        for epoch in range(1, epochs + 1):
            ...
            report(epoch=epoch, accuracy=accuracy)
    """

    def __init__(
        self,
        add_time: bool = True,
        add_cost: bool = True,
        on_stop: str = "exit",
        cost_per_hour: float | None = None,
    ) -> None:
        if on_stop not in ("exit", "return"):
            raise ValueError(f"on_stop must be 'exit' or 'return', got {on_stop!r}")
        if cost_per_hour is not None and not 0 <= cost_per_hour < math.inf:
            raise ValueError(f"cost_per_hour must be a finite number >= 0, got {cost_per_hour!r}")
        self._own_cost = cost_per_hour is not None
        self.add_time = add_time
        self.add_cost = add_cost
        self.on_stop = on_stop
        self.cost_per_hour = cost_per_hour if self._own_cost else _cost_per_hour()
        self._start = time.monotonic()
        self._iter = 0
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    # ---- reports -------------------------------------------------------------------------------------

    def __call__(self, **metrics: Any) -> str:
        """Report metrics and return the decision ``"CONTINUE"``, ``"STOP"`` or ``"PAUSE"``.

        Args:
            **metrics: Name -> number, string, bool, or a list or dict of these; NumPy scalars and tensors with one
                element are taken as their value. Names may hold ``/``, ``.`` and ``-``
                (``report(**{"val/acc": 0.9})``) but not start with ``st_``.

        Raises:
            TypeError: For a value that cannot be sent as JSON.
            ValueError: For no metrics, a ``None``, a reserved name, or a report of 50 000 bytes or more.
            TrialExit: If the answer is STOP or PAUSE and ``on_stop="exit"``.
        """
        return self._deliver(check_metrics(metrics))

    def _deliver(self, record: dict[str, Any]) -> str:
        global _sent
        with self._lock:
            if self._start < _trial_start:
                # Made by the tuner's process, or in an earlier trial inline.
                self._start, self._iter = _trial_start, 0
                self.cost_per_hour = self.cost_per_hour if self._own_cost else _cost_per_hour()
            record[ST_WORKER_TIMESTAMP] = time.time()
            record[ST_WORKER_ITER] = self._iter
            if self.add_time:
                seconds = time.monotonic() - self._start
                record[ST_WORKER_TIME] = seconds
                if self.add_cost and self.cost_per_hour is not None:
                    record[ST_WORKER_COST] = seconds * self.cost_per_hour / 3600
            text = json.dumps(encode_floats(record), allow_nan=False)
            if len(text.encode()) >= MAX_REPORT_BYTES:
                raise ValueError(
                    f"the report has {len(text.encode())} bytes, allowed are fewer than {MAX_REPORT_BYTES}; "
                    "report numbers, and write large values to a file in the trial's folder"
                )
            self._iter += 1
            _sent += 1
            decision = self._send(record, text)
        if decision != _CONTINUE and self.on_stop == "exit":
            raise TrialExit(decision)
        return decision

    def _send(self, record: dict[str, Any], text: str) -> str:
        if _inline_answer is not None:
            return _inline_answer(decode_floats(json.loads(text)))
        if not os.environ.get(ENV_CHANNEL):
            print(f"[{REPORT_TAG}]: {text}", flush=True)
            return _CONTINUE
        return self._connected().report(text)

    def send_rank(self, rank: int, world_size: int) -> None:
        """Tell the tuner that this process is rank ``rank`` of ``world_size``; its connection stays open."""
        if os.environ.get(ENV_CHANNEL):
            with self._lock:
                self._connected().post({"type": "rank", "rank": int(rank), "world_size": int(world_size)})

    def bye(self, ok: bool, reason: str | None = None) -> None:
        """Announce the end of this process; ``ok=False`` marks the trial as failed whatever its exit code.

        Once ``False``, it stays ``False``. At the exit of the process ``True`` is sent by itself.

        Args:
            ok: Whether the process ends in order.
            reason: The trial's end reason where it does not, for example ``"killed"`` after a SIGTERM.
        """
        if os.environ.get(ENV_CHANNEL):
            with self._lock:
                self._connected().bye(ok, reason)

    def close(self) -> None:
        """Close the connection after a ``bye``; a later report opens a new one."""
        with self._lock:
            if self._connection is not None:
                self._connection.leave()
                self._connection = None

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.pid != os.getpid():
            # After a fork the socket belongs to the parent.
            self._connection = Connection(os.environ)
        return self._connection

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_connection", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connection = None
        self._lock = threading.Lock()

    # ---- about the trial -----------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether this process runs as a trial of an experiment."""
        return _inline_answer is not None or bool(os.environ.get(ENV_CHANNEL))

    @property
    def config(self) -> dict[str, Any]:
        """The trial's configuration, from the file that every process of the trial can read; ``{}`` by hand."""
        folder = self.trial_dir
        if folder is None:
            return {}
        with open(os.path.join(folder, ST_CONFIG_FILENAME)) as file:
            config: dict[str, Any] = json.load(file)
        return config

    @property
    def trial_id(self) -> int | None:
        """Id of the trial, ``None`` by hand."""
        value = os.environ.get(ENV_TRIAL_ID)
        return int(value) if value else None

    @property
    def run(self) -> int:
        """0 in the first run of a trial, one more after every resume or restart."""
        return int(os.environ.get(ENV_RUN) or 0)

    @property
    def trial_dir(self) -> str | None:
        """Folder of the trial, ``None`` by hand."""
        return os.environ.get(ENV_TRIAL_DIR) or None

    @property
    def checkpoint_dir(self) -> str | None:
        """Folder for the trial's checkpoints, which is made; ``None`` by hand."""
        folder = os.environ.get(ENV_CHECKPOINT_DIR) or None
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
        return folder

    @property
    def last_resource(self) -> float | None:
        """Resource of the last recorded report of an earlier run.

        ``None`` if there was none; it may be 0 if an earlier run ended before its first report.
        """
        value = os.environ.get(ENV_LAST_RESOURCE)
        if not value:
            return None
        number = float(value)
        return int(number) if number.is_integer() else number

    @property
    def seed(self) -> int | None:
        """The trial's own seed, ``None`` by hand."""
        value = os.environ.get(ENV_SEED)
        return int(value) if value else None

    @property
    def objective(self) -> dict[str, Any] | None:
        """``{"metric", "mode", "resource_attr", "max_resource"}`` of the scheduler, ``None`` if there is none."""
        value = os.environ.get(ENV_OBJECTIVE)
        return json.loads(value) if value else None

    def seed_everything(self) -> int | None:
        """Seed ``random``, and NumPy and torch where they are loaded, with the trial's seed, and return it.

        The warm launcher has done so already; with ``launch="exec"`` call it after the imports. Does nothing by
        hand.
        """
        seed = self.seed
        if seed is None:
            return None
        import random

        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed)
        if "torch" in sys.modules:
            sys.modules["torch"].manual_seed(seed)
        return seed


def retrieve(log_lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the reports found in lines that were written to stdout; everything else is passed over.

    NaN and infinities are read both as JSON strings and bare.
    """
    found = []
    for match in re.finditer(rf"\[{REPORT_TAG}\]: (\{{.*\}})", "\n".join(line.rstrip("\n") for line in log_lines)):
        try:
            found.append(decode_floats(json.loads(match.group(1))))
        except ValueError:
            continue
    return found


def encode_floats(value: Any) -> Any:
    """Return ``value`` with NaN and infinities as the strings that travel in JSON."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {k: encode_floats(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [encode_floats(v) for v in value]
    return value


def decode_floats(value: Any) -> Any:
    """Undo :func:`encode_floats`; integers beyond the range of floats become infinities, as 1e999 does in JSON."""
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, int):
        return _in_range(value)
    if isinstance(value, dict):
        return {k: decode_floats(v) for k, v in value.items()}
    if isinstance(value, list):
        return [decode_floats(v) for v in value]
    return value


def metrics_fault(metrics: dict[str, Any]) -> str | None:
    """Return why metrics that were read from JSON cannot be recorded; ``None`` if they can."""
    values: list[Any] = [metrics]
    for _ in range(MAX_METRIC_DEPTH + 1):
        below: list[Any] = []
        for value in values:
            if value is None:
                return "a null"
            if isinstance(value, str):
                if not _is_unicode(value):
                    return "a text that is no valid Unicode"
            elif isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
        if not below:
            return None
        values = below
    return f"lists and objects of more than {MAX_METRIC_DEPTH} levels"


def _is_unicode(text: str) -> bool:
    """Whether a text can be written to files (JSON may hold halves of characters)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics as the plain values that are sent.

    Raises:
        TypeError: For a value that cannot be sent as JSON.
        ValueError: For no metrics, a ``None`` or a reserved name.
    """
    if not metrics:
        raise ValueError("report() got no metrics; call it as report(epoch=3, accuracy=0.91)")
    record = {}
    for name, value in metrics.items():
        if name.startswith(RESERVED_PREFIX):
            raise ValueError(
                f"metric name {name!r} is not allowed: names that start with {RESERVED_PREFIX!r} are reserved; "
                f"rename it, say to {name[len(RESERVED_PREFIX) :] or 'value'!r}"
            )
        try:
            record[name] = _plain(name, value)
        except RecursionError:
            raise ValueError(f"metric {name!r} holds itself, or too many levels of lists and dicts") from None
    if (fault := metrics_fault(record)) is not None:
        raise ValueError(f"the report holds {fault}, which cannot be sent: {list(record)}")
    return record


def _cost_per_hour() -> float | None:
    value = os.environ.get(ENV_COST_PER_HOUR)
    cost = float(value) if value else None
    if cost is not None and not 0 <= cost < math.inf:
        raise ValueError(f"{ENV_COST_PER_HOUR} must be a finite number >= 0, got {value!r}")
    return cost


def _in_range(value: int) -> int | float:
    # Everything that computes with metrics would fail on integers that are no floats.
    if -_LARGEST <= value <= _LARGEST:
        return value
    return math.inf if value > 0 else -math.inf


def _plain(name: str, value: Any) -> Any:
    if value is None:
        raise ValueError(f"metric {name!r} is None; report a number, or leave the metric out")
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return float(value) if isinstance(value, float) else _in_range(int(value))
    if isinstance(value, dict):
        return {str(k): _plain(f"{name}[{k!r}]", v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{i}]", v) for i, v in enumerate(value)]
    # NumPy scalars and arrays or tensors with one element, without importing either library.
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        numel = value.numel() if hasattr(value, "numel") else value.size
        if numel == 1:
            return _plain(name, value.item())
        raise TypeError(f"metric {name!r} has {numel} elements; report a number, or a list by .tolist()")
    raise TypeError(
        f"metric {name!r} is of type {type(value).__name__}, which cannot be sent; report numbers, strings, bools, "
        "or lists and dicts of them"
    )
