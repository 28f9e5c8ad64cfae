"""The Gaussian process and data that are not nice."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from sthyper.surrogates.gp import GaussianProcess, GPOptions
from sthyper.surrogates.gp_model import GPModel
from sthyper.surrogates.inputs import InputStructure

TRANSFORMS = ("taillog", "halflog", "standardize", "boxcox", "identity")


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(process: GaussianProcess, model: GPModel, X: Tensor) -> None:
    """Predictions are finite, at the data and elsewhere, alone and jointly, and in units of the targets."""
    d = X.shape[-1]
    new = torch.cat([X[:5], rand(5, d, seed=9), torch.zeros(1, d).double(), torch.ones(1, d).double()])
    mean, variance = model.predict(new)
    assert torch.isfinite(mean).all()
    assert (variance > 0).all()
    assert torch.isfinite(variance).all()
    assert torch.isfinite(process.transform.inverse(mean)).all()
    assert torch.isfinite(model.posterior(new.unsqueeze(-2)).variance).all()
    draws = model.fantasize_pending(new, 2, torch.Generator().manual_seed(0)).predict(new)[0]
    assert torch.isfinite(draws).all()
    assert all(torch.isfinite(torch.tensor(value)) for value in process.parameters().values())


def quick(d: int, transform: str = "halflog", **options: int) -> GaussianProcess:
    return GaussianProcess(d, GPOptions(target_transform=transform, num_starts=1, max_iterations=20, **options))


ODD = {
    "one": (rand(1, 2), torch.tensor([3.0])),
    "two": (rand(2, 2), torch.tensor([3.0, 1.0])),
    "two that are equal": (rand(2, 2), torch.tensor([3.0, 3.0])),
    "constant": (rand(8, 2), torch.full((8,), 0.7)),
    "constant and huge": (rand(8, 2), torch.full((8,), 1e200, dtype=torch.float64)),
    "duplicates": (rand(5, 2).repeat(3, 1), 1 + rand(5).repeat(3)),
    "duplicates that differ": (rand(5, 2).repeat(3, 1), 1 + rand(15, seed=1)),
    "all in one point": (torch.full((10, 2), 0.5), 1 + rand(10)),
    "all in one corner": (torch.zeros(10, 2), 1 + rand(10)),
    "next to each other": (0.5 + 1e-9 * rand(10, 2), 1 + rand(10)),
    "an outlier": (rand(10, 2), torch.cat([1 + rand(9), torch.tensor([1e12]).double()])),
    "huge": (rand(10, 2), 1e290 * (1 + rand(10))),
    "tiny": (rand(10, 2), 1e-12 * (1 + rand(10))),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", list(ODD))
def test_odd_data_are_modelled(name: str, transform: str, caplog: pytest.LogCaptureFixture) -> None:
    if transform == "identity" and ("huge" in name or name == "an outlier"):
        pytest.skip("targets that are not to be scaled must have a scale near 1")
    X, Y = (data.double() for data in ODD[name])
    process = quick(2, transform)
    check(process, process.fit(X, Y), X)
    assert "could not be fitted" not in caplog.text
    # A second, warm fit, with a point more.
    X, Y = torch.cat([X, rand(1, 2, seed=3)]), torch.cat([Y, Y[:1]])
    check(process, process.fit(X, Y), X)


def test_one_observation_pulls_the_mean_near_it_and_the_prior_stays_far_away() -> None:
    X = torch.tensor([[0.2, 0.2]]).double()
    process = quick(2)
    model = process.fit(X, torch.tensor([5.0]).double())
    mean, variance = model.predict(torch.cat([X, torch.tensor([[0.9, 0.9]]).double()]))
    assert process.transform.inverse(mean[0]) == pytest.approx(5.0, abs=0.1)
    assert variance[0] < variance[1]


def test_constant_targets_predict_the_constant() -> None:
    X = rand(8, 3)
    process = quick(3)
    model = process.fit(X, torch.full((8,), 0.7).double())
    found = process.transform.inverse(model.predict(rand(6, 3, seed=4))[0])
    assert torch.allclose(found, torch.full((6,), 0.7).double(), atol=1e-6)


def test_fifty_dimensions() -> None:
    X = rand(60, 50)
    Y = (X[:, 0] - 0.3).square() + X[:, 1]
    process = quick(50)
    check(process, process.fit(X, Y), X)
    assert len(process.parameters()) == 50 + 100 + 3


def test_two_thousand_observations() -> None:
    """All are conditioned on, the parameters are those of a subset, and it is quick."""
    X = rand(2000, 3)
    Y = (X - 0.4).square().sum(1) + 0.01 * rand(2000, seed=1)
    process = GaussianProcess(3, GPOptions(num_starts=1, max_iterations=10, max_fit_points=100))
    start = time.process_time()
    model = process.fit(X, Y)
    assert time.process_time() - start < 10
    assert model.num_data == 2000
    found = process.transform.inverse(model.predict(X[:200])[0])
    assert float((found - Y[:200]).abs().max()) < 0.02


def test_a_categorical_with_one_value() -> None:
    structure = InputStructure(("x", "kind"), (0, 1), (False, True))
    X = torch.cat([rand(6, 1), torch.ones(6, 1).double()], 1)
    for categorical in ("one-hot", "exchangeable"):
        options = GPOptions(categorical_kernel=categorical, num_starts=1, max_iterations=10)
        process = GaussianProcess(structure, options)
        check(process, process.fit(X, rand(6)), X)


def test_single_precision_is_computed_in_double() -> None:
    X, Y = rand(10, 2).float(), rand(10).float()
    process = quick(2)
    model = process.fit(X, Y)
    reference = quick(2)
    expected = reference.fit(X.double(), Y.double())
    new = rand(4, 2)
    for given in (new, new.float()):
        for found in (
            model.predict(given)[0],
            model.posterior(given).mean[:, 0],
            model.posterior(given.unsqueeze(-2)).mean,
        ):
            assert found.dtype == torch.float64
            assert torch.allclose(found.flatten(), expected.predict(new)[0], atol=1e-5)
    assert process.parameters() == pytest.approx(reference.parameters(), rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_fit_on_a_gpu_is_that_on_the_processor() -> None:
    X, Y = rand(30, 2), rand(30, seed=1)
    here, there = quick(2), quick(2)
    expected = here.fit(X, Y)
    model = there.fit(X.cuda(), Y.cuda())
    new = rand(5, 2, seed=3)
    mean, variance = model.predict(new.cuda())
    assert mean.device.type == "cuda"
    assert torch.allclose(mean.cpu(), expected.predict(new)[0], rtol=1e-6, atol=1e-8)
    assert torch.allclose(variance.cpu(), expected.predict(new)[1], rtol=1e-6, atol=1e-8)
    assert there.parameters() == pytest.approx(here.parameters())
    joint = model.posterior(new.cuda())
    assert joint.mean.device.type == "cuda"
    fantasies = model.fantasize_pending(new.cuda(), 3, torch.Generator().manual_seed(0))
    assert fantasies.predict(new.cuda())[0].shape == (3, 5)
