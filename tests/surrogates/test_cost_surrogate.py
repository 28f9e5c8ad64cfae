"""Cost models as BoTorch models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from sthyper.config_space import choice, randint, uniform
from sthyper.encoding import SpaceEncoder
from sthyper.surrogates.cost import (
    BiasOnlyLinearCostModel,
    CostModel,
    CostObservation,
    CostSurrogate,
    CostValue,
    FixedLayersMLPCostModel,
    ScikitLearnCostModel,
)

SPACE = {"width": randint(1, 100), "act": choice(["relu", "tanh", "gelu"]), "lr": uniform(0.0, 1.0), "batch_size": 16}
ENCODER = SpaceEncoder(SPACE)


class Known(CostModel):
    """c0 = 10, c1 = width, with an offset."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset
        self.seen: list[Mapping[str, Any]] = []

    def update(self, observations: Sequence[CostObservation]) -> None:
        self.seen = [o.config for o in observations]

    def sample_joint(self, configs: Sequence[Mapping[str, Any]]) -> list[CostValue]:
        return [CostValue(10.0 + self.offset, float(c["width"])) for c in configs]


class Random(CostModel):
    """c1 = w * width with a normal w."""

    def __init__(self) -> None:
        self.weight = 0.0

    def update(self, observations: Sequence[CostObservation]) -> None:
        pass

    def resample(self, generator: np.random.Generator) -> None:
        self.weight = float(generator.normal(loc=5.0))

    def sample_joint(self, configs: Sequence[Mapping[str, Any]]) -> list[CostValue]:
        return [CostValue(0.0, self.weight * c["width"]) for c in configs]

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]


def cube_points(*batch: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*batch, ENCODER.ndarray_size, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("batch", [(4,), (3, 1), (2, 3, 4)])
def test_the_mean_is_the_cost_of_the_decoded_configuration(batch: tuple[int, ...]) -> None:
    model = CostSurrogate(Known(), ENCODER, 7).model()
    X = cube_points(*batch)
    posterior = model.posterior(X)
    costs = [10.0 + 7 * c["width"] for c in ENCODER.decode(X.reshape(-1, X.shape[-1]))]
    assert posterior.mean.shape == (*batch, 1)
    assert posterior.mean.flatten().tolist() == costs
    assert posterior.variance.shape == (*batch, 1)
    assert posterior.variance.abs().max() == 0
    assert model.num_outputs == 1
    assert posterior.rsample(torch.Size([2])).shape == (2, *batch, 1)


def test_the_gradient_is_zero() -> None:
    X = cube_points(3, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(CostSurrogate(Known(), ENCODER, 7).model().posterior(X).mean.sum(), X)
    assert gradient.abs().max() == 0


def test_dtype_follows_the_points() -> None:
    assert CostSurrogate(Known(), ENCODER, 7).model().posterior(cube_points(2).float()).mean.dtype == torch.float32


def test_the_level_can_be_changed_without_a_fit() -> None:
    surrogate = CostSurrogate(Known(), ENCODER, 7)
    before = surrogate.model()
    surrogate.set_fixed_resource(2)
    X = cube_points(1)
    width = ENCODER.decode(X)[0]["width"]
    assert surrogate.model().posterior(X).mean.item() == 10 + 2 * width
    assert before.posterior(X).mean.item() == 10 + 7 * width
    with pytest.raises(ValueError, match="resource"):
        surrogate.set_fixed_resource(0)
    with pytest.raises(TypeError, match="resource"):
        surrogate.set_fixed_resource(1.0)  # type: ignore[arg-type]


def test_fitting_gives_the_costs_of_the_data() -> None:
    surrogate = CostSurrogate(BiasOnlyLinearCostModel(alphas=[1e-10]), ENCODER, 5)
    configs = ENCODER.random_configs(0, 3)
    model = surrogate.fit([CostObservation(c, r, 3.0 + 2 * r) for c in configs for r in (1, 2)])
    assert model.posterior(cube_points(1)).mean.item() == pytest.approx(13.0)


def test_constants_of_the_space_reach_the_cost_model() -> None:
    """Decoded configurations lack them, and costs may depend on them."""
    known = Known()
    surrogate = CostSurrogate(known, ENCODER, 1)
    surrogate.fit([CostObservation({"width": 3, "act": "relu", "lr": 0.1}, 1, 1.0)])
    assert known.seen[0]["batch_size"] == 16
    mlp = FixedLayersMLPCostModel(3, 2, ["width"], bs_exponent=0.5, alphas=[1e-10])
    configs = ENCODER.random_configs(0, 5)
    model = CostSurrogate(mlp, ENCODER, 4).fit(
        [CostObservation(c, r, 1 + r * (2 + 5 * c["width"] / 4)) for c in configs for r in (1, 2)]
    )
    X = cube_points(1)
    assert model.posterior(X).mean.item() == pytest.approx(1 + 4 * (2 + 5 * ENCODER.decode(X)[0]["width"] / 4))


def test_the_cost_model_gets_the_encoder() -> None:
    model = CostSurrogate(ScikitLearnCostModel(), ENCODER, 2).fit(
        [CostObservation(c, r, 1.0 + r) for c in ENCODER.random_configs(0, 4) for r in (1, 2)]
    )
    assert model.posterior(cube_points(1)).mean.item() == pytest.approx(3.0, abs=1e-3)


def test_negative_costs_are_floored_with_one_warning() -> None:
    surrogate = CostSurrogate(Known(offset=-60.0), ENCODER, 1)
    X = ENCODER.encode([{"width": w, "act": "relu", "lr": 0.5} for w in (20, 80)])
    with pytest.warns(UserWarning, match="Known predicts negative costs"):
        mean = surrogate.model().posterior(X).mean
    assert mean.flatten().tolist() == [1e-12, 30.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert surrogate.model().posterior(X).mean.min() == 1e-12


def test_costs_that_are_not_negative_do_not_warn() -> None:
    """The sum of a positive and a small cost, and a cost of 0, are no negative ones."""
    surrogate = CostSurrogate(Known(offset=-30.0), ENCODER, 1)
    X = ENCODER.encode([{"width": w, "act": "relu", "lr": 0.5} for w in (20, 80)])
    assert surrogate.model().posterior(X).mean.flatten().tolist() == [1e-12, 60.0]


def test_random_models_are_averaged_over_draws() -> None:
    X = cube_points(2, 1)
    width = torch.tensor([[c["width"]] for c in ENCODER.decode(X[:, 0])], dtype=torch.float64)
    weights = torch.tensor(np.random.Generator(np.random.PCG64(3)).normal(loc=5.0, size=20))
    posterior = CostSurrogate(Random(), ENCODER, 2, num_samples=20, random_seed=3).model().posterior(X)
    torch.testing.assert_close(posterior.mean[..., 0], 2 * weights.mean() * width)
    torch.testing.assert_close(posterior.variance[..., 0], 4 * weights.var() * width**2)


def test_draws_are_the_same_at_every_call_and_follow_the_seed() -> None:
    X = cube_points(1)

    def cost(num_samples: int, random_seed: int) -> list[float]:
        model = CostSurrogate(Random(), ENCODER, 2, num_samples, random_seed).model()
        return [model.posterior(X).mean.item() for _ in range(2)]

    one = cost(1, 0)
    assert one[0] == one[1]
    assert cost(1, 1)[0] != one[0]
    assert cost(2, 0)[0] != one[0]


def test_state() -> None:
    first = CostSurrogate(Random(), ENCODER, 2)
    first.set_fixed_resource(9)
    first.model().posterior(cube_points(1))
    second = CostSurrogate(Random(), ENCODER, 2)
    second.load_state_dict(first.state_dict())
    assert second.fixed_resource == 9
    assert isinstance(second.cost_model, Random)
    assert isinstance(first.cost_model, Random)
    assert second.cost_model.weight == first.cost_model.weight != 0.0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"cost_model": "spline"}, TypeError),
        ({"encoder": SPACE}, TypeError),
        ({"fixed_resource": 0}, ValueError),
        ({"fixed_resource": 2.5}, TypeError),
        ({"num_samples": 0}, ValueError),
        ({"random_seed": -1}, ValueError),
        ({"random_seed": None}, TypeError),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception]) -> None:
    good: dict[str, Any] = {"cost_model": Known(), "encoder": ENCODER, "fixed_resource": 1}
    with pytest.raises(error, match=next(iter(change))):
        CostSurrogate(**(good | change))
