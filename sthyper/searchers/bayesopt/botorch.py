"""Bayesian optimisation by BoTorch's own recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.searchers.bayesopt.searcher import BayesianOptimizationSearcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from sthyper.schedulers.options import SearcherArguments
    from sthyper.searchers.bayesopt.suggest import Found, ModelSuggester, SurrogateData

__all__ = ["BoTorchOptions", "BoTorchSearcher"]

_ACQUISITIONS = ("logei", "ei")


@dataclass(frozen=True)
class BoTorchOptions:
    """``search_options`` of ``searcher="botorch"``.

    Args:
        num_init_random: So many configurations come from ``points_to_evaluate`` and random search before the model is
            used; at least 2.
        no_fantasizing: Whether pending trials are ignored (but not suggested again).
        max_num_observations: With as many observations the model sees a random part of so many; pending trials are
            ignored then. ``None``: never.
        input_warping: Whether all inputs are warped.
        acq_function: ``"logei"``: ``qLogExpectedImprovement``, or ``"ei"``: ``qExpectedImprovement``.
        allow_duplicates: Whether a configuration may be suggested again. Pending and failed ones are not.
        restrict_configurations: Suggest from this list only.
        debug_log: Whether to log the reason of each suggestion at level INFO.
        random_seed: Seed in place of the scheduler's.
        outcome_constraints: Conditions on reported metrics, such as ``["memory <= 8e9"]``: the acquisition function is
            weighted with the probability that they hold, and improves on the best feasible target.
        learn_feasibility: Whether configurations that resemble failed ones are avoided, in the same way.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of range or unknown.
    """

    num_init_random: int = 3
    no_fantasizing: bool = False
    max_num_observations: int | None = 200
    input_warping: bool = True
    acq_function: str = "logei"
    allow_duplicates: bool = False
    restrict_configurations: list[dict[str, Any]] | None = None
    debug_log: bool = False
    random_seed: int | None = None
    outcome_constraints: list[str] | None = None
    learn_feasibility: bool = False

    def __post_init__(self) -> None:
        from sthyper.errors import closest

        self.general()  # checks most of them
        if self.num_init_random < 2:
            raise ValueError(f"num_init_random must be at least 2, got {self.num_init_random!r}")
        largest = self.max_num_observations
        if largest is not None and (isinstance(largest, bool) or not isinstance(largest, int)):
            raise TypeError(f"max_num_observations must be an int of at least 2 or None, got {largest!r}")
        if largest is not None and largest < 2:
            raise ValueError(f"max_num_observations must be at least 2, or None, got {largest!r}")
        if self.acq_function not in _ACQUISITIONS:
            raise ValueError(
                f"acq_function={self.acq_function!r} is unknown{closest(self.acq_function, _ACQUISITIONS)}; known are "
                f"{list(_ACQUISITIONS)}"
            )

    def general(self) -> BayesOptOptions:
        """Return those that mean the same for :class:`BayesianOptimizationSearcher`."""
        return BayesOptOptions(
            num_init_random=self.num_init_random,
            no_fantasizing=self.no_fantasizing,
            input_warping=self.input_warping,
            target_transform="standardize",
            allow_duplicates=self.allow_duplicates,
            restrict_configurations=self.restrict_configurations,
            debug_log=self.debug_log,
            random_seed=self.random_seed,
            outcome_constraints=self.outcome_constraints,
            learn_feasibility=self.learn_feasibility,
        )

    def build(self, arguments: SearcherArguments) -> BoTorchSearcher:
        """Make the searcher."""
        return BoTorchSearcher(
            arguments.config_space,
            metric=arguments.metric,
            mode=arguments.mode,
            points_to_evaluate=arguments.points_to_evaluate,
            options=self,
        )


class BoTorchSearcher(BayesianOptimizationSearcher):
    """Suggests what BoTorch's usual recipe suggests, to compare with.

    A ``SingleTaskGP`` with warped inputs and standardised targets is fitted by ``fit_gpytorch_mll`` for every
    suggestion; ``qLogExpectedImprovement`` with pending trials is optimised by ``optimize_acqf`` over the encoded
    space, and the result rounded to a configuration. If that must not be suggested, the best of 100 random
    configurations that may be is; if anything fails, a random one, with a warning.

    Args:
        config_space: Configuration space.
        metric: Name of the metric; a scheduler sets it if it is ``None``.
        mode: ``"min"`` or ``"max"``.
        points_to_evaluate: Configurations to suggest first; partial ones are completed by the mid-point rule.
            ``None`` is one configuration of mid-points, ``[]`` none.
        options: The options.

    Raises:
        ConfigSpaceError: If the space, or a configuration that is given, cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If ``mode`` is unknown.

    References:
        Balandat et al., "BoTorch: A Framework for Efficient Monte-Carlo Bayesian Optimization", NeurIPS 2020
    """

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str | None = None,
        mode: str = "min",
        points_to_evaluate: list[dict[str, Any]] | None = None,
        options: BoTorchOptions | None = None,
    ) -> None:
        options = BoTorchOptions() if options is None else options
        if not isinstance(options, BoTorchOptions):
            raise TypeError(f"options must be BoTorchOptions(...), got {options!r}")
        super().__init__(config_space, metric, mode, points_to_evaluate, options.general())
        self.botorch_options = options

    def _make_suggester(self) -> ModelSuggester:
        from sthyper.searchers.bayesopt.native import make_native_suggester

        return make_native_suggester(self._make_encoder(), self.options, self._suggester_seed())

    def _search(
        self,
        data: SurrogateData,
        allowed: Callable[[dict[str, Any]], bool],
        restricted: list[dict[str, Any]] | None,
    ) -> Found | None:
        from sthyper.searchers.bayesopt.native import suggest_natively

        return suggest_natively(self.suggester, data, allowed, restricted, self.botorch_options)


def __getattr__(name: str) -> Any:
    if name == "BotorchSearcher":
        import warnings

        warnings.warn("BotorchSearcher is now called BoTorchSearcher", DeprecationWarning, stacklevel=2)
        return BoTorchSearcher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
