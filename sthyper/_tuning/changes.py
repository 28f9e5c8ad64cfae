"""What is another on a resume: configuration space or scheduler, and whether a fresh scheduler is needed for that."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sthyper._describe import NotDescribable, change_arguments, fingerprint, rebuild
from sthyper._space.points import impute_points_to_evaluate
from sthyper._tuning.adoption import FreshStart
from sthyper._tuning.decisions import differences
from sthyper._tuning.lines import JournalLines
from sthyper._tuning.parts import describe_parts, rebuild_parts
from sthyper._tuning.space_change import PastSpaces, SpaceMap, equal_spaces, plan_change, read_space_lines
from sthyper.config_space import Domain, config_to_match_string
from sthyper.constants import ST_JOURNAL_FILENAME
from sthyper.errors import ConfigSpaceError, ExperimentError
from sthyper.journal import JournalPosition
from sthyper.schedulers.base import TrialScheduler

__all__ = ["Changes", "ResumePlan", "plan_resume"]


@dataclass(frozen=True)
class Changes:
    """Arguments of :meth:`sthyper.Tuner.resume` that concern the scheduler; see there."""

    config_space: dict[str, Any] | None = None
    new_defaults: Mapping[str, Any] | None = None
    drop: bool = False
    force: bool = False


@dataclass(frozen=True)
class ResumePlan:
    """With which scheduler an experiment goes on.

    Args:
        described: The arguments of the tuner, see :func:`sthyper._tuning.parts.describe_parts`.
        scheduler: The scheduler, ``None`` for the described one.
        fresh: Why it has not decided before; ``None`` if it has.
        metadata: What the experiment's metadata say of its scheduler, where that has changed once.
    """

    described: dict[str, Any]
    scheduler: TrialScheduler | None
    fresh: FreshStart | None
    metadata: dict[str, Any]


def plan_resume(
    folder: Path, described: Mapping[str, Any], scheduler: TrialScheduler | None, changes: Changes, strict: bool
) -> ResumePlan:
    """Return with which scheduler an experiment goes on.

    Args:
        folder: The experiment's folder.
        described: Its description of the tuner's arguments.
        scheduler: The scheduler that the user gives, if any.
        changes: What is to change.
        strict: Whether a damaged line of the journal is an error.

    Raises:
        ConfigSpaceError: If the new space cannot be used, or needs ``new_defaults`` or ``drop``.
        ExperimentError: If the scheduler has to be given, or does not suit the experiment.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has no effect.
    """
    kept = read_space_lines(folder)
    marks = [line for line in kept if line["type"] == "fresh"]
    described, metadata = dict(described), {}
    for mark in marks:
        described["scheduler"], metadata = mark["scheduler"], mark["metadata"]
    if changes.config_space is None and (changes.new_defaults is not None or changes.drop):
        name = "drop" if changes.new_defaults is None else "new_defaults"
        raise ValueError(f"{name} needs config_space, the space with which the experiment goes on")
    if scheduler is not None and not isinstance(scheduler, TrialScheduler):
        raise TypeError(f"scheduler must be a TrialScheduler such as ASHA(...), got {scheduler!r}")
    if changes == Changes() and scheduler is None:
        return ResumePlan(described, None, None, metadata)
    planner = _Planner(folder, described, scheduler, PastSpaces.of(kept), len(marks), strict)
    fresh = planner.plan(changes)
    made = planner.scheduler
    if made is not None:
        described["scheduler"] = describe_parts({"scheduler": made})["scheduler"]
        _check_metric(made, {**next(r["metadata"] for r in kept if r["type"] == "metadata"), **metadata})
    if fresh is not None:
        assert made is not None
        metadata = made.metadata()
    return ResumePlan(described, made, fresh, metadata)


class _Planner:
    """Finds out whether a fresh scheduler is needed, and makes it.

    Args:
        folder: The experiment's folder.
        described: Its description of the tuner's arguments.
        scheduler: The scheduler that the user gives, if any.
        past: The spaces so far.
        marks: Number of times that a fresh scheduler was taken.
        strict: Whether a damaged line of the journal is an error.

    Attributes:
        scheduler: The scheduler to go on with, ``None`` for the described one.
    """

    def __init__(
        self,
        folder: Path,
        described: Mapping[str, Any],
        scheduler: TrialScheduler | None,
        past: PastSpaces,
        marks: int,
        strict: bool,
    ) -> None:
        self.scheduler = scheduler
        self._described = described
        self._past = past
        self._marks = marks
        self._records = JournalLines(folder / ST_JOURNAL_FILENAME, JournalPosition(), strict=strict)

    def plan(self, changes: Changes) -> FreshStart | None:
        """Return why a fresh scheduler is needed, ``None`` if none is."""
        recorded = self._past.spaces[-1]
        space = recorded
        defaults: dict[str, Any] = {}
        if changes.config_space is not None:
            configs = list(_configs(self._records).values())
            space, defaults = plan_change(self._past, configs, changes.config_space, changes.new_defaults, changes.drop)
        changed = not equal_spaces(space, recorded)
        if defaults and not changed:
            raise ValueError(f"new_defaults={defaults} has no effect: config_space is that of the experiment")
        if self.scheduler is not None and not equal_spaces(self.scheduler.config_space, space):
            names = [n for n in {**space, **self.scheduler.config_space} if not _agrees(n, self.scheduler, space)]
            where = "config_space" if changed else "that of the experiment; pass it as config_space, too, to change it"
            raise ConfigSpaceError(f"the configuration space of scheduler differs in {', '.join(names)} from {where}")
        if changed:
            names = [n for n in {**recorded, **space} if not equal_spaces(_part(recorded, n), _part(space, n))]
            return self._fresh(f"config_space has changed in {', '.join(names)}", space, defaults)
        if not changes.force:
            return None
        if self.scheduler is not None and self._is_another(self.scheduler):
            return self._fresh("another scheduler was given", space, defaults)
        tried = self._to_try()
        try:
            found = differences(self._records, tried)
        except Exception as error:  # of a scheduler that does not understand what another has begun
            found = [repr(error)]
        return self._fresh(f"it decides otherwise than is recorded ({found[0]})", space, defaults) if found else None

    def _fresh(self, reason: str, space: dict[str, Any], defaults: Mapping[str, Any]) -> FreshStart:
        if self.scheduler is None:
            description = self._described["scheduler"]
            rebuild_parts({"scheduler": description}, {})  # says what has to be given if it cannot be made
            renewed = self._renewed(description, space, defaults)
            try:
                self.scheduler = rebuild(renewed)
            except (NotDescribable, ValueError, TypeError) as error:
                raise ConfigSpaceError(
                    f"the scheduler cannot be made for this config_space: {error}. Change config_space, or pass "
                    "scheduler=..., made for it"
                ) from None
        return FreshStart(reason, describe_parts({"scheduler": self.scheduler})["scheduler"], defaults)

    def _is_another(self, scheduler: TrialScheduler) -> bool:
        try:
            before = rebuild(self._described["scheduler"])
        except (NotDescribable, ValueError, TypeError, OSError):
            return False
        return bool(fingerprint(before) != fingerprint(scheduler))

    def _to_try(self) -> TrialScheduler:
        if self.scheduler is None:
            made: TrialScheduler = rebuild_parts({"scheduler": self._described["scheduler"]}, {})["scheduler"]
            return made
        try:
            return copy.deepcopy(self.scheduler)
        except Exception as error:  # whatever a user's object raises
            raise ExperimentError(
                f"force=True needs a copy of scheduler to try it out, and {type(self.scheduler).__name__} cannot be "
                f"copied ({error!r}); without force=True it is used as it is"
            ) from error

    def _renewed(self, description: Any, space: dict[str, Any], defaults: Mapping[str, Any]) -> Any:
        """Return the description of a scheduler for another space, and with other seeds: its draws are not repeated."""
        before = self._past.spaces[-1]
        places = PastSpaces((*self._past.spaces, space), {**self._past.defaults, **defaults}).map
        tried = _tried(self._records, self._past.map)

        def change(cls: type, arguments: dict[str, Any]) -> dict[str, Any]:
            others: dict[str, Any] = {}
            own = arguments.get("config_space")
            is_own = isinstance(own, dict) and equal_spaces(own, before)
            if is_own:
                others["config_space"] = space
            if isinstance(arguments.get("random_seed"), int):
                others["random_seed"] = _next_seed(arguments["random_seed"], self._marks + 1)
            options = arguments.get("search_options")
            if isinstance(options, Mapping):
                others["search_options"] = _options(options, places)
            others |= _options({k: v for k, v in arguments.items() if k in _LISTS and v is not None}, places)
            takes_points = is_own and "points_to_evaluate" in inspect.signature(cls).parameters
            if tried and takes_points and not isinstance(arguments.get("searcher"), type):  # else that one has them
                others["points_to_evaluate"] = _left(arguments.get("points_to_evaluate"), before, tried, places)
            return others

        return change_arguments(description, change)


_LISTS = ("restrict_configurations", "num_samples")


def _options(options: Mapping[str, Any], places: SpaceMap) -> dict[str, Any]:
    """Return options of a searcher as they are in another space."""
    result = dict(options)
    if result.get("restrict_configurations") is not None:
        found = [places.place(config) for config in result["restrict_configurations"]]
        result["restrict_configurations"] = [place.tuned for place in found if place is not None and place.inside]
    if result.get("num_samples") is not None:
        samples = result["num_samples"].items()
        result["num_samples"] = {name: n for name, n in samples if isinstance(places.space.get(name), Domain)}
    return result


def _left(
    points: list[dict[str, Any]] | None, before: dict[str, Any], tried: set[str], places: SpaceMap
) -> list[dict[str, Any]]:
    """Return the initial configurations that were not tried and have a place in another space."""
    result = []
    for point in impute_points_to_evaluate(points, before):
        place = places.place(point)
        if config_to_match_string(point, before) not in tried and place is not None and place.inside:
            result.append(place.tuned)
    return result


def _tried(records: Iterable[Mapping[str, Any]], space_map: SpaceMap) -> set[str]:
    """Return the match strings of all suggested configurations in the space of the map."""
    found = set()
    for record in records:
        if record["type"] == "suggestion" and record["action"] == "start":
            place = space_map.place(record["config"])
            if place is not None:
                found.add(config_to_match_string(place.tuned, space_map.space))
    return found


def _configs(records: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the last configuration of every trial, and what was suggested and not started."""
    configs = {record["trial_id"]: record["config"] for record in records if record["type"] in ("start", "resume")}
    return configs


def _check_metric(scheduler: TrialScheduler, metadata: Mapping[str, Any]) -> None:
    for name, found in (("metric", scheduler.metric_names()), ("mode", scheduler.metric_mode())):
        before = metadata["metric_names" if name == "metric" else "metric_mode"]
        if found != before:
            raise ExperimentError(f"scheduler has {name} {found!r}, the experiment {before!r}: that cannot change")


def _next_seed(seed: int, marks: int) -> int:
    import numpy as np

    return int(np.random.SeedSequence([seed, marks], spawn_key=(2,)).generate_state(1)[0]) % (2**31 - 1)


def _agrees(name: str, scheduler: TrialScheduler, space: Mapping[str, Any]) -> bool:
    return equal_spaces(_part(scheduler.config_space, name), _part(space, name))


def _part(space: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name: space[name]} if name in space else {}
