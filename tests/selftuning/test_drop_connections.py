"""Weights that are dropped at random in layers that respond to hyperparameters."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
from torch import nn

from sthyper.config_space import uniform
from sthyper.selftuning import Hyperparameters, export, plain_state_dict, self_tune, squared_norms
from sthyper.selftuning.regularisers import drop_connections


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.rnn(x)[0][:, -1])


def make(kind: Literal["delta", "stn"]) -> tuple[Network, Network, Hyperparameters]:
    torch.manual_seed(0)
    plain = Network().double()
    hyperparameters = Hyperparameters(
        {"wdrop": uniform(0, 0.9), "x": uniform(0, 1)}, start={"wdrop": 0.5}, shared=["wdrop"], dtype=torch.float64
    )
    model = copy.deepcopy(plain)
    self_tune(model, hyperparameters, kind, "full")
    with torch.no_grad():
        for parameter in model.selftuning.responses.parameters():  # type: ignore[union-attr]
            parameter.add_(0.3 * torch.randn_like(parameter))
    drop_connections(model.rnn, "weight_hh_l0", hyperparameters, "wdrop")
    return plain, model, hyperparameters


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["delta", "stn"])
def test_the_plain_network_has_whole_weights(kind: Literal["delta", "stn"], training: bool) -> None:
    plain, model, _ = make(kind)
    model.train(training)
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    state = plain_state_dict(model)
    assert set(state) == set(plain.state_dict())
    exported = export(model)
    assert exported.training == training
    plain.load_state_dict(state)
    model.eval()
    exported.eval()
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(plain.eval()(x), expected)
        torch.testing.assert_close(exported(x), expected)
    assert set(exported.state_dict()) == set(plain.state_dict())
    assert type(exported.rnn) is nn.LSTM


@pytest.mark.parametrize("kind", ["delta", "stn"])
def test_norms_are_those_of_the_weights_in_use(kind: Literal["delta", "stn"]) -> None:
    plain, model, hyperparameters = make(kind)
    model.eval()
    with hyperparameters.centred():
        plain.load_state_dict(plain_state_dict(model))
        expected = sum(p.square().sum() for p in plain.parameters())
        torch.testing.assert_close(squared_norms(model), torch.as_tensor(expected))
    with hyperparameters.perturbed(4):
        norms = squared_norms(model)
        assert norms.shape == (4,)
        norms.sum().backward()
    rnn: Any = model.rnn
    assert rnn.parametrizations.weight_hh_l0.original.grad.abs().sum() > 0
