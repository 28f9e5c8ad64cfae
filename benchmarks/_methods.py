"""The searchers that the benchmarks compare, all behind the same two calls.

Every one starts as it does by default. Packages of peers (``requirements.txt``) are imported when they are used.
"""

from __future__ import annotations

import ast
import os
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from sthyper.config_space import Categorical, Domain, Integer, is_log_space

METHODS = ["ours", "random", "optuna-tpe", "optuna-gp", "botorch"]
PEERS = ["optuna-tpe", "optuna-gp", "botorch", "botorch-mixed"]


def one_thread() -> None:
    """Have torch and the linear algebra of NumPy and SciPy compute on one thread from here on."""
    import scipy.linalg  # noqa: F401  (loads its own copy of the library whose threads are limited)
    import torch
    from threadpoolctl import threadpool_limits

    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    torch.set_num_threads(1)
    threadpool_limits(1)


class Method(ABC):
    """A searcher that is asked for a configuration and told its value, in turns."""

    packages: tuple[str, ...] = ()

    @abstractmethod
    def ask(self) -> dict[str, Any]:
        """Return what to evaluate next."""

    @abstractmethod
    def tell(self, config: dict[str, Any], value: float) -> None:
        """Take the value of a configuration: what was asked last, or any other."""

    def state(self) -> dict[str, Any] | None:
        """Return the state, ``None`` if it cannot be saved."""
        return None

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Raises:
            TypeError: If it cannot be saved.
        """
        raise TypeError(f"the state of {type(self).__name__} cannot be saved")

    @classmethod
    def versions(cls) -> str:
        """Return names and versions of the packages."""
        return ", ".join(f"{name} {version(name)}" for name in cls.packages)


def make_method(text: str, space: dict[str, Any], seed: int) -> Method:
    """Return a method.

    Args:
        text: One of :data:`METHODS` or :data:`PEERS`, or the name of another class of ``sthyper.baselines``; options
            of ours may follow, ``ours:input_warping=False,points_to_evaluate=[]``.
        space: Configuration space.
        seed: Its random seed.

    Raises:
        ValueError: If the name is unknown, or options are given to a peer.
    """
    name, options = parse_method(text)
    if name in PEERS:
        if options:
            raise ValueError(f"{name} takes no options, got {options}")
        is_botorch = name.startswith("botorch")
        return PlainBoTorch(space, seed, name == "botorch-mixed") if is_botorch else Optuna(space, seed, name)
    return Ours(_OURS.get(name, name), space, seed, options)


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``name:key=value,key=value``; values are Python literals or else texts.

    Raises:
        ValueError: If an option has no value.
    """
    name, _, rest = text.partition(":")
    options = {}
    for part in re.split(r",(?=\w+=)", rest) if rest else []:
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"options are name=value, got {part!r} in {text!r}")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return name, options


# ---- ours --------------------------------------------------------------------------------------------

_OURS = {"ours": "BayesianOptimization", "random": "RandomSearch"}


class Ours(Method):
    """A class of ``sthyper.baselines`` in a loop of the caller.

    Args:
        name: Name of the class.
        space: Configuration space.
        seed: Its random seed.
        options: ``search_options``, and ``points_to_evaluate`` if it is there.

    Raises:
        ValueError: If there is no such class.
    """

    packages = ("sthyper", "torch", "gpytorch", "botorch")

    def __init__(self, name: str, space: dict[str, Any], seed: int, options: dict[str, Any]) -> None:
        import sthyper.baselines
        from sthyper.schedulers import AskTellScheduler

        if name not in sthyper.baselines.__all__:
            known = dict.fromkeys([*METHODS, *PEERS, *sthyper.baselines.__all__])
            raise ValueError(f"there is no method {name!r}; there are {', '.join(known)}")
        search_options = {key: value for key, value in options.items() if key != "points_to_evaluate"}
        base = getattr(sthyper.baselines, name)(
            space,
            metric="value",
            mode="min",
            random_seed=seed,
            search_options=search_options or None,
            points_to_evaluate=options.get("points_to_evaluate"),
        )
        self._scheduler = AskTellScheduler(base)
        self._asked: Any = None

    def ask(self) -> dict[str, Any]:
        self._asked = self._scheduler.ask()
        if self._asked is None:
            raise RuntimeError("nothing is left to suggest")
        return dict(self._asked.config)

    def tell(self, config: dict[str, Any], value: float) -> None:
        if self._asked is not None and config == self._asked.config:
            self._scheduler.tell(self._asked, value=value, done=True)
            self._asked = None
        else:
            self._scheduler.add_result(config, {"value": value})

    def state(self) -> dict[str, Any] | None:
        return self._scheduler.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        self._scheduler.load_state_dict(state)


# ---- peers -------------------------------------------------------------------------------------------


class Optuna(Method):
    """A sampler of Optuna with its defaults.

    Args:
        space: Configuration space.
        seed: Its random seed.
        name: ``"optuna-tpe"`` or ``"optuna-gp"``.
    """

    packages = ("optuna",)

    def __init__(self, space: dict[str, Any], seed: int, name: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        samplers = {"optuna-tpe": optuna.samplers.TPESampler, "optuna-gp": optuna.samplers.GPSampler}
        self._optuna = optuna
        self._study = optuna.create_study(direction="minimize", sampler=samplers[name](seed=seed))
        self._distributions = {key: self._distribution(domain) for key, domain in space.items()}
        self._asked: Any = None

    def _distribution(self, domain: Domain) -> Any:
        of = self._optuna.distributions
        if isinstance(domain, Categorical):
            return of.CategoricalDistribution(domain.categories)
        make = of.IntDistribution if isinstance(domain, Integer) else of.FloatDistribution
        return make(domain.lower, domain.upper, log=is_log_space(domain))

    def ask(self) -> dict[str, Any]:
        self._asked = self._study.ask(self._distributions)
        return dict(self._asked.params)

    def tell(self, config: dict[str, Any], value: float) -> None:
        if self._asked is not None and config == self._asked.params:
            self._study.tell(self._asked, value)
            self._asked = None
        else:
            create = self._optuna.trial.create_trial
            self._study.add_trial(create(params=config, distributions=self._distributions, value=value))


class PlainBoTorch(Method):
    """What BoTorch's tutorials put together: its default GP, LogEI and its own optimiser, after 10 Sobol points.

    Numbers are scaled to the unit cube, on the log scale where declared. By default categoricals are one-hot columns,
    and the continuous optimum is rounded. As ``"botorch-mixed"`` discrete values are searched as such by
    ``optimize_acqf_mixed_alternating`` (integers with more than 20 values are rounded), and with categoricals the model
    is ``MixedSingleTaskGP``: seconds a suggestion. Both optimise from 10 starts, chosen among 512 points.

    Args:
        space: Configuration space.
        seed: Its random seed; also that of torch's global state, from which BoTorch draws.
        mixed: Whether discrete values are searched as such.
    """

    packages = ("botorch", "gpytorch", "torch")
    initial = 10

    def __init__(self, space: dict[str, Any], seed: int, mixed: bool) -> None:
        import torch

        self._torch = torch
        self._domains: dict[str, Any] = dict(space)
        self._mixed = mixed
        torch.manual_seed(seed)
        sobol = torch.quasirandom.SobolEngine(len(space), scramble=True, seed=seed)
        self._first = sobol.draw(self.initial, dtype=torch.float64).tolist()
        self._x: list[list[float]] = []
        self._y: list[float] = []

    def ask(self) -> dict[str, Any]:
        if len(self._y) < self.initial:
            first = zip(self._domains.items(), self._first[len(self._y)], strict=True)
            return {key: _value_at(domain, u) for (key, domain), u in first}
        return self._suggest_mixed() if self._mixed else self._suggest()

    def tell(self, config: dict[str, Any], value: float) -> None:
        row: list[float] = []
        for key, domain in self._domains.items():
            if not isinstance(domain, Categorical):
                row.append(_position(domain, config[key]))
            elif self._mixed:
                row.append(float(domain.categories.index(config[key])))
            else:
                row += [float(category == config[key]) for category in domain.categories]
        self._x.append(row)
        self._y.append(value)

    def _suggest(self) -> dict[str, Any]:
        from botorch.models import SingleTaskGP
        from botorch.optim import optimize_acqf

        x, y, bounds = self._tensors()
        with _quiet():
            acquisition = self._acquisition(SingleTaskGP(x, y), y)
            found, _ = optimize_acqf(acquisition, bounds, q=1, num_restarts=10, raw_samples=512)
        row, config = found[0].tolist(), {}
        for key, domain in self._domains.items():
            if isinstance(domain, Categorical):
                scores, row = row[: len(domain.categories)], row[len(domain.categories) :]
                config[key] = domain.categories[scores.index(max(scores))]
            else:
                config[key], row = _value_at(domain, row[0]), row[1:]
        return config

    def _suggest_mixed(self) -> dict[str, Any]:
        from botorch.models import MixedSingleTaskGP, SingleTaskGP
        from botorch.optim import optimize_acqf_mixed_alternating

        x, y, bounds = self._tensors()
        categorical, discrete = {}, {}
        for column, domain in enumerate(self._domains.values()):
            if isinstance(domain, Categorical):
                categorical[column] = [float(i) for i in range(len(domain.categories))]
                bounds[1, column] = categorical[column][-1]
            elif isinstance(domain, Integer) and domain.upper - domain.lower < 20:
                discrete[column] = [_position(domain, value) for value in range(domain.lower, domain.upper + 1)]
        with _quiet():
            model = MixedSingleTaskGP(x, y, cat_dims=list(categorical)) if categorical else SingleTaskGP(x, y)
            found, _ = optimize_acqf_mixed_alternating(
                self._acquisition(model, y), bounds, discrete, categorical, num_restarts=10, raw_samples=512
            )
        cells = zip(self._domains.items(), found[0].tolist(), strict=True)
        return {
            key: domain.categories[round(u)] if isinstance(domain, Categorical) else _value_at(domain, u)
            for (key, domain), u in cells
        }

    def _tensors(self) -> tuple[Any, Any, Any]:
        """Return points, values to be maximised, and the bounds of the unit cube."""
        x = self._torch.tensor(self._x, dtype=self._torch.float64)
        y = -self._torch.tensor(self._y, dtype=self._torch.float64)[:, None]
        return x, y, self._torch.stack([self._torch.zeros_like(x[0]), self._torch.ones_like(x[0])])

    def _acquisition(self, model: Any, y: Any) -> Any:
        from botorch.acquisition import LogExpectedImprovement
        from botorch.fit import fit_gpytorch_mll
        from gpytorch.mlls import ExactMarginalLogLikelihood

        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        return LogExpectedImprovement(model, best_f=y.max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore what BoTorch says of fits and of data that are not standardised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _position(domain: Any, value: float) -> float:
    """Return where a number is in its range, from 0 to 1."""
    low, high, at = (domain.scaling.to_internal(x) for x in (domain.lower, domain.upper, value))
    return (at - low) / (high - low)


def _value_at(domain: Any, u: float) -> Any:
    """Return the value at a position from 0 to 1; of categories each has an equal part."""
    if isinstance(domain, Categorical):
        return domain.categories[min(int(u * len(domain.categories)), len(domain.categories) - 1)]
    scaling = domain.scaling
    low, high = scaling.to_internal(domain.lower), scaling.to_internal(domain.upper)
    value = min(max(scaling.from_internal(low + u * (high - low)), domain.lower), domain.upper)
    return round(value) if isinstance(domain, Integer) else float(value)
