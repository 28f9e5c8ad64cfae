"""Random search."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from sthyper.config_space import Domain, config_space_size, config_to_match_string, sample_config
from sthyper.errors import ConfigSpaceError, closest
from sthyper.searchers.base import BaseSearcher, SearcherContext
from sthyper.searchers.finite import all_configs
from sthyper.trial import normalize_trial_id

if TYPE_CHECKING:
    import numpy as np

__all__ = ["RandomSearcher"]

logger = logging.getLogger(__name__)

_MAX_RETRIES = 100


class RandomSearcher(BaseSearcher):
    """Draws every hyperparameter from its domain, independently of all results.

    Args:
        config_space: Configuration space.
        metric: Name of the metric; a scheduler sets it if it is ``None``.
        mode: ``"min"`` or ``"max"``.
        points_to_evaluate: Configurations to suggest first; partial ones are completed by the mid-point rule.
            ``None`` is one configuration of mid-points, ``[]`` none.
        random_seed: Non-negative seed; the scheduler's if ``None``.
        allow_duplicates: Whether a configuration may be suggested twice. If not, neither suggested configurations
            nor those of other trials with results come (again), and a finite space is used up to the last one.
            In any case configurations of trials that failed by themselves do not come again.
        restrict_configurations: Suggest from this list only. Initial configurations that are not in it are dropped
            with a warning.
        debug_log: Whether to log every suggestion and every result that counts, at level INFO.

    Raises:
        ConfigSpaceError: If a configuration lies outside the space, lacks a hyperparameter or has an unknown one.
        TypeError: If an argument has the wrong type.
        ValueError: If ``mode`` is unknown, the seed is negative or ``restrict_configurations`` is empty.

    References:
        Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 2012
    """

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str | None = None,
        mode: str = "min",
        points_to_evaluate: list[dict[str, Any]] | None = None,
        random_seed: int | None = None,
        allow_duplicates: bool = False,
        restrict_configurations: list[dict[str, Any]] | None = None,
        debug_log: bool = False,
    ) -> None:
        super().__init__(config_space, metric, mode, points_to_evaluate)
        if random_seed is not None:
            if isinstance(random_seed, bool) or not isinstance(random_seed, int):
                raise TypeError(f"random_seed must be a non-negative int, got {random_seed!r}")
            if random_seed < 0:
                raise ValueError(f"random_seed must be a non-negative int, got {random_seed!r}")
        self.random_seed = random_seed
        self.allow_duplicates = bool(allow_duplicates)
        self.debug_log = bool(debug_log)
        self._generator: np.random.Generator | None = None
        # Match strings of configurations that must not be suggested, in the order in which they came.
        self._excluded: dict[str, None] = {}
        self._known_trials: set[int] = set()  # only for looking at a trial's configuration once
        self._restricted: dict[str, dict[str, Any]] | None = None
        if restrict_configurations is not None:
            self._restricted = self._check_restricted(restrict_configurations)
            self._restrict_initial(warn=points_to_evaluate is not None)
        # The configurations that are left: of the restricted list, or of a finite space once most of it is used up.
        self._pool: list[dict[str, Any]] | None = None
        self._enumerating = restrict_configurations is not None
        self._exhausted = False  # only for not saying it twice

    def configure(self, context: SearcherContext) -> None:
        super().configure(context)
        if self.random_seed is None:
            self.random_seed = context.random_seed

    # ---- suggestions ---------------------------------------------------------------------------------

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        number = normalize_trial_id(trial_id)
        config = self._next_initial()
        if config is None:
            config = self._draw()
        if config is None:
            if not self._exhausted:
                self._exhausted = True
                logger.warning("no configuration is left: %d have been suggested or failed", len(self._excluded))
            return None
        self._known_trials.add(number)
        if not self.allow_duplicates:
            self._excluded[self._match(config)] = None
        if self.debug_log:
            logger.info("trial %d: suggested %s", number, config)
        return dict(config)

    def _next_initial(self) -> dict[str, Any] | None:
        while (config := self.next_initial_config()) is not None:
            if self._match(config) not in self._excluded:
                return config
        return None

    def _draw(self) -> dict[str, Any] | None:
        generator = self._random_generator()
        blocked = self._blocked()
        if not self._enumerating:
            # A searcher that goes on for another one with the same seed draws what that has drawn.
            infinite = config_space_size(self.config_space) is None
            for _ in range(_MAX_RETRIES + (len(self._excluded) if infinite else 0)):
                config = sample_config(self.config_space, generator)
                match = self._match(config)
                if match not in self._excluded and match not in blocked:
                    return config
            if infinite:
                return None
            self._enumerating = not blocked  # others than those that are blocked now may be left later
        if self._pool is None:
            self._pool = self._remaining()
        pool = [config for config in self._pool if self._match(config) not in blocked] if blocked else self._pool
        if not pool:
            pool = self._pool
        if not pool:
            return None
        index = int(generator.integers(len(pool)))
        return pool[index] if self.allow_duplicates else pool.pop(index)

    def _blocked(self) -> Collection[str]:
        """Return match strings of configurations that come only if nothing else is left; for subclasses.

        There are none unless duplicates are allowed: what has been suggested is left out anyway.
        """
        return ()

    def remaining(self) -> list[dict[str, Any]] | None:
        """Return the configurations of ``restrict_configurations`` that may be suggested; ``None`` without them."""
        return None if self._restricted is None else self._remaining()

    def _remaining(self) -> list[dict[str, Any]]:
        if self._restricted is not None:
            return [config for match, config in self._restricted.items() if match not in self._excluded]
        left: dict[str, dict[str, Any]] = {}  # of those that count as the same the first one
        for config in all_configs(self.config_space):
            match = self._match(config)
            if match not in self._excluded:
                left.setdefault(match, config)
        return list(left.values())

    def _random_generator(self) -> np.random.Generator:
        if self._generator is None:
            import numpy as np

            self._generator = np.random.Generator(np.random.PCG64(self.random_seed))
        return self._generator

    # ---- events --------------------------------------------------------------------------------------

    def register_pending(
        self, trial_id: int | str, config: dict[str, Any] | None = None, milestone: int | None = None
    ) -> None:
        if config is not None:
            self._look_at(normalize_trial_id(trial_id, foreign=True), config)

    def on_trial_result(
        self, trial_id: int | str, config: dict[str, Any], result: dict[str, Any], update: bool
    ) -> None:
        number = normalize_trial_id(trial_id, foreign=True)
        self._look_at(number, config)
        if update and self.debug_log:
            logger.info("trial %d: %s=%s", number, self.metric, result.get(self.metric or ""))

    def evaluation_failed(self, trial_id: int | str, config: dict[str, Any], blacklist: bool = True) -> None:
        normalize_trial_id(trial_id, foreign=True)
        if blacklist:
            self._exclude(config)

    def _look_at(self, number: int, config: dict[str, Any]) -> None:
        """Leave out the configuration of a trial that was not suggested here."""
        if number not in self._known_trials:
            self._known_trials.add(number)
            if not self.allow_duplicates:
                self._exclude(config)

    def _exclude(self, config: dict[str, Any]) -> None:
        match = self._match(config)
        if match not in self._excluded:
            self._excluded[match] = None
            self._pool = None

    def _match(self, config: dict[str, Any]) -> str:
        return config_to_match_string(config, self.config_space)

    # ---- restricted configurations -------------------------------------------------------------------

    def _check_restricted(self, configs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if isinstance(configs, str | Mapping) or not hasattr(configs, "__iter__"):
            raise TypeError(f"restrict_configurations must be a list of configurations, got {configs!r}")
        domains = {name: domain for name, domain in self.config_space.items() if isinstance(domain, Domain)}
        checked = {}
        for position, given in enumerate(configs):
            where = f"restrict_configurations[{position}]"
            if not isinstance(given, Mapping):
                raise TypeError(f"{where} must be a dict, got {given!r}")
            for name in given:
                if name not in self.config_space:
                    raise ConfigSpaceError(f"{where}: {name!r} is not in config_space{closest(name, domains)}")
            missing = [name for name in domains if name not in given]
            if missing:
                raise ConfigSpaceError(f"{where} lacks {', '.join(missing)}")
            config = {}
            for name, domain in domains.items():
                try:
                    config[name] = domain.coerce(given[name])
                except ConfigSpaceError as error:
                    raise ConfigSpaceError(
                        f"{where}: value {given[name]!r} of {name!r} cannot be used: {error}"
                    ) from None
            checked[self._match(config)] = config
        if not checked:
            raise ValueError("restrict_configurations must not be empty")
        return checked

    def _restrict_initial(self, warn: bool) -> None:
        assert self._restricted is not None
        matches = [self._match(point) for point in self._points_to_evaluate]
        kept = [dict(self._restricted[match]) for match in matches if match in self._restricted]
        dropped = len(matches) - len(kept)
        if dropped and warn:
            warnings.warn(
                f"points_to_evaluate: {dropped} of {dropped + len(kept)} configurations are dropped, they are not in "
                "restrict_configurations",
                stacklevel=3,
            )
        self._points_to_evaluate = kept

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "random_seed": self.random_seed,
            "generator": None if self._generator is None else self._generator.bit_generator.state,
            "excluded": list(self._excluded),
            "enumerating": self._enumerating,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.random_seed = state["random_seed"]
        self._generator = None
        if state["generator"] is not None:
            self._random_generator().bit_generator.state = state["generator"]
        self._excluded = dict.fromkeys(state["excluded"])
        self._enumerating = state["enumerating"]
        self._pool = None
