"""Models of the user's as surrogates."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import MixedSingleTaskGP, MultiTaskGP, SingleTaskGP
from botorch.models.model import Model
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from sklearn.cluster import KMeans
from sklearn.linear_model import BayesianRidge, LogisticRegression
from torch import Tensor

from sthyper.baselines import BayesianOptimization
from sthyper.config_space import choice, uniform
from sthyper.schedulers import AskTellScheduler
from sthyper.searchers.bayesopt import BayesianOptimizationSearcher, BayesOptOptions
from sthyper.surrogates.base import Surrogate
from sthyper.surrogates.custom import BoTorchSurrogate, CallableSurrogate, as_surrogate
from sthyper.surrogates.inputs import InputStructure
from sthyper.surrogates.sklearn import SKLearnSurrogate
from sthyper.testing._checks import global_generators_untouched

SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "y": uniform(0.0, 1.0), "epochs": 3}


def data(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, dtype=torch.float64, generator=generator)
    return X, 100.0 + 30.0 * (X - 0.3).square().sum(-1)


class MySurrogate(Surrogate):
    """The class of the docstring."""

    def build(self, X: Tensor, Z: Tensor, refit: bool) -> Model:
        model = SingleTaskGP(X, Z.unsqueeze(-1), covar_module=ScaleKernel(RBFKernel()))
        if refit:
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
            self.fitted = dict(model.named_parameters())
        model.load_state_dict(self.fitted, strict=False)
        return model


def fitted(X: Tensor, Y: Tensor) -> Model:
    model = SingleTaskGP(X, Y)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def optimise(surrogate: Any, trials: int = 9, seed: int = 3, **options: Any) -> list[dict[str, Any]]:
    search = BayesianOptimization(
        SPACE, "loss", random_seed=seed, search_options={"surrogate": surrogate, "debug_log": True, **options}
    )
    scheduler = AskTellScheduler(search)
    configs = []
    for _ in range(trials):
        trial = scheduler.ask()
        assert trial is not None
        configs.append(trial.config)
        reason = search.searcher.last_reason  # type: ignore[attr-defined]
        assert reason.kind == ("initial" if len(configs) <= 3 else "model"), reason
        loss = (trial.config["x"] - 0.3) ** 2 + (trial.config["y"] - 0.6) ** 2
        scheduler.tell(trial, loss=loss, done=True)
    return configs


@pytest.mark.parametrize(
    "make", [MySurrogate, lambda: SingleTaskGP, lambda: fitted, BayesianRidge], ids=["own", "class", "callable", "sk"]
)
def test_suggestions_are_made_with_the_users_model(make: Any) -> None:
    with global_generators_untouched():
        configs = optimise(make())
    assert configs == optimise(make())
    assert configs[:3] == optimise(None)[:3]
    assert configs[3:] != optimise(None)[3:]
    if not isinstance(make(), BayesianRidge):  # a plane has its minimum in a corner
        assert min((c["x"] - 0.3) ** 2 + (c["y"] - 0.6) ** 2 for c in configs) < 0.02


def test_a_class_of_botorch_is_fitted_as_botorch_fits_it() -> None:
    X, Y = data()
    surrogate = as_surrogate(SingleTaskGP, 2)
    model = surrogate.fit(X, Y)
    Z = ((Y - Y.mean()) / Y.std(correction=0)).unsqueeze(-1)
    other = fitted(X, Z)
    points = torch.rand(5, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = model.posterior(points), other.posterior(points)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.variance, theirs.variance, rtol=1e-5, atol=1e-8)
    values = surrogate.parameters()
    assert values["covar_module.lengthscale_0"] == pytest.approx(other.covar_module.lengthscale[0, 0].item(), rel=1e-4)
    assert values["likelihood.noise_covar.noise"] > 0


def test_parameters_are_kept_without_refit_and_in_the_state() -> None:
    surrogate = as_surrogate(SingleTaskGP, 2, seed=4)
    X, Y = data(12)
    surrogate.fit(X, Y)
    before = surrogate.parameters()
    more, values = data(20, seed=7)
    kept = surrogate.fit(more, values, refit=False)
    assert surrogate.parameters() == before
    assert isinstance(kept, SingleTaskGP)
    assert kept.covar_module.lengthscale.flatten().tolist() == [before[f"covar_module.lengthscale_{i}"] for i in (0, 1)]
    assert len(kept.train_targets) == 20
    mean = kept.posterior(more.unsqueeze(-2)).mean.flatten()
    torch.testing.assert_close(surrogate.transform.inverse(mean), values, rtol=0, atol=0.5)
    twin = as_surrogate(SingleTaskGP, 2)
    twin.load_state_dict(copy.deepcopy(surrogate.state_dict()))
    again = twin.fit(more, values, refit=False)
    assert torch.equal(again.posterior(X.unsqueeze(-2)).mean, kept.posterior(X.unsqueeze(-2)).mean)
    assert twin.parameters() == before
    surrogate.fit(more, values)
    assert surrogate.parameters() != before


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_or_equal_targets(n: int) -> None:
    X, Y = data(n)
    for targets in (Y, torch.full_like(Y, 3.0)):
        model = as_surrogate(SingleTaskGP, 2).fit(X, targets)
        assert torch.isfinite(model.posterior(X.unsqueeze(-2)).mean).all()


def test_a_model_for_categories_is_told_their_columns() -> None:
    structure = InputStructure(("act", "lr"), (0, 0, 0, 1), (True, False))
    X = torch.zeros(9, 4, dtype=torch.float64)
    X[torch.arange(9), torch.arange(9) % 3] = 1.0
    X[:, 3] = torch.linspace(0, 1, 9, dtype=torch.float64)
    noise = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = as_surrogate(MixedSingleTaskGP, structure).fit(X, X[:, 3] + X[:, 0] + 0.3 * noise)
    assert isinstance(model, MixedSingleTaskGP)
    assert model._ignore_X_dims_scaling_check == [0, 1, 2]
    with pytest.raises(ValueError, match="MixedSingleTaskGP is for categorical hyperparameters"):
        as_surrogate(MixedSingleTaskGP, 2)


def test_a_callable_gets_standardised_targets_and_its_own_draws() -> None:
    seen: list[tuple[Tensor, float]] = []

    def make(X: Tensor, Y: Tensor) -> Model:
        seen.append((Y, float(torch.rand(()))))
        return SingleTaskGP(X, Y)

    X, Y = data()
    first, second = as_surrogate(make, 2, seed=1), as_surrogate(make, 2, seed=2)
    with global_generators_untouched():
        first.fit(X, Y)
        first.fit(X, Y)
        second.fit(X, Y)
    assert isinstance(first, CallableSurrogate)
    targets, draws = seen[0][0], [draw for _, draw in seen]
    assert targets.shape == (12, 1)
    assert float(targets.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(targets.std(correction=0)) == pytest.approx(1.0)
    assert len(set(draws)) == 3
    state = copy.deepcopy(first.state_dict())
    first.fit(X, Y)
    second.load_state_dict(state)
    second.fit(X, Y)
    assert seen[-1][1] == seen[-2][1]


def test_what_cannot_be_fitted_is_a_random_suggestion_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Unfit(SingleTaskGP):
        def forward(self, x: Tensor) -> Any:
            raise ValueError("the kernel is broken")

    search = BayesianOptimization(SPACE, "loss", random_seed=1, search_options={"surrogate": Unfit})
    scheduler = AskTellScheduler(search)
    for number in range(5):
        trial = scheduler.ask()
        assert trial is not None
        reason = search.searcher.last_reason  # type: ignore[attr-defined]
        if number >= 3:
            assert reason.kind == "random"
        scheduler.tell(trial, loss=trial.config["x"], done=True)
    warnings = [record.message for record in caplog.records if "the model cannot be used" in record.message]
    assert len(warnings) == 1


def test_objects_are_used_as_they_are() -> None:
    mine, regressor = MySurrogate(), BayesianRidge()
    copied = as_surrogate(mine, 2)
    assert type(copied) is type(mine)
    assert copied is not mine
    assert isinstance(as_surrogate(regressor, 2), SKLearnSurrogate)
    assert isinstance(as_surrogate(SingleTaskGP, 2), BoTorchSurrogate)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "surrogate must be a Surrogate"),
        ("SingleTaskGP", "surrogate must be a Surrogate"),
        (dict, "the class dict; it has no posterior"),
        (MySurrogate, "give MySurrogate(...)"),
        (BayesianRidge, "give BayesianRidge(...)"),
        (MultiTaskGP, "it needs task_feature"),
        (Model, "it is no exact Gaussian process"),
        (KMeans(), "surrogate must be a Surrogate"),
        (LogisticRegression(), "surrogate must be a Surrogate"),
        (as_surrogate(SingleTaskGP, 2).fit(*data()), "give its class"),
    ],
)
def test_what_is_no_surrogate_is_found_out_at_once(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        as_surrogate(given, 2)
    with pytest.raises(TypeError, match=re.escape(message)):
        BayesianOptimization(SPACE, "loss", search_options={"surrogate": given})


def test_a_model_without_posterior_is_an_error() -> None:
    with pytest.raises(TypeError, match="no posterior"):
        optimise(lambda X, Y: torch.nn.Linear(2, 1))


def test_a_class_without_a_state_is_fitted_anew_after_loading() -> None:
    def make() -> BayesianOptimizationSearcher:
        options = BayesOptOptions(surrogate=MySurrogate(), num_init_random=2, random_seed=1)
        return BayesianOptimizationSearcher(SPACE, "loss", options=options)

    searcher = make()
    for number in range(4):
        config = searcher.get_config(number)
        assert config is not None
        searcher.on_trial_result(number, config, {"loss": config["x"] + config["y"] ** 2}, True)
    pending = searcher.get_config(4)
    twin = make()
    twin.load_state_dict(searcher.state_dict())
    for each in (searcher, twin):
        each.register_pending(4, pending)
        config = each.get_config(5)  # nothing new is known: no refit but for the one that has lost its parameters
        assert each.last_reason is not None
        assert each.last_reason.kind == "model"


def test_a_model_for_categories_needs_some() -> None:
    with pytest.raises(ValueError, match="has none"):
        BayesianOptimization(SPACE, "loss", search_options={"surrogate": MixedSingleTaskGP})
    space = {"act": choice(["a", "b", "c"]), "x": uniform(0, 1)}
    BayesianOptimization(space, "loss", search_options={"surrogate": MixedSingleTaskGP})
