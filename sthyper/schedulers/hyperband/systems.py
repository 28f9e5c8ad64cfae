"""The edge at which rung systems are named by strings and spacings come as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sthyper.errors import closest
from sthyper.schedulers.hyperband.levels import successive_halving_rung_levels
from sthyper.schedulers.hyperband.promotion import PromotionRungSystem
from sthyper.schedulers.hyperband.rungs import RungSystem
from sthyper.schedulers.hyperband.stopping import StoppingRungSystem
from sthyper.schedulers.resources import MAX_RESOURCE_NAMES, infer_max_resource

__all__ = ["make_rung_system"]

# A new rung system gets a name by one line here.
_RUNG_SYSTEMS: dict[str, Callable[[tuple[int, ...], int], RungSystem]] = {
    "stopping": StoppingRungSystem,
    "promotion": PromotionRungSystem,
}


def make_rung_system(
    config_space: dict[str, Any],
    max_t: int | None,
    max_resource_attr: str | None,
    rung_system: RungSystem | None,
    type: str | None,
    grace_period: int | None,
    reduction_factor: float | None,
    rung_increment: int | None,
    rung_levels: Sequence[int] | None,
) -> RungSystem:
    """Return the rung system of a scheduler; see :class:`~sthyper.schedulers.HyperbandScheduler` for the arguments.

    Raises:
        ConfigSpaceError: If ``max_resource_attr`` is no constant of the space with a positive int.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or unknown, contradicts another, or if the maximum resource is
            not known.
    """
    if rung_system is None:
        limit = infer_max_resource(config_space, max_t, max_resource_attr)
        if limit is None:
            raise ValueError(
                "the maximum resource is not known: give max_resource_attr= (the name of a constant of "
                f"config_space) or max_t=, or a constant {' or '.join(map(repr, MAX_RESOURCE_NAMES))} in "
                "config_space"
            )
        kind = "stopping" if type is None else type
        if not isinstance(kind, str) or kind not in _RUNG_SYSTEMS:
            raise ValueError(f"type must be one of {list(_RUNG_SYSTEMS)}, got {kind!r}{closest(kind, _RUNG_SYSTEMS)}")
        levels = successive_halving_rung_levels(limit, rung_levels, grace_period, reduction_factor, rung_increment)
        return _RUNG_SYSTEMS[kind](levels, limit)
    if not isinstance(rung_system, RungSystem):
        raise TypeError(f"rung_system must be a RungSystem, got {rung_system!r}")
    given = {
        "type": type,
        "grace_period": grace_period,
        "reduction_factor": reduction_factor,
        "rung_increment": rung_increment,
        "rung_levels": rung_levels,
    }
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}={value!r} cannot be given together with rung_system={rung_system}")
    if max_t is not None or max_resource_attr is not None:
        limit = infer_max_resource(config_space, max_t, max_resource_attr)
        if limit != rung_system.max_t:
            raise ValueError(f"the maximum resource {limit} differs from that of rung_system={rung_system}")
    return rung_system
