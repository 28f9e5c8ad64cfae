"""Closed branches, closed inputs, and what pruning refuses."""

from __future__ import annotations

import copy
import io
import pickle
import pickletools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.straight_through.pruning import Folded, prune


def mask(*bits: int) -> Tensor:
    return torch.tensor(bits, dtype=torch.bool)


X1 = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
X2 = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def without(model: nn.Module, branches: list[str], *x: Tensor) -> Tensor:
    """Return what a model gives when the outputs of branches are multiplied by 0: the definition."""
    model = copy.deepcopy(model)
    for path in branches:
        model.get_submodule(path).register_forward_hook(lambda module, args, output: output * 0)
    return model.eval()(*x)


class Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, padding=1), nn.BatchNorm2d(n_out), nn.ReLU(), nn.Conv2d(n_out, n_out, 1)
        )
        self.skip = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.branch(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3)
        self.blocks = nn.Sequential(Block(6, 6), Block(6, 4, 2), Block(4, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("closed", [["blocks.0.branch"], ["blocks.1.branch"], ["blocks.0.branch", "blocks.1.branch"]])
def test_residual_branches_vanish(closed: list[str], example: bool) -> None:
    torch.manual_seed(0)
    model = Net().double()
    branches: dict[str, Any] = {path: torch.tensor(False) for path in closed} | {"blocks.2.branch": True}
    result = prune(model, example_input=X2 if example else None, branches=branches)
    assert result.removed_branches == tuple(closed)
    assert result.folded == ()
    torch.testing.assert_close(result.model.eval()(X2), without(model, closed, X2), rtol=0, atol=0)
    left = [name for name, _ in result.model.named_parameters()]
    assert not any(name.startswith(path) for name in left for path in closed)
    assert any(name.startswith("blocks.2.branch") for name in left)
    for path in closed:
        for module in result.model.get_submodule(path).modules():
            assert type(module).__module__.startswith("torch.nn.modules")
            assert not list(module.parameters())
    assert all(m.training for m in prune(model.train(), branches=branches).model.modules())


@pytest.mark.parametrize("example", [True, False])
def test_channels_beside_a_closed_branch_go(example: bool) -> None:
    torch.manual_seed(0)
    model = Net().double()
    open_ = mask(1, 0, 1, 1, 0, 1)
    result = prune(model, {"stem": open_}, example_input=X2 if example else None, branches={"blocks.0.branch": False})
    assert result.removed == {"stem": (1, 4)}
    gated = copy.deepcopy(model)
    gated.stem.register_forward_hook(lambda module, args, output: output * open_.view(-1, 1, 1))
    torch.testing.assert_close(result.model.eval()(X2), without(gated, ["blocks.0.branch"], X2), rtol=0, atol=1e-10)


def test_channels_within_a_closed_branch_are_gone_with_it() -> None:
    model = Net().double()
    result = prune(
        model,
        {"blocks.0.branch.0": mask(1, 0, 1, 1, 0, 1)},
        branches={"blocks.0.branch": False, "blocks.0.branch.3": False},
    )
    assert (result.removed, result.folded) == ({}, ())
    assert result.removed_branches == ("blocks.0.branch",)


class NotAdded(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(5, 4), last)
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([x, self.branch(x)], 1))


def test_branches_that_are_not_added_keep_their_shape() -> None:
    model = NotAdded(nn.Linear(4, 4)).double()
    result = prune(model, example_input=X1, branches={"branch": False})
    assert result.removed_branches == ()
    assert "last layer" in result.folded[0].reason
    torch.testing.assert_close(result.model(X1), without(model, ["branch"], X1), rtol=0, atol=0)
    model = NotAdded(nn.Sigmoid()).double()
    result = prune(model, example_input=X1, branches={"branch": False})
    assert result.folded[0].path == "branch"
    assert "behind it" in result.folded[0].reason
    torch.testing.assert_close(result.model(X1), without(model, ["branch"], X1), rtol=0, atol=0)


def test_a_layer_that_others_use_is_not_set_to_0() -> None:
    model = NotAdded(nn.Linear(4, 4))
    model.after = nn.Sequential(nn.Linear(2, 4), model.branch[1])
    model = nn.Sequential(model, model.after).double()
    result = prune(model, example_input=X1, branches={"0.branch": False})
    assert "behind it" in result.folded[0].reason
    torch.testing.assert_close(result.model(X1), without(model, ["0.branch"], X1), rtol=0, atol=0)
    assert result.model(X1).abs().min() > 0


class Two(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(5, 5), last

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last(self.inner(x) * y)


class WithTwo(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.branch = Two(last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x, x)


def test_branches_with_two_arguments() -> None:
    model = WithTwo(nn.Linear(5, 5)).double()
    result = prune(model, branches={"branch": False})
    assert "several arguments" in result.folded[0].reason
    torch.testing.assert_close(result.model(X1), X1, rtol=0, atol=0)
    with pytest.raises(ValueError, match="branches: 'branch' cannot be removed: it is called with several arguments"):
        prune(WithTwo(nn.Tanh()), branches={"branch": False})


def test_branches_of_models_that_cannot_be_traced() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(5, 5), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x) if x.sum() < 1e9 else x

    result = prune(Odd().double(), branches={"branch": False})
    assert "trace" in result.folded[0].reason
    torch.testing.assert_close(result.model(X1), X1, rtol=0, atol=0)


def test_branches_that_change_their_input_are_found_out() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 5), nn.Tanh())
            self.alias = self.branch

        def forward(self, x: Tensor) -> Tensor:
            x = x + 0
            return x + self.branch(x)

    model = Adds().double()
    result = prune(model, example_input=X1, branches={"alias": False})
    assert result.folded[0].path == "branch"
    assert "example_input" in result.folded[0].reason
    torch.testing.assert_close(result.model(X1), X1.relu(), rtol=0, atol=0)


# ---- inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(4, 3), torch.randn(2, 7, 4)),
        (nn.Conv2d(4, 2, 3, padding=1), torch.randn(2, 4, 5, 5)),
        (nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)),
        (nn.Conv1d(4, 4, 3, groups=4, bias=False), torch.randn(2, 4, 5)),
        (nn.ConvTranspose2d(4, 6, 2), torch.randn(2, 4, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 2, groups=2), torch.randn(2, 4, 5)),
    ],
)
def test_closed_inputs(layer: nn.Module, x: Tensor) -> None:
    model, x, open_ = nn.Sequential(nn.Sequential(layer), nn.Tanh()).double(), x.double(), mask(0, 1, 1, 0)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    expected = model(x * open_.view([4 if i == axis % x.dim() else 1 for i in range(x.dim())]))
    result = prune(model, inputs={"0": open_}, example_input=x)
    torch.testing.assert_close(result.model(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.model(x * open_.logical_not().double().mean() + x), result.model(1.5 * x))
    if getattr(layer, "groups", 1) > 1:
        with pytest.raises(ValueError, match="groups"):
            prune(model, inputs={"0": open_}, slice_inputs=True)
        return
    result = prune(model, inputs={"0": open_}, example_input=x, slice_inputs=True)
    assert result.removed_inputs == {"0.0": (0, 3)}
    torch.testing.assert_close(result.model(x.index_select(axis, torch.tensor([1, 2]))), expected, rtol=0, atol=1e-12)


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.a(x)) + self.b(x))


def test_inputs_and_channels_at_once() -> None:
    model, open_, hidden = TwoReaders().double(), mask(1, 1, 0, 1, 0), mask(0, 1, 1, 1)
    result = prune(model, {"a": hidden, "b": hidden}, {"a": open_, "b": open_}, X1, slice_inputs=True)
    assert result.removed == {"a": (0,), "b": (0,)}
    x = X1 * open_
    expected = model.c((torch.relu(model.a(x)) + model.b(x)) * hidden)
    torch.testing.assert_close(result.model(X1[:, open_]), expected, rtol=0, atol=1e-12)


def test_inputs_that_cannot_be_removed() -> None:
    model, open_ = TwoReaders(), mask(1, 1, 0, 1, 0)
    with pytest.raises(ValueError, match="'b' reads what 'a' reads"):
        prune(model, inputs={"a": open_}, slice_inputs=True)
    with pytest.raises(ValueError, match="'c' does not read an input of the model"):
        prune(model, inputs={"c": mask(1, 0, 1, 1)}, slice_inputs=True)
    with pytest.raises(ValueError, match="all of 'a'"):
        prune(model, inputs={"a": mask(0, 0, 0, 0, 0), "b": mask(0, 0, 0, 0, 0)}, slice_inputs=True)


# ---- no trace, bad input -------------------------------------------------------------------------------------


def test_nothing_of_the_library_is_left() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3), nn.Sequential(nn.Conv2d(2, 2, 1)))
    result = prune(
        model, {"0": mask(1, 0, 1, 1, 0, 1)}, {"0": mask(0, 1)}, branches={"3": False}, example_input=X2.float()
    )
    file = io.BytesIO()
    torch.save(result.model, file)
    assert b"sthyper" not in file.getvalue()
    content = pickle.dumps(result.model)
    words = {str(argument) for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)}
    assert not any("sthyper" in word for word in words)
    assert {type(m).__module__.partition(".")[0] for m in result.model.modules()} == {"torch"}
    for module in result.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert set(vars(result.model[0])) == set(vars(nn.Conv2d(2, 4, 3)))  # type: ignore[index]


def test_bad_arguments() -> None:
    model = nn.Sequential()
    model.add_module("encoder", nn.Linear(5, 6))
    model.add_module("norm", nn.BatchNorm1d(6, affine=False))
    model.add_module("act", nn.ReLU())
    good = mask(1, 0, 1, 1, 0, 1)
    with pytest.raises(ValueError, match=r"channels: the model has no module 'encode' \(did you mean 'encoder'\?\)"):
        prune(model, {"encode": good})
    with pytest.raises(ValueError, match="branches: the model has no module 'nrm'"):
        prune(model, branches={"nrm": True})
    with pytest.raises(ValueError, match=r"'encoder' \(Linear\) has 6 channels; the mask has the shape \(2,\)"):
        prune(model, {"encoder": mask(1, 0)})
    with pytest.raises(ValueError, match=r"inputs: 'encoder' \(Linear\) has 5 inputs"):
        prune(model, inputs={"encoder": good})
    with pytest.raises(TypeError, match=r"must have a bool tensor .*; it has torch.float32"):
        prune(model, {"encoder": good.float()})
    with pytest.raises(TypeError, match="it has list"):
        prune(model, {"encoder": [True] * 6})  # type: ignore[dict-item]
    for path in ("norm", "act"):
        with pytest.raises(ValueError, match=f"'{path}' .* has no channels that can be closed"):
            prune(model, {path: good})
    with pytest.raises(ValueError, match="inputs: 'act' .* name a linear layer or convolution"):
        prune(model, inputs={"act": good})
    with pytest.raises(TypeError, match="branches: 'act' must be True or False"):
        prune(model, branches={"act": 0.3})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="slice_inputs=True has no effect without inputs"):
        prune(model, {"encoder": good}, slice_inputs=True)
    with pytest.raises(ValueError, match="'table' .* has no channels that can be closed"):
        prune(nn.ModuleDict({"table": nn.Embedding(5, 6, max_norm=1.0)}), {"table": good})
    with pytest.raises(TypeError, match="model must be"):
        prune(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="example_input must be"):
        prune(model, {"encoder": good}, example_input=[X1])  # type: ignore[arg-type]
    old = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2))
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(old[0])
    with pytest.raises(ValueError, match="old-style"):
        prune(old, {"0": good})
    hooked = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2))
    hooked[1].register_forward_hook(lambda module, args, output: None)
    result = prune(hooked, {"0": good})
    assert result.folded == (Folded("0", (1, 4), "'1' (Linear) has hooks or parametrizations"),)
