"""What a search that is stuck asks for."""

from __future__ import annotations

import pytest
import torch

from sthyper.searchers.bayesopt import BayesOptOptions
from sthyper.searchers.bayesopt.acquire import acquire
from sthyper.searchers.bayesopt.stagnation import demands, plausible_demand
from sthyper.surrogates import GaussianProcess, GPModel


def stuck_for(trials: int) -> torch.Tensor:
    """Return targets of which the 10th is the best, and so many more that gain less than a hundredth deviation."""
    return torch.cat([torch.linspace(2.0, 0.0, 10), 1e-7 * -torch.arange(1.0, trials + 1.0).double()]).double()


def test_while_results_improve_nothing_is_asked_for() -> None:
    assert demands(torch.linspace(1.0, 0.0, 20).double()) == []
    assert demands(torch.tensor([1.0]).double()) == []
    for trials in range(3):
        assert demands(stuck_for(trials)) == []


def test_every_second_suggestion_asks_for_twice_as_much() -> None:
    ladder = [0.04, 0.08, 0.16, 0.32, 0.64, 1.0]
    for trials in (*range(3, 20), 2999):
        Z = stuck_for(trials)
        steps = [step / float(Z.std(correction=0)) for step in demands(Z)]
        reached = min((trials - 3) // 2 + 1, 6) if trials % 2 else 0
        assert steps == pytest.approx(ladder[:reached][::-1])


def test_an_improvement_worth_the_name_ends_it() -> None:
    assert demands(torch.cat([stuck_for(9), torch.tensor([-0.5]).double()])) == []


def test_equal_targets_ask_for_nothing() -> None:
    assert demands(torch.zeros(9).double()) == []


def process_of(Y: torch.Tensor) -> tuple[GaussianProcess, GPModel, torch.Tensor]:
    X = torch.linspace(0.0, 1.0, len(Y)).double().unsqueeze(-1)
    process = GaussianProcess(1)
    return process, process.fit(X, Y), X


def test_hopeless_demands_are_given_up() -> None:
    """A model that knows the whole range does not expect more anywhere; one that knows half of it does."""
    Y = torch.cat([((torch.linspace(0, 1, 20) - 0.3) ** 2).double(), torch.full((10,), 1e-4).double()])
    X = torch.cat([torch.linspace(0, 1, 20), torch.linspace(0.29, 0.31, 10)]).double().unsqueeze(-1)
    probe = torch.linspace(0.0, 1.0, 64).double().unsqueeze(-1)
    for part, expected in ((slice(None), False), (slice(8, None), True)):  # the second knows nothing left of .29
        process = GaussianProcess(1)
        model = process.fit(X[part], Y[part])
        Z = process.transform.forward(Y[part])
        wanted = demands(Z)
        assert wanted
        found = plausible_demand(model, Z.min(), 0.0, Z, lambda: probe)
        assert plausible_demand(model, Z.min(), 0.0, Z, None) == wanted[0]
        assert (found == wanted[0]) is expected, found


@pytest.mark.parametrize("name", ["logei", "ei", "pi"])
def test_the_acquisition_function_asks_for_it(name: str) -> None:
    Y = stuck_for(5)
    process, model, X = process_of(Y)
    Z = process.transform.forward(Y)
    assert demands(Z)
    asked = {}
    for escape in (True, False):
        options = BayesOptOptions(acq_function=name, escape_stagnation=escape)
        acquisition, incumbent = acquire(model, process.transform, X, Y, X[:0], options, torch.Generator())
        assert incumbent == pytest.approx(float(Y.min()))
        asked[escape] = acquisition.jitter
    assert asked == {True: pytest.approx(demands(Z)[0]), False: 0.0}
