"""What a search that is stuck asks for."""

from __future__ import annotations

import pytest
import torch

from sthyper.searchers.bayesopt import BayesOptOptions
from sthyper.searchers.bayesopt.acquire import acquire
from sthyper.searchers.bayesopt.stagnation import needed_improvement
from sthyper.surrogates import GaussianProcess


def stuck_for(trials: int) -> torch.Tensor:
    """Return targets of which the 10th is the best, and so many more that gain less than a hundredth deviation."""
    return torch.cat([torch.linspace(2.0, 0.0, 10), 1e-4 * -torch.arange(1.0, trials + 1.0)]).double()


def test_while_results_improve_nothing_is_asked_for() -> None:
    assert needed_improvement(torch.linspace(1.0, 0.0, 20).double()) == 0.0
    assert needed_improvement(torch.tensor([1.0]).double()) == 0.0
    for trials in range(3):
        assert needed_improvement(stuck_for(trials)) == 0.0


def test_every_second_suggestion_asks_for_twice_as_much() -> None:
    asked = []
    for trials in range(3, 20):
        Z = stuck_for(trials)
        asked.append(needed_improvement(Z) / float(Z.std(correction=0)))
    assert asked[1::2] == [0.0] * 8
    assert asked[::2] == pytest.approx([0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0, 1.0])


def test_an_improvement_worth_the_name_ends_it() -> None:
    assert needed_improvement(torch.cat([stuck_for(9), torch.tensor([-0.5]).double()])) == 0.0


def test_equal_targets_ask_for_nothing() -> None:
    assert needed_improvement(torch.zeros(9).double()) == 0.0


@pytest.mark.parametrize("name", ["logei", "ei", "pi"])
def test_the_acquisition_function_asks_for_it(name: str) -> None:
    X = torch.linspace(0.0, 1.0, 15).double().unsqueeze(-1)
    Y = stuck_for(5)
    process = GaussianProcess(1)
    model = process.fit(X, Y)
    Z = process.transform.forward(Y)
    assert needed_improvement(Z) > 0.0
    asked = {}
    for escape in (True, False):
        options = BayesOptOptions(acq_function=name, escape_stagnation=escape)
        acquisition, incumbent = acquire(model, process.transform, X, Y, X[:0], options, torch.Generator())
        assert incumbent == pytest.approx(float(Y.min()))
        asked[escape] = acquisition.jitter
    assert asked == {True: pytest.approx(needed_improvement(Z)), False: 0.0}
