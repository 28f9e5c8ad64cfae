"""Which earlier experiment a call of ``tune`` goes on with."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sthyper._tuning.identity import has_begun
from sthyper._tuning.parts import describe_parts, read_parts
from sthyper.backend.base import TrialBackend
from sthyper.constants import ST_JOURNAL_FILENAME, ST_METADATA_FILENAME
from sthyper.errors import ExperimentError
from sthyper.journal import read_journal
from sthyper.paths import STAMP_PATTERN, experiment_path, trim_base
from sthyper.schedulers.base import TrialScheduler

__all__ = ["check_resume", "find_earlier", "is_finished", "own_scheduler"]

logger = logging.getLogger(__name__)

_WHOLE = ("st_domain", "st_path", "st_tuple", "cannot_be_rebuilt")
_SEED = "random_seed"


def check_resume(resume: object, name: str | None) -> None:
    """Raise unless ``resume`` of :func:`sthyper.tune` is of the right kind and agrees with ``name``."""
    if isinstance(resume, bool):
        return
    if not isinstance(resume, str | os.PathLike):
        raise TypeError(f"resume must be 'auto', True, False, or the name or path of an experiment, got {resume!r}")
    if not os.fspath(resume):
        raise ValueError("resume must not be empty; 'auto', True, False, or the name or path of an experiment")
    if resume != "auto" and name is not None:
        raise ValueError(f"name={name!r} has no effect together with resume={os.fspath(resume)!r}; give one of them")


def find_earlier(resume: bool | str | Path, base: str, scheduler: TrialScheduler, backend: TrialBackend) -> Path | None:
    """Return the folder of the experiment to go on with, ``None`` to begin a new one.

    Args:
        resume: The argument of :func:`sthyper.tune`.
        base: Name of the experiment without its time stamp.
        scheduler: What it would be run with.
        backend: What its trials would be run by.

    Raises:
        ExperimentError: If an experiment was asked for that was made otherwise; names the arguments.
        FileNotFoundError: If there is none although one was asked for.
    """
    if resume is False:
        return None
    if resume == "auto":
        for folder in _newest_first(base):
            try:
                if is_finished(folder):
                    continue
                differing = _differences(folder, scheduler, backend)
            except (ExperimentError, ValueError) as error:
                logger.warning("resume='auto': %s is passed over: %s", folder.name, error)
                continue
            if not differing:
                return folder
            logger.warning(
                "resume='auto': the unfinished experiment %s is passed over, it was made with other arguments: %s",
                folder.name,
                "; ".join(differing),
            )
        return None
    if resume is True:
        newest = next(_newest_first(base), None)
        if newest is None:
            raise FileNotFoundError(
                f"resume=True: there is no experiment {base!r} in {experiment_path()}; resume='auto' begins a new one "
                "where there is none"
            )
        folder = newest
    else:
        from sthyper.experiment import load_experiment

        folder = load_experiment(resume).path
    if differing := _differences(folder, scheduler, backend):
        raise ExperimentError(
            f"{folder.name} was made with other arguments: {'; '.join(differing)}. Give the same as before, or begin "
            "a new experiment (resume=False)"
        )
    return folder


def is_finished(folder: Path) -> bool:
    """Whether an experiment came to the end that its criterion or its scheduler says, without error or interrupt."""
    ended = False
    with open(folder / ST_JOURNAL_FILENAME, "rb") as file:
        for line in file:
            if b'"type":"session"' in line:
                ended = False
            elif b'"type":"end"' in line and line.endswith(b"\n"):
                ended = bool(json.loads(line).get("finished"))
    return ended


def own_scheduler(folder: Path, scheduler: TrialScheduler) -> TrialScheduler | None:
    """Return the scheduler if it is made like that of an experiment, seed included, else ``None``: take the record's.

    Args:
        folder: The experiment's folder.
        scheduler: A scheduler that differs in its seed at most.
    """
    described = read_parts(folder)["scheduler"]
    now = _json(describe_parts({"scheduler": scheduler}))["scheduler"]
    return scheduler if "cannot_be_rebuilt" in described or described == now else None


def _newest_first(base: str) -> Iterator[Path]:
    root = experiment_path()
    stamped = re.compile(rf"(?:{re.escape(base)}|{re.escape(trim_base(base))})-({STAMP_PATTERN})\Z")
    names = [name for name in os.listdir(root) if stamped.match(name)] if root.is_dir() else []
    for name in sorted(names, key=lambda name: name[-23:], reverse=True):
        if has_begun(root / name):
            yield root / name


def _differences(folder: Path, scheduler: TrialScheduler, backend: TrialBackend) -> list[str]:
    """Return the arguments that an experiment was made with otherwise, each with its value before and now."""
    before = read_parts(folder)
    now = _json(describe_parts({"scheduler": scheduler, "trial_backend": backend}))
    result = list(_compare(_entry_point(before["trial_backend"]), _entry_point(now["trial_backend"]), ""))
    if "cannot_be_rebuilt" in now["scheduler"]:
        # Nothing is known of its arguments; the record finds out later what does not fit.
        try:
            described = json.loads((folder / ST_METADATA_FILENAME).read_text())
        except (OSError, ValueError):
            described = {}
        described = {"outcome_constraints": [], **described}  # an entry that earlier versions do not write
        own = _json(scheduler.metadata())
        spaces = [json.loads(part.pop("config_space", "{}")) for part in (described, own)]
        result += _compare({name: described.get(name) for name in own}, own, "")
        result += _compare(spaces[0], spaces[1], "config_space")
        seed = next((record["seed"] for record in read_journal(folder) if record["type"] == "session"), None)
        if scheduler.random_seed is not None and scheduler.random_seed != seed:
            result.append(f"{_SEED} was {seed}, now it is {scheduler.random_seed}")
        return result
    pair = [dict(before["scheduler"]), dict(now["scheduler"])]
    if not _seed_is_given(scheduler):
        for part in pair:
            part["arguments"] = {k: v for k, v in part.get("arguments", {}).items() if k != _SEED}
    return result + list(_compare(pair[0], pair[1], ""))


def _seed_is_given(scheduler: TrialScheduler) -> bool:
    """Whether the seed is one that the user wants; otherwise it was drawn."""
    args, kwargs = scheduler._arguments
    return inspect.signature(type(scheduler)).bind(*args, **kwargs).arguments.get(_SEED) is not None


def _entry_point(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a backend runs, of its description; how it does that may change."""
    if "cannot_be_rebuilt" in described:
        return {"function_or_script": described["cannot_be_rebuilt"]}
    return {
        "function_or_script": described["arguments"].get("entry_point"),
        "backend": described["st_class"].rpartition(":")[2],
    }


def _compare(before: Any, now: Any, name: str) -> Iterator[str]:
    if before == now:
        return
    nested = isinstance(before, dict) and isinstance(now, dict)
    if nested and not any(key in part for key in _WHOLE for part in (before, now)):
        if "st_class" in before and before["st_class"] == now.get("st_class"):
            yield from _compare(before.get("arguments", {}), now.get("arguments", {}), "")
            return
        if "st_class" not in before and "st_class" not in now:
            for key in {**before, **now}:
                place = f"{name}[{key!r}]" if name else key
                yield from _compare(before.get(key, _ABSENT), now.get(key, _ABSENT), place)
            return
    yield f"{name or 'scheduler'} was {_text(before)}, now it is {_text(now)}"


_ABSENT = "not given"


def _text(value: Any) -> str:
    if isinstance(value, dict) and "st_class" in value:
        return str(value["st_class"]).rpartition(":")[2]
    if isinstance(value, dict) and "st_domain" in value:
        from sthyper.config_space import from_dict

        return str(from_dict(value["st_domain"]))
    if isinstance(value, dict) and "cannot_be_rebuilt" in value:
        return str(value["cannot_be_rebuilt"])
    return value if value is _ABSENT else repr(value)


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))
