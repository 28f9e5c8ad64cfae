"""Options of Bayesian optimisation, by the names that users of Syne Tune know."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

from sthyper.config_space import non_constant_hyperparameter_keys
from sthyper.errors import closest
from sthyper.searchers.bayesopt.constraints import OutcomeConstraint, parse_constraints

if TYPE_CHECKING:
    from sthyper.schedulers.options import SearcherArguments
    from sthyper.searchers.bayesopt.searcher import BayesianOptimizationSearcher

__all__ = ["BayesOptOptions"]

logger = logging.getLogger(__name__)

_ACQUISITIONS = {
    "logei": ("jitter",),
    "ei": ("jitter",),
    "nei": (),
    "lognei": (),
    "lcb": ("kappa",),
    "ucb": ("kappa",),
    "pi": ("jitter",),
    "thompson": (),
    "thompson_indep": (),
}
_SCORINGS = ("acq_func", "thompson_indep")
_KERNELS = ("matern52-ard", "matern52-noard", "rbf-ard", "rbf-noard")
_CATEGORICAL = ("one-hot", "exchangeable")
_TRANSFORMS = ("taillog", "halflog", "standardize", "identity")
_TRANSFER = ("matern52_product", "matern52_same")
_INCUMBENTS = ("observed", "model")
_BATCH = ("fantasies", "joint")

_PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "num_init_random": None,
        "num_init_candidates": 256,
        "num_local_candidates": 256,
        "initial_scoring": "acq_func",
        "opt_maxiter": 100,
        "opt_warmstart": True,
        "acq_function": "logei",
        "input_warping": True,
        "target_transform": "taillog",
        "max_size_data_for_model": None,
        "incumbent": "observed",
        "escape_stagnation": True,
        "local_search_starts": 3,
    },
    "syne-tune": {
        "num_init_random": 3,
        "num_init_candidates": 250,
        "num_local_candidates": 0,
        "initial_scoring": "thompson_indep",
        "opt_maxiter": 50,
        "opt_warmstart": False,
        "acq_function": "ei",
        "input_warping": False,
        "target_transform": "standardize",
        "max_size_data_for_model": 500,
        "incumbent": "model",
        "escape_stagnation": False,
        "local_search_starts": 1,
    },
}
"""What an option that is not given is, by preset."""

_UNSET: Any = "preset"
_LEAST_INITIAL, _MOST_INITIAL = 3, 10
_OF_HYPERBAND = (
    *("model", "gp_resource_kernel", "resource_acq", "resource_acq_bohb_threshold", "opt_skip_num_max_resource"),
    *("separate_noise_variances", "issm_gamma_one", "expdecay_normalize_inputs"),
    "hypertune_distribution_num_samples",
)
_OF_THE_PROCESS = (
    *("opt_nstarts", "opt_maxiter", "opt_warmstart", "opt_verbose", "target_transform", "boxcox_transform"),
    *("normalize_targets", "input_warping", "gp_base_kernel", "categorical_kernel", "mcmc_samples"),
)
_OF_COSTS = ("cost_attr", "cost_model", "exponent_cost", "resource_attr")


@dataclass(frozen=True)
class BayesOptOptions:
    """``search_options`` of ``searcher="bayesopt"``.

    Options whose default is ``"preset"`` are chosen by the preset.

    Args:
        preset: ``"default"``: what does best in the project's benchmark; ``"syne-tune"``: kernel, priors, bounds,
            acquisition function and sizes of Syne Tune's Bayesian optimisation.
        num_init_random: So many configurations come from ``points_to_evaluate`` and random search (the same ones as
            of :class:`~sthyper.searchers.RandomSearcher` with the same seed) before the model is used. ``None``: one
            more than there are hyperparameters, as many as a linear model needs, but from 3 to 10.
        num_init_candidates: Number of configurations that fill the space and are scored.
        num_local_candidates: Number of configurations around the best ones that are scored as well.
        initial_scoring: ``"acq_func"``, or ``"thompson_indep"``: by a draw from each marginal posterior.
        skip_local_optimization: Whether the best scored configuration is suggested as it is.
        local_search_starts: From how many of the best scored ones local searches start.
        num_fantasy_samples: Number of fantasies of the results of pending trials.
        no_fantasizing: Whether pending trials are ignored (but not suggested again).
        pending_strategy: ``"fantasies"``, or ``"joint"``: the acquisition function is the expected improvement of the
            new configuration and all pending ones together, by quasi-Monte-Carlo (``"logei"`` and ``"ei"`` only).
        opt_nstarts: Number of starts of a full fit of the model.
        opt_maxiter: L-BFGS iterations of each.
        opt_warmstart: Whether a fit starts from the last optimum.
        opt_verbose: Whether to log fits at level INFO.
        opt_debug_writer: Not supported; must be false.
        opt_skip_init_length: With fewer observations the model is fitted for every new one.
        opt_skip_period: From then on for every so-manieth new one; in between it is only conditioned.
        normalize_targets: Whether targets are standardised; without, ``target_transform`` is ``"identity"``.
        target_transform: ``"taillog"``, ``"halflog"``, ``"standardize"`` or ``"identity"``; see
            :mod:`sthyper.surrogates.transforms`.
        boxcox_transform: Whether targets, which must be positive, get a Box-Cox transform with a fitted power.
        input_warping: Whether numeric inputs are warped.
        gp_base_kernel: ``"matern52-ard"``, ``"matern52-noard"``, ``"rbf-ard"`` or ``"rbf-noard"``.
        categorical_kernel: ``"one-hot"`` or ``"exchangeable"``.
        mcmc_samples: 0 for a MAP fit; else the number of samples of all parameters over which the acquisition function
            is averaged (slice sampling).
        acq_function: ``"logei"``, ``"ei"``, ``"lognei"`` or ``"nei"`` (improvement on noise-free values), ``"lcb"`` or
            ``"ucb"`` (the same), ``"pi"``, ``"thompson"`` (a function drawn from the posterior) or
            ``"thompson_indep"`` (a draw at each point by itself).
        acq_function_kwargs: Its arguments: ``kappa`` of ``"lcb"``; ``jitter``, in units of the metric, of ``"logei"``,
            ``"ei"`` and ``"pi"``.
        incumbent: What is to be improved on: the best ``"observed"`` target, or the least mean of the ``"model"`` over
            observed and pending configurations, which noise does not fool.
        escape_stagnation: Whether, when trials stop improving, every second suggestion of ``"logei"``, ``"ei"`` and
            ``"pi"`` has to expect an improvement that is worth a trial; see
            :mod:`sthyper.searchers.bayesopt.stagnation`.
        max_size_data_for_model: With more observations the model sees the best and random others; ``None``: never.
        max_size_top_fraction: Part of them that are the best.
        allow_duplicates: Whether a configuration may be suggested again. Failed ones are not; pending ones only if
            nothing else of a finite space is left.
        restrict_configurations: Suggest from this list only.
        map_reward: For mode ``"max"``: the target is ``"<a>_minus_x"``, ``"minus_x"`` or what a callable returns; it
            matters for ``boxcox_transform``. Default ``"1_minus_x"``.
        canonicalize: Maps a configuration to one that stands for all that differ from it in inactive values only.
        outcome_constraints: Conditions on reported metrics, such as ``"memory <= 8e9"``.
        learn_feasibility: Whether configurations that resemble failed ones are avoided.
        transfer_learning_task_attr: Name of the hyperparameter that tells the task.
        transfer_learning_active_task: Its value in this experiment.
        transfer_learning_active_config_space: Sub-ranges of this experiment.
        transfer_learning_model: ``"matern52_product"`` or ``"matern52_same"``.
        surrogate: A model in place of the Gaussian process: a :class:`~sthyper.surrogates.Surrogate`, a class of
            BoTorch models, a callable ``(X, Y) -> Model``, or a scikit-learn regressor. A copy of the object is used.
        debug_log: Whether to log the reason of each suggestion at level INFO.
        random_seed: Seed in place of the scheduler's.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of range or unknown, or contradicts another.
    """

    preset: str = "default"
    num_init_random: int | None = _UNSET
    num_init_candidates: int = _UNSET
    num_local_candidates: int = _UNSET
    initial_scoring: str = _UNSET
    skip_local_optimization: bool = False
    local_search_starts: int = _UNSET
    num_fantasy_samples: int = 20
    no_fantasizing: bool = False
    pending_strategy: str = "fantasies"
    opt_nstarts: int = 2
    opt_maxiter: int = _UNSET
    opt_warmstart: bool = _UNSET
    opt_verbose: bool = False
    opt_debug_writer: bool = False
    opt_skip_init_length: int = 150
    opt_skip_period: int = 1
    normalize_targets: bool = True
    target_transform: str = _UNSET
    boxcox_transform: bool = False
    input_warping: bool = _UNSET
    gp_base_kernel: str = "matern52-ard"
    categorical_kernel: str = "one-hot"
    mcmc_samples: int = 0
    acq_function: str = _UNSET
    acq_function_kwargs: Mapping[str, float] | None = None
    incumbent: str = _UNSET
    escape_stagnation: bool = _UNSET
    max_size_data_for_model: int | None = _UNSET
    max_size_top_fraction: float = 0.25
    allow_duplicates: bool = False
    restrict_configurations: list[dict[str, Any]] | None = None
    map_reward: str | Callable[[float], float] | None = None
    canonicalize: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    outcome_constraints: list[str] | None = None
    learn_feasibility: bool = False
    transfer_learning_task_attr: str | None = None
    transfer_learning_active_task: Any = None
    transfer_learning_active_config_space: dict[str, Any] | None = None
    transfer_learning_model: str = "matern52_product"
    surrogate: Any = None
    debug_log: bool = False
    random_seed: int | None = None

    def __post_init__(self) -> None:
        self._check_choice("preset", tuple(_PRESETS))
        given = {f.name for f in fields(self) if self._given(f.name)}
        for name, value in _PRESETS[self.preset].items():
            if name not in given:
                object.__setattr__(self, name, value)
        self._check_numbers()
        for name, known in (
            ("initial_scoring", _SCORINGS),
            ("gp_base_kernel", _KERNELS),
            ("categorical_kernel", _CATEGORICAL),
            ("acq_function", tuple(_ACQUISITIONS)),
            ("incumbent", _INCUMBENTS),
            ("target_transform", _TRANSFORMS),
            ("transfer_learning_model", _TRANSFER),
            ("pending_strategy", _BATCH),
        ):
            self._check_choice(name, known)
        for name in (
            *("skip_local_optimization", "no_fantasizing", "opt_warmstart", "opt_verbose", "opt_debug_writer"),
            *("normalize_targets", "boxcox_transform", "input_warping", "allow_duplicates", "learn_feasibility"),
            "escape_stagnation",
            "debug_log",
        ):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        self._check_acquisition()
        self._check_targets(given)
        self._check_feasibility(given)
        self._check_others(given)

    def _given(self, name: str) -> bool:
        value = getattr(self, name)
        return not (isinstance(value, str) and value == _UNSET)

    def _check_choice(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown{closest(value, known)}; known are {list(known)}")

    def _check_numbers(self) -> None:
        if self.num_init_random is not None:
            _check_int("num_init_random", self.num_init_random, 0)
        for name, least in (
            ("num_init_candidates", 2),
            ("num_local_candidates", 0),
            ("local_search_starts", 1),
            ("num_fantasy_samples", 1),
            ("opt_nstarts", 1),
            ("opt_maxiter", 1),
            ("opt_skip_init_length", 0),
            ("opt_skip_period", 1),
            ("mcmc_samples", 0),
        ):
            _check_int(name, getattr(self, name), least)
        if self.max_size_data_for_model is not None:
            _check_int("max_size_data_for_model", self.max_size_data_for_model, 1)
        fraction = self.max_size_top_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            raise ValueError(f"max_size_top_fraction must be a number in [0, 1], got {fraction!r}")
        if self.random_seed is not None:
            _check_int("random_seed", self.random_seed, 0)

    def _check_acquisition(self) -> None:
        kwargs = {} if self.acq_function_kwargs is None else self.acq_function_kwargs
        if not isinstance(kwargs, Mapping):
            raise TypeError(f"acq_function_kwargs must be a dict, got {kwargs!r}")
        if self.pending_strategy == "joint":
            if self.acq_function not in ("logei", "ei"):
                raise ValueError(
                    f"pending_strategy='joint' needs acq_function 'logei' or 'ei', got {self.acq_function!r}"
                )
            if self.no_fantasizing:
                raise ValueError("pending_strategy='joint' and no_fantasizing=True exclude each other")
        known = _ACQUISITIONS[self.acq_function]
        for name, value in kwargs.items():
            if name not in known:
                raise ValueError(
                    f"acq_function_kwargs: {name!r} is no argument of {self.acq_function!r}{closest(name, known)}; "
                    f"it has {list(known)}"
                )
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise TypeError(f"acq_function_kwargs: {name} must be a finite number, got {value!r}")
            if name == "kappa" and not value > 0:
                raise ValueError(f"acq_function_kwargs: kappa must be positive, got {value!r}")
            if name == "jitter" and value < 0:
                raise ValueError(f"acq_function_kwargs: jitter must not be negative, got {value!r}")

    def _check_targets(self, given: set[str]) -> None:
        if self.boxcox_transform and "target_transform" in given:
            raise ValueError("boxcox_transform=True and target_transform exclude each other")
        if not self.normalize_targets:
            if self.boxcox_transform or ("target_transform" in given and self.target_transform != "identity"):
                raise ValueError("normalize_targets=False excludes boxcox_transform and target_transform")
            object.__setattr__(self, "target_transform", "identity")
        if self.boxcox_transform:
            object.__setattr__(self, "target_transform", "boxcox")
        _check_map_reward(self.map_reward)

    def _check_feasibility(self, given: set[str]) -> None:
        if not self.constraints and not self.learn_feasibility:
            return
        # Draws from the posterior of the target alone know nothing of what is feasible.
        if "initial_scoring" in given and self.initial_scoring != "acq_func":
            raise ValueError(
                f"initial_scoring={self.initial_scoring!r} cannot be used with constraints, only 'acq_func' can"
            )
        object.__setattr__(self, "initial_scoring", "acq_func")

    @property
    def constraints(self) -> tuple[OutcomeConstraint, ...]:
        """The constraints on reported metrics."""
        return parse_constraints(self.outcome_constraints)

    @property
    def required_metrics(self) -> tuple[str, ...]:
        """Metrics that every report must have, beside the one that is optimised."""
        return ()

    def _check_others(self, given: set[str]) -> None:
        if self.opt_debug_writer:
            raise ValueError(
                "opt_debug_writer=True is not supported; debug_log=True logs the reason of each suggestion"
            )
        if self.restrict_configurations is not None:
            object.__setattr__(self, "initial_scoring", "acq_func")
            object.__setattr__(self, "skip_local_optimization", True)
        if self.canonicalize is not None and not callable(self.canonicalize):
            raise TypeError(
                f"canonicalize must be a callable that maps a configuration to one, got {self.canonicalize!r}"
            )
        task, active = self.transfer_learning_task_attr, self.transfer_learning_active_task
        if (task is None) != (active is None):
            raise ValueError("transfer_learning_task_attr and transfer_learning_active_task belong together")
        if task is None and self.transfer_learning_active_config_space is not None:
            raise ValueError("transfer_learning_active_config_space needs transfer_learning_task_attr")
        if task is not None:
            if "input_warping" in given and self.input_warping:
                logger.warning("input_warping=True is left out: the models for transfer learning do not warp inputs")
            object.__setattr__(self, "input_warping", False)
        if self.boxcox_transform and self.mcmc_samples:
            raise ValueError("boxcox_transform is fitted by MAP, it excludes mcmc_samples")
        if self.surrogate is not None:
            defaults = {f.name: f.default for f in fields(self)}
            for name in _OF_THE_PROCESS:
                changed = name in given if name in _PRESETS["default"] else getattr(self, name) != defaults[name]
                if changed:
                    raise ValueError(f"{name} is an option of the Gaussian process, it has no effect with surrogate")
        if task is None and self.transfer_learning_model != "matern52_product":
            raise ValueError("transfer_learning_model needs transfer_learning_task_attr")

    @staticmethod
    def explain(key: str) -> str | None:
        """Return why an option is none of this searcher's, for those of its relatives."""
        if key in _OF_HYPERBAND:
            return (
                f"{key!r} is an option of multi-fidelity models (MOBSTER, Hyper-Tune), which searcher='bayesopt' does "
                "not have yet"
            )
        if key in _OF_COSTS:
            return f"{key!r} is an option of searcher='bayesopt_cost', which takes costs into account"
        return None

    def for_space(self, config_space: Mapping[str, Any]) -> Self:
        """Return options whose ``num_init_random`` is a number, for a configuration space."""
        if self.num_init_random is not None:
            return self
        resolved = copy(self)
        p = len(non_constant_hyperparameter_keys(config_space))
        object.__setattr__(resolved, "num_init_random", min(max(p + 1, _LEAST_INITIAL), _MOST_INITIAL))
        return resolved

    def changed(self, **changes: Any) -> BayesOptOptions:
        """Return options with changes."""
        return replace(self, **changes)

    def build(self, arguments: SearcherArguments) -> BayesianOptimizationSearcher:
        """Make the searcher."""
        from sthyper.searchers.bayesopt.searcher import BayesianOptimizationSearcher

        return BayesianOptimizationSearcher(
            arguments.config_space,
            metric=arguments.metric,
            mode=arguments.mode,
            points_to_evaluate=arguments.points_to_evaluate,
            options=self,
        )


def _check_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int of at least {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")


def _check_map_reward(value: Any) -> None:
    if value is None or callable(value):
        return
    if isinstance(value, str):
        try:
            reward_constant(value)
        except ValueError:
            pass
        else:
            return
    raise ValueError(f"map_reward must be 'minus_x', '<a>_minus_x' such as '1_minus_x', or a callable, got {value!r}")


def reward_constant(name: str) -> float:
    """Return a of ``"<a>_minus_x"``, 0 of ``"minus_x"``.

    Raises:
        ValueError: If the name has another form.
    """
    if name == "minus_x":
        return 0.0
    if not name.endswith("_minus_x"):
        raise ValueError(name)
    constant = float(name.removesuffix("_minus_x"))
    if not math.isfinite(constant):
        raise ValueError(name)
    return constant
