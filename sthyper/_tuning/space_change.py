"""Configurations of an experiment whose space was changed on a resume: what past ones are in the new space."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sthyper.config_space import Domain, Float, Integer, check_config_space, config_space_from_json_dict
from sthyper.constants import ST_JOURNAL_FILENAME
from sthyper.errors import ConfigSpaceError, ExperimentError, closest

__all__ = ["PastSpaces", "Place", "SpaceMap", "equal_spaces", "plan_change", "read_space_lines"]

_SPACE_LINES = (b'{"type":"metadata"', b'{"type":"fresh"')

SEED = "seed"
"""Name of the constant that stands for the trial's own seed where the space has ``None`` for it."""


@dataclass(frozen=True)
class Place:
    """What a past configuration is in a space.

    Args:
        tuned: The values of its hyperparameters.
        inside: Whether they lie in the space; otherwise a number lies outside its range.
    """

    tuned: dict[str, Any]
    inside: bool


@dataclass(frozen=True)
class SpaceMap:
    """Finds places for past configurations in a space.

    Args:
        space: The space.
        defaults: Values of hyperparameters for configurations that have none.
        once_tuned: Names that were hyperparameters at any time.
    """

    space: dict[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    once_tuned: frozenset[str] = frozenset()

    def place(self, config: Mapping[str, Any]) -> Place | None:
        """Return what a configuration is here; ``None`` if it cannot be expressed.

        That is so if a value is of another kind or none of the listed ones, or if what was tuned is a constant now
        that has another value. Constants that were never tuned do not matter.
        """
        tuned: dict[str, Any] = {}
        inside = True
        for name, domain in self.space.items():
            if not isinstance(domain, Domain):
                if name in self.once_tuned and name in config and not _same(config[name], domain):
                    return None
                continue
            if name not in config and name not in self.defaults:
                return None
            found = _member(domain, config[name] if name in config else self.defaults[name])
            if found is None:
                return None
            tuned[name], within = found
            inside = inside and within
        return Place(tuned, inside)

    def complete(self, tuned: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Return hyperparameters with the constants of this space.

        Args:
            tuned: The hyperparameters.
            config: The configuration that they come from, which knows the trial's seed.
        """
        result = {name: tuned.get(name, value) for name, value in self.space.items()}
        if SEED in result and result[SEED] is None and config.get(SEED) is not None:
            result[SEED] = config[SEED]
        return result


@dataclass(frozen=True)
class PastSpaces:
    """The configuration spaces that an experiment has had.

    Args:
        spaces: The spaces, the newest last.
        defaults: Values of hyperparameters that came later, for the configurations before.
    """

    spaces: tuple[dict[str, Any], ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def map(self) -> SpaceMap:
        """The map into the newest space."""
        once = {name for space in self.spaces for name, domain in space.items() if isinstance(domain, Domain)}
        return SpaceMap(self.spaces[-1], self.defaults, frozenset(once))

    def then(self, line: Mapping[str, Any]) -> PastSpaces:
        """Return what it is after a line of type ``fresh``."""
        space = config_space_from_json_dict(line["config_space"])
        return PastSpaces((*self.spaces, space), {**self.defaults, **line["new_defaults"]})

    @staticmethod
    def of(records: Iterable[Mapping[str, Any]]) -> PastSpaces:
        """Return the spaces of a journal.

        Args:
            records: Its lines, or those of type ``metadata`` and ``fresh``.

        Raises:
            ExperimentError: If the first space is not recorded.
        """
        result: PastSpaces | None = None
        for record in records:
            if record["type"] == "metadata" and result is None:
                text = record["metadata"].get("config_space")
                if isinstance(text, str):
                    result = PastSpaces((config_space_from_json_dict(json.loads(text)),))
            elif record["type"] == "fresh" and result is not None:
                result = result.then(record)
        if result is None:
            raise ExperimentError("the journal does not tell the configuration space of the experiment")
        return result


def read_space_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal that tell spaces and schedulers; the others are not parsed.

    Args:
        folder: The experiment's folder; nothing is returned if it has no journal.
    """
    path = folder / ST_JOURNAL_FILENAME
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        return [json.loads(line) for line in file if line.startswith(_SPACE_LINES) and line.endswith(b"\n")]


def plan_change(
    past: PastSpaces,
    configs: Sequence[Mapping[str, Any]],
    config_space: dict[str, Any],
    new_defaults: Mapping[str, Any] | None,
    drop: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the space with which an experiment goes on, and defaults of what is new in it.

    What is left out, though it was tuned, becomes a constant if all trials have the same value of it.

    Args:
        past: The spaces so far.
        configs: The configurations of all trials so far.
        config_space: The space that the user gives.
        new_defaults: Values for past trials, by name.
        drop: Whether hyperparameters may be left out of which past trials have several values.

    Raises:
        ConfigSpaceError: If the space cannot be used, a value is missing in ``new_defaults``, unknown there or outside
            its domain, or something is left out without ``drop``.
        TypeError: If an argument is of the wrong type.
    """
    check_config_space(config_space)
    space = dict(config_space)
    for name, domain in past.spaces[-1].items():
        if name in space or drop:
            continue
        if not isinstance(domain, Domain):
            if name in past.map.once_tuned:
                space[name] = domain  # fixed by an earlier change
        else:
            values = _different(config[name] for config in configs if name in config)
            if len(values) > 1:
                raise ConfigSpaceError(
                    f"config_space lacks {name!r}, of which past trials have {len(values)} different values "
                    f"({_some(values)}): pass drop=True to go on without it, or a constant {name!r} to fix it"
                    f"{closest(name, list(config_space))}"
                )
            if values:
                space[name] = values[0]
    return space, _checked_defaults(past, configs, space, new_defaults)


def _checked_defaults(
    past: PastSpaces,
    configs: Sequence[Mapping[str, Any]],
    space: Mapping[str, Any],
    given: Mapping[str, Any] | None,
) -> dict[str, Any]:
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise TypeError(f"new_defaults must be a dict from names to values, got {given!r}")
    tuned = {name: domain for name, domain in space.items() if isinstance(domain, Domain)}
    known = {name for earlier in past.spaces for name in earlier}
    lacking = [name for name in tuned if any(name not in config for config in configs)]
    result = {}
    for name, value in given.items():
        if name not in tuned:
            why = "is a constant of" if name in space else "is not in"
            raise ConfigSpaceError(f"new_defaults: {name!r} {why} config_space{closest(name, list(tuned))}")
        if name in past.defaults and _same(past.defaults[name], value):
            continue  # the same call once more
        if name in known and name not in lacking:
            raise ConfigSpaceError(
                f"new_defaults: {name!r} is no new hyperparameter, past trials have values of it; new are "
                f"{[other for other in tuned if other not in known]}"
            )
        try:
            result[name] = tuned[name].coerce(value)
        except ConfigSpaceError as error:
            raise ConfigSpaceError(f"new_defaults: value {value!r} of {name!r} cannot be used: {error}") from None
    missing = [name for name in lacking if name not in result and name not in past.defaults]
    if missing:
        example = ", ".join(f"{name!r}: {tuned[name].midpoint()!r}" for name in missing)
        raise ConfigSpaceError(
            f"new_defaults lacks {', '.join(map(repr, missing))}: config_space has what past trials have no value of. "
            f"Give the value with which they were trained, such as new_defaults={{{example}}}"
        )
    return result


def equal_spaces(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two configuration spaces have the same domains and constants, in whatever order."""
    return first.keys() == second.keys() and all(_same(value, second[name]) for name, value in first.items())


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Domain) or isinstance(second, Domain):
        return bool(first == second)
    if isinstance(first, int | float) and isinstance(second, int | float):
        return isinstance(first, bool) == isinstance(second, bool) and first == second
    return type(first) is type(second) and bool(first == second)


def _member(domain: Domain, value: Any) -> tuple[Any, bool] | None:
    """Return a value as the domain has it, and whether it lies in its range; ``None`` if the domain cannot have it."""
    try:
        member = domain.cast(value)
    except (ConfigSpaceError, TypeError, ValueError, OverflowError):
        return None
    if isinstance(value, int | float) and isinstance(member, int | float):
        if isinstance(value, bool) != isinstance(member, bool):
            return None
        # Finite domains take the nearest value, and integers are rounded: that would be another configuration.
        if not math.isclose(value, member, rel_tol=1e-9, abs_tol=1e-12):
            return None
    elif member != value:
        return None
    try:
        return domain.coerce(value), True
    except ConfigSpaceError:
        pass
    if not isinstance(domain, Float | Integer):
        return None
    try:
        on_scale = domain.scaling.to_internal(float(value))
    except (ValueError, OverflowError, ZeroDivisionError):
        return None
    return (member, False) if math.isfinite(on_scale) else None


def _different(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    seen = set()
    for value in values:
        key = json.dumps(value, sort_keys=True)
        if key not in seen:
            seen.add(key)
            found.append(value)
    return found


def _some(values: Sequence[Any]) -> str:
    shown = ", ".join(repr(value) for value in values[:3])
    return shown if len(values) <= 3 else f"{shown}, ..."
