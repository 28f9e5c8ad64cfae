"""Brackets: how early the rungs of a trial begin, and which rung system decides about it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from sthyper.schedulers.hyperband.levels import check_positive_int
from sthyper.schedulers.hyperband.rungs import PausedTrial, Promotion, RungSystem
from sthyper.searchers.multifidelity import BracketDistribution, BracketScheduler

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DefaultHyperbandBracketDistribution", "HyperbandBracketManager", "bracket_of", "check_brackets"]


class DefaultHyperbandBracketDistribution(BracketDistribution):
    r"""The shares that brackets have in synchronous Hyperband.

    With the levels :math:`r_0 < \dots < r_{S-1}`, the last of which is the maximum resource,
    :math:`p_s \propto S / ((S - s)\, r_s)`.

    Example:
        Levels 1, 3, 9, 27 below 81 and five brackets: 0.569, 0.237, 0.105, 0.053, 0.035.

    References:
        Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization", JMLR 2018,
        https://arxiv.org/abs/1603.06560
    """

    def __init__(self) -> None:
        self._probabilities: np.ndarray | None = None

    def configure(self, scheduler: BracketScheduler) -> None:
        import numpy as np

        assert scheduler.max_resource_level is not None
        levels = [*scheduler.rung_levels, scheduler.max_resource_level]
        size = len(levels)
        shares = np.array([size / ((size - s) * levels[s]) for s in range(scheduler.num_brackets)])
        self._probabilities = shares / shares.sum()

    def __call__(self) -> np.ndarray:
        if self._probabilities is None:
            raise RuntimeError(f"{type(self).__name__}: call configure(scheduler) first")
        return self._probabilities


class HyperbandBracketManager:
    """The rung systems of all brackets, and the bracket of the next trial.

    Bracket s begins at the rung with index s: its trials run to that level before they are compared with others. The
    top bracket, if there are as many as that, has no rung; its trials run to the maximum.

    Args:
        rung_system: The rung system of bracket 0, and of all others unless ``per_bracket``.
        num_brackets: Number of brackets, at most one more than rung levels.
        per_bracket: Whether every bracket has rungs of its own.
        mode: ``"min"`` or ``"max"``; values of a maximised metric are held negated.
        random_seed: Seed of the draws of brackets.
    """

    def __init__(
        self, rung_system: RungSystem, num_brackets: int, per_bracket: bool, mode: str, random_seed: int
    ) -> None:
        self.num_brackets = num_brackets
        self.per_bracket = per_bracket
        self.max_t = rung_system.max_t
        self.rung_levels = rung_system.rung_levels
        self._sign = -1.0 if mode == "max" else 1.0
        self._seed = random_seed
        self._systems = [rung_system]
        if per_bracket:
            self._systems += [rung_system.for_bracket(bracket) for bracket in range(1, num_brackets)]
        self._generator: np.random.Generator | None = None
        self._drawn: int | None = None  # for the new trial that is being suggested

    # ---- the bracket of a trial ----------------------------------------------------------------------

    def schedule(self, distribution: BracketDistribution) -> tuple[int, Promotion | None]:
        """Draw a bracket and choose a paused trial of its rung system to go on with.

        Returns:
            The bracket and the promotion, or ``None`` if a new trial is to be started.

        Raises:
            ValueError: If ``distribution`` returns no probabilities of that many brackets.
        """
        if self.num_brackets == 1:
            return 0, self._systems[0].promote()
        bracket = self._draw(distribution)
        promotion = self.system(bracket).promote()
        self._drawn = bracket if promotion is None else None
        return bracket, promotion

    def new_trial(self, distribution: BracketDistribution) -> int:
        """Return the bracket of a new trial: the one that :meth:`schedule` drew, or another if that is taken."""
        if self.num_brackets == 1:
            return 0
        bracket = self._draw(distribution) if self._drawn is None else self._drawn
        self._drawn = None
        return bracket

    def first_milestone(self, bracket: int) -> int:
        """Return the level at which the first decision about a trial of a bracket falls."""
        return self.rung_levels[bracket] if bracket < len(self.rung_levels) else self.max_t

    def bracket_that_begins(self, resource: int) -> int:
        """Return the bracket with the highest first rung that is not above a resource, 0 if there is none."""
        return max((b for b in range(self.num_brackets) if self.first_milestone(b) <= resource), default=0)

    def system(self, bracket: int) -> RungSystem:
        """Return the rung system that decides about trials of a bracket."""
        return self._systems[bracket if self.per_bracket else 0]

    def enter(self, trial_id: int, level: int, value: float) -> None:
        """Enter a value that no trial reported into the rungs of its level, if there are any."""
        for system in self._systems:
            if level in system.rung_levels:
                system.enter(trial_id, level, value)

    # ---- description ---------------------------------------------------------------------------------

    def paused_trials(self, resource: int | None = None) -> list[PausedTrial]:
        """Return the trials that are paused and were not promoted yet, values as they were reported.

        Args:
            resource: Only those that are paused at this level.
        """
        return [
            paused._replace(metric_val=self._sign * paused.metric_val)
            for system in self._systems
            for paused in system.paused_trials()
            if resource is None or paused.level == resource
        ]

    def take_hopeless(self) -> list[int]:
        """Return the paused trials that are never promoted, each of them once."""
        return [trial_id for system in self._systems for trial_id in system.take_hopeless()]

    def information_for_rungs(self) -> list[tuple[int, int, float]]:
        """Return ``(level, number of entries, promotion quantile)`` for the rungs of bracket 0, the top one first."""
        return [(rung.level, len(rung), rung.quantile) for rung in reversed(self._systems[0].rungs)]

    def snapshot_rungs(self, bracket: int) -> tuple[tuple[int, tuple[tuple[int, float], ...]], ...]:
        """Return ``(level, ((trial_id, value), ...))`` for the rungs of a bracket, the top one first."""
        lowest = self.first_milestone(bracket)
        nan = float("nan")
        return tuple(
            (
                rung.level,
                tuple(
                    [(trial_id, self._sign * value) for value, _, trial_id in rung.entries]
                    + [(trial_id, nan) for trial_id in rung.non_finite]
                ),
            )
            for rung in reversed(self.system(bracket).rungs)
            if rung.level >= lowest
        )

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes over time, as plain containers."""
        return {
            "num_brackets": self.num_brackets,
            "rung_systems": [system.state_dict() for system in self._systems],
            "generator": None if self._generator is None else self._generator.bit_generator.state,
            "drawn": self._drawn,
        }

    def load_state_dict(self, state: dict[str, Any], random_seed: int) -> None:
        """Restore what :meth:`state_dict` returned, into a manager made with the same arguments.

        Raises:
            ValueError: If brackets, rung systems or levels are others.
        """
        found = state["num_brackets"], len(state["rung_systems"])
        if found != (self.num_brackets, len(self._systems)):
            raise ValueError(
                f"the state is that of a scheduler with other brackets: brackets={found[0]} with {found[1]} rung "
                f"systems in place of brackets={self.num_brackets} with {len(self._systems)}"
            )
        for system, system_state in zip(self._systems, state["rung_systems"], strict=True):
            system.load_state_dict(system_state)
        self._seed = random_seed
        self._drawn = state["drawn"]
        self._generator = None
        if state["generator"] is not None:
            self._make_generator().bit_generator.state = state["generator"]

    def _draw(self, distribution: BracketDistribution) -> int:
        uniform = float((self._generator or self._make_generator()).random())
        return bracket_of(distribution(), self.num_brackets, uniform, type(distribution).__name__)

    def _make_generator(self) -> np.random.Generator:
        import numpy as np

        # The key keeps this stream apart from those of searcher and trials.
        seeds = np.random.SeedSequence(self._seed, spawn_key=(1,))
        self._generator = np.random.Generator(np.random.PCG64(seeds))
        return self._generator


def bracket_of(probabilities: Any, num_brackets: int, uniform: float, source: str) -> int:
    """Return the bracket at a number in [0, 1) by inverting the cumulated probabilities.

    Args:
        probabilities: Array of shape ``(num_brackets,)``, not negative; need not sum up to 1 exactly.
        num_brackets: Number of brackets.
        uniform: The number.
        source: Who made the probabilities, for the message.

    Raises:
        ValueError: If these are no probabilities.
    """
    import numpy as np

    try:
        weights = np.asarray(probabilities, dtype=float)
    except (TypeError, ValueError):  # texts, mappings, ragged lists
        weights = np.empty(0)
    if (
        weights.shape != (num_brackets,)
        or not np.isfinite(weights).all()
        or (weights < 0).any()
        or not np.isclose(weights.sum(), 1.0, atol=1e-6)
    ):
        raise ValueError(
            f"bracket_distribution: {source}() must return {num_brackets} probabilities that sum up to 1, "
            f"got {probabilities!r}"
        )
    cumulated = np.cumsum(weights)
    return int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))


def check_brackets(brackets: int, n_levels: int) -> int:
    """Return the number of brackets, cut down with a warning to what the rung levels allow.

    Raises:
        TypeError: If ``brackets`` is no int.
        ValueError: If it is not positive.
    """
    check_positive_int("brackets", brackets)
    most = n_levels + 1
    if brackets > most:
        warnings.warn(
            f"brackets={brackets}: there are {n_levels} rung levels, which allow {most} brackets; brackets={most} is "
            "used",
            stacklevel=3,
        )
    return min(brackets, most)
