"""Grid search."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sthyper.config_space import Domain, Float, Integer, config_to_match_string
from sthyper.errors import closest
from sthyper.searchers.base import BaseSearcher, SearcherContext
from sthyper.searchers.finite import grid_values
from sthyper.searchers.permutation import LazyPermutation
from sthyper.trial import draw_seed, normalize_trial_id

__all__ = ["GridSearcher"]

logger = logging.getLogger(__name__)

_DEFAULT_SAMPLES = 5
_MOST_SAMPLES = 2**40


class GridSearcher(BaseSearcher):
    """Goes through all combinations of a few values of every hyperparameter.

    A float or integer range has ``num_samples`` grid values: value i of n lies at (i + 0.5) / n of the range, on the
    scale of the domain (linear, log, ...); equal ones are merged. Other domains have all their values. The grid is
    never stored: neither its size nor a shuffled order costs memory.

    Unshuffled, the hyperparameters are nested like loops: those with listed values (``choice``, ``ordinal``,
    ``finrange``, ...) outside, in reverse order of the space, and inside them the float and integer ranges in the order
    of the space. The last one changes fastest.

    Grids grow exponentially with the number of hyperparameters and try few values of each; for more than two or
    three, random search is better.

    Args:
        config_space: Configuration space.
        metric: Name of the metric; a scheduler sets it if it is ``None``.
        mode: ``"min"`` or ``"max"``.
        points_to_evaluate: Configurations to suggest first, which the grid then leaves out; partial ones are completed
            by the mid-point rule. ``None`` is one configuration of mid-points, ``[]`` none.
        random_seed: Non-negative seed of the shuffled order; the scheduler's if ``None``.
        num_samples: Number of grid values by name, at least 1, for float and integer ranges. Default 5; an integer
            range with fewer values than that, or than asked for, gives all of them.
        shuffle_config: Whether the grid is gone through in random order.
        allow_duplicates: Whether to begin again when the grid is used up, in the same order. If not, ``None`` is
            suggested then. The first time, configurations that are known already (initial ones, those of other trials)
            are left out; those of trials that failed by themselves never come again.
        restrict_configurations: Not supported, must be ``None``; :class:`~sthyper.searchers.RandomSearcher` goes
            through a list of configurations.

    Raises:
        ConfigSpaceError: If a configuration lies outside the space or has an unknown hyperparameter.
        TypeError: If an argument has the wrong type.
        ValueError: If ``mode`` is unknown, the seed is negative, ``num_samples`` has a name that is no float or
            integer range or a number below 1, or ``restrict_configurations`` is given.
    """

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str | None = None,
        mode: str = "min",
        points_to_evaluate: list[dict[str, Any]] | None = None,
        random_seed: int | None = None,
        num_samples: Mapping[str, int] | None = None,
        shuffle_config: bool = True,
        allow_duplicates: bool = False,
        restrict_configurations: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(config_space, metric, mode, points_to_evaluate)
        if random_seed is not None:
            if isinstance(random_seed, bool) or not isinstance(random_seed, int):
                raise TypeError(f"random_seed must be a non-negative int, got {random_seed!r}")
            if random_seed < 0:
                raise ValueError(f"random_seed must be a non-negative int, got {random_seed!r}")
        for name, value in (("shuffle_config", shuffle_config), ("allow_duplicates", allow_duplicates)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, got {value!r}")
        if restrict_configurations is not None:
            raise ValueError(
                "restrict_configurations is not supported by grid search, whose configurations are those of the grid; "
                'use RandomSearcher(restrict_configurations=...), that is searcher="random", to go through a list'
            )
        self.random_seed = random_seed
        self.shuffle_config = shuffle_config
        self.allow_duplicates = allow_duplicates
        self._axes = _axes(self.config_space, _check_num_samples(num_samples, self.config_space))
        self._size = math.prod(len(values) for values in self._axes.values())
        self._order: LazyPermutation | None = None
        # Where the next suggestion comes from: how often the grid was used up, and the position in the order since.
        self._rounds = 0
        self._position = 0
        self._fruitful = True  # whether anything was suggested in this round; only the first may be in vain
        # Match strings of what must not come: known configurations (first round only), failed ones (always).
        self._known: dict[str, None] = {}
        self._failed: dict[str, None] = {}
        self._known_trials: set[int] = set()  # only for looking at a trial's configuration once
        self._exhausted = False  # only for not saying it twice

    @property
    def grid_size(self) -> int:
        """Number of configurations on the grid."""
        return self._size

    def configure(self, context: SearcherContext) -> None:
        super().configure(context)
        if self.random_seed is None:
            self.random_seed = context.random_seed

    # ---- suggestions ---------------------------------------------------------------------------------

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        number = normalize_trial_id(trial_id)
        config = self._next_initial()
        if config is None:
            config = self._next_on_grid()
        if config is None:
            if not self._exhausted:
                self._exhausted = True
                logger.info("the grid of %d configurations is used up", self._size)
            return None
        self._known_trials.add(number)
        self._add_known(config)
        return config

    def _next_initial(self) -> dict[str, Any] | None:
        while (config := self.next_initial_config()) is not None:
            if not self._is_known(config):
                return dict(config)
        return None

    def _next_on_grid(self) -> dict[str, Any] | None:
        while True:
            if self._position == self._size:
                if not (self.allow_duplicates and self._fruitful):
                    return None
                self._rounds += 1
                self._position = 0
                self._fruitful = False
                self._order = None
                self._known.clear()
            config = self._decode(self._index())
            self._position += 1
            if not self._is_known(config):
                self._fruitful = True
                return config

    def _index(self) -> int:
        if not self.shuffle_config:
            return self._position
        if self._order is None:
            if self.random_seed is None:
                self.random_seed = draw_seed()
            self._order = LazyPermutation(self._size, self.random_seed)
            self._order.skip_to(self._position)
        return next(self._order)

    def _decode(self, index: int) -> dict[str, Any]:
        """Return a configuration by its place in the unshuffled order."""
        config = {}
        for name, values in reversed(self._axes.items()):
            index, position = divmod(index, len(values))
            config[name] = values[position]
        return {name: config[name] for name in self.config_space if name in config}

    # ---- events --------------------------------------------------------------------------------------

    def register_pending(
        self, trial_id: int | str, config: dict[str, Any] | None = None, milestone: int | None = None
    ) -> None:
        if config is not None:
            self._look_at(trial_id, config)

    def on_trial_result(
        self, trial_id: int | str, config: dict[str, Any], result: dict[str, Any], update: bool
    ) -> None:
        self._look_at(trial_id, config)

    def evaluation_failed(self, trial_id: int | str, config: dict[str, Any], blacklist: bool = True) -> None:
        normalize_trial_id(trial_id, foreign=True)
        if blacklist:
            self._failed[self._match(config)] = None

    def _look_at(self, trial_id: int | str, config: dict[str, Any]) -> None:
        """Leave out the configuration of a trial that was not suggested here; negative ids are no trials of ours."""
        number = normalize_trial_id(trial_id, foreign=True)
        if number not in self._known_trials:
            self._known_trials.add(number)
            self._add_known(config)

    def _add_known(self, config: dict[str, Any]) -> None:
        if self._rounds == 0:
            self._known[self._match(config)] = None

    def _is_known(self, config: dict[str, Any]) -> bool:
        match = self._match(config)
        return match in self._known or match in self._failed

    def _match(self, config: dict[str, Any]) -> str:
        return config_to_match_string(config, self.config_space)

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "random_seed": self.random_seed,
            "size": self._size,
            "rounds": self._rounds,
            "position": self._position,
            "fruitful": self._fruitful,
            "known": list(self._known),
            "failed": list(self._failed),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["size"] != self._size:
            raise ValueError(
                f"the state is that of a grid of {state['size']} configurations, this one has {self._size}: space and "
                "num_samples must be the same"
            )
        super().load_state_dict(state)
        self.random_seed = state["random_seed"]
        self._order = None
        self._rounds = state["rounds"]
        self._position = state["position"]
        self._fruitful = state["fruitful"]
        self._known = dict.fromkeys(state["known"])
        self._failed = dict.fromkeys(state["failed"])
        self._known_trials = set()


def _check_num_samples(num_samples: Mapping[str, int] | None, config_space: dict[str, Any]) -> dict[str, int]:
    """Return the number of values of every float and integer range that is not finite by itself."""
    if num_samples is None:
        num_samples = {}
    if not isinstance(num_samples, Mapping):
        raise TypeError(f"num_samples must be a dict from names to numbers of grid values, got {num_samples!r}")
    ranges = {name: domain for name, domain in config_space.items() if isinstance(domain, Float | Integer)}
    for name, n in num_samples.items():
        if name not in config_space:
            raise ValueError(f"num_samples: {name!r} is not in config_space{closest(name, ranges)}")
        if name not in ranges:
            what = "all its values are on the grid" if isinstance(config_space[name], Domain) else "it is a constant"
            raise ValueError(
                f"num_samples: {name!r} is no float or integer range ({what}); its number of values cannot be set"
            )
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"num_samples[{name!r}] must be a positive int, got {n!r}")
        if not 1 <= n <= _MOST_SAMPLES:
            raise ValueError(f"num_samples[{name!r}] must be an int in [1, 2**40], got {n}")
        size = len(ranges[name])
        if 0 < size < n:
            logger.warning("num_samples[%r]=%d: %r has %d values, all of them are used", name, n, ranges[name], size)
    default = [
        name
        for name, domain in ranges.items()
        if isinstance(domain, Float) and name not in num_samples and not 0 < len(domain) <= _DEFAULT_SAMPLES
    ]
    if default:
        logger.warning(
            "grid search takes %d values of %s; num_samples={%r: ...} sets their number",
            _DEFAULT_SAMPLES,
            ", ".join(default),
            default[0],
        )
    return {name: num_samples.get(name, _DEFAULT_SAMPLES) for name in ranges}


def _axes(config_space: dict[str, Any], num_samples: dict[str, int]) -> dict[str, Sequence[Any]]:
    """Return the values of every hyperparameter, the outermost loop first."""
    domains = {name: domain for name, domain in config_space.items() if isinstance(domain, Domain)}
    names = [name for name in reversed(domains) if name not in num_samples] + list(num_samples)
    return {name: grid_values(domains[name], num_samples.get(name)) for name in names}
