"""Checkpoints of training scripts: written atomically, the last two kept, the right one chosen."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sthyper._syncing import sync_folder
from sthyper.checkpoints import INDEX_NAME
from sthyper.constants import ENV_LAST_RESOURCE, ENV_OBJECTIVE, ENV_RUN, ENV_TRIAL_ID
from sthyper.paths import is_plain_name

__all__ = [
    "StatefulObject",
    "TorchCheckpoints",
    "holds_first_only",
    "last_reported_resource",
    "note_resumed",
    "resumed_from",
]

_RESOURCE = "st_resource"
_TRIAL = "st_trial_id"
_STATE = "st_state_dict_"
_MUTABLE = "st_mutable_"
_NOTE = ".resumed"


@runtime_checkable
class StatefulObject(Protocol):
    """Whatever has a state: models, optimisers, schedulers."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Restore a state."""


@dataclass(frozen=True)
class _Candidate:
    """A checkpoint that could be read."""

    path: Path
    resource: int
    content: dict[str, Any]


def last_reported_resource(written_by: str | None) -> float | None:
    """Return the resource of the trial's last recorded report.

    Args:
        written_by: Id of the trial that wrote the checkpoint in question.

    Returns:
        The resource; 0 for a restarted trial that reported nothing yet; ``None`` if there is no such limit: the
        script runs by hand, has no resource, or starts from the checkpoint of another trial.
    """
    last = os.environ.get(ENV_LAST_RESOURCE)
    if last:
        return float(last)
    own = written_by is not None and written_by == os.environ.get(ENV_TRIAL_ID)
    restarted = os.environ.get(ENV_RUN, "0") != "0"
    objective = os.environ.get(ENV_OBJECTIVE)
    if own and restarted and objective and json.loads(objective).get("resource_attr"):
        return 0.0
    return None


def note_resumed(folder: str | Path, resource: float) -> None:
    """Leave a note for the tuner that this run of the trial goes on from a checkpoint.

    If the run then ends without a report, nothing was left to train.

    Args:
        folder: Folder of the checkpoints, which exists.
        resource: Resource of the checkpoint.
    """
    trial_id, run = os.environ.get(ENV_TRIAL_ID), os.environ.get(ENV_RUN) or "0"
    if trial_id and run != "0":
        path = Path(folder) / _NOTE
        temporary = path.with_name(f"{_NOTE}.tmp")  # of one writer, so that the next one replaces what is left
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps({"trial_id": int(trial_id), "run": int(run), "resource": resource}))
            os.replace(temporary, path)


def resumed_from(folder: str | Path, trial_id: int, run: int) -> float | None:
    """Return the resource of the checkpoint from which a run went on; ``None`` if it has left no note of that.

    Args:
        folder: Folder of the trial's checkpoints; need not exist.
        trial_id: The trial.
        run: Number of the run.
    """
    try:
        note = json.loads((Path(folder) / _NOTE).read_text())
        return float(note["resource"]) if (note["trial_id"], note["run"]) == (trial_id, run) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def holds_first_only(folder: str | Path) -> bool:
    """Whether a folder holds one checkpoint: the first one, where at least the last two are kept.

    Args:
        folder: Folder of a trial's checkpoints; need not exist.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    return sum(name != INDEX_NAME and name[0] != "." and not name.endswith(".tmp") for name in names) == 1


class TorchCheckpoints:
    """Loads and saves the states of some objects; see ``sthyper.utils.pytorch_load_save_functions``."""

    def __init__(
        self, state_dict_objects: Mapping[str, StatefulObject], mutable_state: dict[str, Any] | None, fname: str
    ) -> None:
        for name, obj in state_dict_objects.items():
            if not isinstance(obj, StatefulObject):
                raise TypeError(
                    f"state_dict_objects[{name!r}] must have state_dict() and load_state_dict(), got {obj!r}"
                )
        if not is_plain_name(fname):
            raise ValueError(f"fname must be a plain file name, got {fname!r}")
        self._objects = dict(state_dict_objects)
        self._mutable = mutable_state if mutable_state is not None else {}
        self._fname = fname
        self._checked = False
        # Files not worth keeping as the previous checkpoint: unreadable, or ahead of the last report.
        self._superseded: set[Path] = set()

    # ---- saving --------------------------------------------------------------------------------------

    def save(self, local_path: str, resource: int) -> None:
        """Write a checkpoint to the folder ``local_path``; the one before it stays as ``*.previous``."""
        content: dict[str, Any] = {f"{_STATE}{k}": v.state_dict() for k, v in self._objects.items()}
        content.update({f"{_MUTABLE}{k}": _elementary(k, v) for k, v in self._mutable.items()})
        content[_RESOURCE] = int(resource) if int(resource) == resource else float(resource)
        content[_TRIAL] = os.environ.get(ENV_TRIAL_ID)
        current = Path(local_path) / self._fname
        temporary, previous = self._temporary(current), self._previous(current)
        self._write(content, temporary)
        if current in self._superseded:
            self._superseded.discard(current)
        elif current.exists():
            os.replace(current, previous)
        os.replace(temporary, current)
        sync_folder(current.parent)

    def _write(self, content: dict[str, Any], path: Path) -> None:
        import torch

        try:
            with path.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            if not self._checked:
                self._check_loadable(content, path)
                self._checked = True
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _check_loadable(self, content: dict[str, Any], path: Path) -> None:
        """Find out at the first save, not at the first resume, that a state cannot be loaded again."""
        import io
        import pickle

        import torch

        try:
            torch.load(path, map_location="cpu", weights_only=True)
            return
        except pickle.UnpicklingError as error:
            reason = error  # `error` is unset after this block
        for key, value in content.items():
            buffer = io.BytesIO()
            torch.save(value, buffer)
            buffer.seek(0)
            try:
                torch.load(buffer, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                name = key.removeprefix(_STATE).removeprefix(_MUTABLE)
                raise TypeError(
                    f"the state of {name!r} cannot be loaded again with torch.load(weights_only=True); keep to "
                    f"tensors, numbers, strings, lists and dictionaries, numpy values by .item() or .tolist(): "
                    f"{str(reason).splitlines()[0]}"
                ) from None
        raise reason

    # ---- loading -------------------------------------------------------------------------------------

    def load(self, local_path: str) -> int:
        """Load the newest checkpoint in the folder that is not ahead of the last report; return its resource or 0."""
        current = Path(local_path) / self._fname
        found = [c for c in (self._read(current), self._read(self._previous(current))) if c is not None]
        ranked = self._rank(found)
        for candidate in ranked:
            if self._restore(candidate):
                if candidate.path != current and current.exists():
                    self._superseded.add(current)
                note_resumed(local_path, candidate.resource)
                return candidate.resource
        if current.exists():
            self._superseded.add(current)
        return 0

    def _rank(self, found: list[_Candidate]) -> list[_Candidate]:
        """Return the checkpoints in the order of preference."""
        limits = [last_reported_resource(c.content.get(_TRIAL)) for c in found]
        if all(limit is None for limit in limits):
            return found  # the one written last comes first
        good = [c for c, limit in zip(found, limits, strict=True) if limit is None or c.resource <= limit]
        if good or not any(limits):
            # A limit of 0 with nothing at or below it means: from scratch, which repeats one epoch only.
            return sorted(good, key=lambda c: c.resource, reverse=True)
        # Only checkpoints ahead of the last report: the least advanced one skips the fewest reports.
        return sorted(found, key=lambda c: c.resource)

    def _read(self, path: Path) -> _Candidate | None:
        import torch

        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            missing = [k for k in self._objects if f"{_STATE}{k}" not in content]
            if missing:
                raise KeyError(f"no state of {', '.join(missing)}")
            return _Candidate(path, content[_RESOURCE], content)
        except FileNotFoundError:
            return None
        except Exception as error:
            _warn(path, error)
            return None

    def _restore(self, candidate: _Candidate) -> bool:
        """Put the states into the objects; put the old ones back if one does not fit."""
        before = {k: _copy(v.state_dict()) for k, v in self._objects.items()}
        values = dict(self._mutable)
        try:
            for k, v in self._mutable.items():
                if f"{_MUTABLE}{k}" in candidate.content:
                    values[k] = _as_type_of(v, candidate.content[f"{_MUTABLE}{k}"])
            for k, obj in self._objects.items():
                obj.load_state_dict(candidate.content[f"{_STATE}{k}"])
        except Exception as error:
            for k, obj in self._objects.items():
                obj.load_state_dict(before[k])
            _warn(candidate.path, error)
            return False
        self._mutable.update(values)
        return True

    @staticmethod
    def _previous(path: Path) -> Path:
        return path.with_name(f"{path.name}.previous")

    @staticmethod
    def _temporary(path: Path) -> Path:
        return path.with_name(f"{path.name}.tmp")


def _warn(path: Path, error: Exception) -> None:
    lines = str(error).splitlines() or [""]
    warnings.warn(
        f"the checkpoint {path} cannot be loaded ({type(error).__name__}: {lines[0]}); "
        f"an older one is tried, else training starts from scratch",
        RuntimeWarning,
        stacklevel=4,
    )


def _elementary(name: str, value: Any) -> Any:
    """Return a value of ``mutable_state`` as a plain one."""
    import torch

    item = getattr(value, "item", None)
    if item is not None and getattr(value, "ndim", None) == 0 and not isinstance(value, torch.Tensor):
        value = item()  # numpy scalar
    if not isinstance(value, str | int | float | list | tuple | dict | torch.Tensor | None):
        raise TypeError(
            f"mutable_state[{name!r}] must be a number, string, bool, None, list, tuple, dict or tensor, got {value!r}"
        )
    return value


def _as_type_of(old: Any, new: Any) -> Any:
    if old is None or new is None or type(old) is type(new):
        return new
    return type(old)(new)


def _copy(state: Any) -> Any:
    """Return a deep copy of a state, tensors on the CPU."""
    import copy

    import torch

    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, Mapping):
        return {k: _copy(v) for k, v in state.items()}
    if type(state) in (list, tuple):
        return type(state)(_copy(v) for v in state)
    return copy.deepcopy(state)
