from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.config_space import Domain, loguniform, uniform
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.linearise import LOSSES, collapse, linearised, response_loss
from sthyper.selftuning.perturbation import Perturbation
from sthyper.selftuning.steps import PredictionLoss, perturbed_loss
from sthyper.selftuning.transform import response_parameters, self_tune, squared_norms

B = 6
SPACE: dict[str, Domain] = {"rate": uniform(0.0, 0.9), "decay": loguniform(1e-4, 1.0)}


class Net(nn.Module):
    """Convolution, batch and layer normalisation, dropout, attention and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.layer_norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.gelu(self.norm(self.conv(x))), 2)
        h = self.drop(h).flatten(2).transpose(1, 2)
        h = h + self.attention(h, h, h, need_weights=True)[0]
        result: Tensor = self.out(self.layer_norm(h).mean(1))
        return result


def tuned(net: nn.Module | None = None, seed: int = 0) -> tuple[nn.Module, Hyperparameters]:
    """Return a model in float64 whose responses are not zero."""
    torch.manual_seed(seed)
    h = Hyperparameters(SPACE, start={"rate": 0.4, "decay": 0.01}, seed=seed, dtype=torch.float64)
    model = self_tune((net or Net()).double(), h, response="full", dropout={"*": "rate"} if net is None else None)
    with torch.no_grad():
        for p in response_parameters(model):
            p.copy_(0.3 * torch.randn_like(p))
    return model, h


def same_masks(function: Callable[[], Any]) -> Any:
    torch.manual_seed(7)
    return function()


def at(h: Hyperparameters, p: Perturbation, delta: Tensor, function: Callable[[], Tensor]) -> Tensor:
    """Return what a function gives at another delta, with the strengths of the perturbation."""
    with h.use(dataclasses.replace(p, delta=delta, tracks=True)):
        result: Tensor = same_masks(function)
        return result


def inputs() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(B, 2, 6, 6, generator=g, dtype=torch.float64), torch.randint(3, (B,), generator=g)


def test_equals_a_finite_difference_with_the_same_dropout_masks() -> None:
    model, h = tuned()
    x, _ = inputs()
    p, e = h.draw(B), 1e-5
    f = same_masks(lambda: linearised(lambda: model(x), h, p))
    zero = at(h, p, 0 * p.delta, lambda: model(x))
    slope = (at(h, p, e * p.delta, lambda: model(x)) - at(h, p, -e * p.delta, lambda: model(x))) / (2 * e)
    torch.testing.assert_close(f, zero + slope, rtol=1e-6, atol=1e-7)
    assert (f - at(h, p, p.delta, lambda: model(x))).abs().max() > 1e-3  # the network is not linear itself
    other = linearised(lambda: model(x), h, p)  # other masks
    assert (f - other).abs().max() > 1e-2


def double_vjp(model: nn.Module, x: Tensor, h: Hyperparameters, p: Perturbation) -> Tensor:
    """The trick of the reference: forward-mode by two backward passes."""
    delta = torch.zeros_like(p.delta).requires_grad_()
    out = at(h, p, delta, lambda: model(x))
    v = torch.zeros_like(out).requires_grad_()
    (gradient,) = torch.autograd.grad(out, delta, v, create_graph=True)
    (tangent,) = torch.autograd.grad(gradient, v, p.delta, create_graph=True)
    return out.detach() + tangent


def test_equals_two_backward_passes_and_so_do_the_gradients_of_the_responses() -> None:
    model, h = tuned()
    x, y = inputs()
    p = h.draw(B)
    responses = response_parameters(model)
    f = same_masks(lambda: linearised(lambda: model(x), h, p))
    reference = double_vjp(model, x, h, p)
    torch.testing.assert_close(f, reference, rtol=1e-10, atol=1e-11)
    ours = torch.autograd.grad(F.cross_entropy(f, y), responses)
    theirs = torch.autograd.grad(F.cross_entropy(reference, y), responses)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)
    assert max(float(g.abs().max()) for g in ours) > 1e-2


def test_structures_and_other_things_pass_through() -> None:
    model, h = tuned()
    x, y = inputs()
    p = h.draw(B)
    soft = F.one_hot(y, 3).double()
    result = same_masks(lambda: linearised(lambda: {"logits": (model(x), None), "y": y, "soft": soft, "n": 3}, h, p))
    f = same_masks(lambda: linearised(lambda: model(x), h, p))
    torch.testing.assert_close(result["logits"][0], f)
    assert result["logits"][1] is None
    assert result["n"] == 3
    torch.testing.assert_close(result["y"], y)
    torch.testing.assert_close(result["soft"], soft)


def test_kind_stn_is_not_linearised() -> None:
    h = Hyperparameters(SPACE)
    model = self_tune(nn.Linear(3, 2), h, kind="stn")
    with pytest.raises(ValueError, match="'stn' is not linearised"):
        linearised(lambda: model(torch.ones(4, 3)), h, h.draw(4))


class NoForwardMode(torch.autograd.Function):
    """An operation with a backward formula only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def test_an_operation_without_forward_mode_says_what_to_do() -> None:
    h = Hyperparameters(SPACE)
    model = self_tune(nn.Linear(3, 2), h)
    p = h.draw(4)
    for run in (
        lambda: linearised(lambda: NoForwardMode.apply(model(torch.ones(4, 3))), h, p),
        lambda: response_loss(lambda: F.mse_loss(NoForwardMode.apply(model(torch.ones(4, 3))), torch.ones(4, 2)), h, p),
    ):
        with pytest.raises(NotImplementedError, match="update='nonlinear'"):
            run()


# ---- losses --------------------------------------------------------------------------------------------------


def batches(n: int = B) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)
    return {
        "classes": torch.randint(3, (n,), generator=g),
        "soft": torch.softmax(torch.randn(n, 3, generator=g, dtype=torch.float64), 1),
        "bits": torch.randint(2, (n, 3), generator=g).double(),
        "real": torch.randn(n, 3, generator=g, dtype=torch.float64),
        "signs": torch.randint(2, (n,), generator=g).double() * 2 - 1,
        "counts": torch.randint(5, (n, 3), generator=g).double(),
    }


D = batches()
ONES = torch.ones(B, 3, dtype=torch.float64)

# What a closure computes from logits z, and what the loss of the linearised logits is.
CASES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "cross_entropy": (lambda z: F.cross_entropy(z, D["classes"], label_smoothing=0.1),) * 2,
    "cross_entropy by keyword": (lambda z: F.cross_entropy(target=D["soft"], input=z),) * 2,
    "CrossEntropyLoss": (nn.CrossEntropyLoss(),) * 2,  # type: ignore[dict-item]
    "nll_loss": (lambda z: F.nll_loss(torch.log_softmax(z, 1), D["classes"]),) * 2,
    "kl_div": (lambda z: F.kl_div(torch.log_softmax(z, -1), D["soft"], reduction="batchmean"),) * 2,
    "mse_loss": (lambda z: F.mse_loss(z, D["real"]),) * 2,
    "l1_loss": (lambda z: F.l1_loss(z, D["real"]),) * 2,
    "smooth_l1_loss": (lambda z: F.smooth_l1_loss(z, D["real"], beta=0.5),) * 2,
    "huber_loss": (lambda z: F.huber_loss(z, D["real"]),) * 2,
    "binary_cross_entropy_with_logits": (lambda z: F.binary_cross_entropy_with_logits(z, D["bits"]),) * 2,
    "binary_cross_entropy": (lambda z: F.binary_cross_entropy(torch.sigmoid(z), D["bits"]),) * 2,
    "soft_margin_loss": (lambda z: F.soft_margin_loss(z, 2 * D["bits"] - 1),) * 2,
    "multilabel_soft_margin_loss": (lambda z: F.multilabel_soft_margin_loss(z, D["bits"]),) * 2,
    "multi_margin_loss": (lambda z: F.multi_margin_loss(z, D["classes"]),) * 2,
    "multilabel_margin_loss": (
        lambda z: F.multilabel_margin_loss(z, torch.stack([D["classes"], 0 * D["classes"] - 1, D["classes"]], 1)),
    )
    * 2,
    "hinge_embedding_loss": (lambda z: F.hinge_embedding_loss(z, 2 * D["bits"] - 1),) * 2,
    "margin_ranking_loss": (lambda z: F.margin_ranking_loss(z[:, 0], z[:, 1], D["signs"]),) * 2,
    "cosine_embedding_loss": (lambda z: F.cosine_embedding_loss(z, D["real"], D["signs"]),) * 2,
    "triplet_margin_loss": (lambda z: F.triplet_margin_loss(z, D["real"], D["soft"]),) * 2,
    "triplet_margin_with_distance_loss": (lambda z: F.triplet_margin_with_distance_loss(z, D["real"], D["soft"]),) * 2,
    "poisson_nll_loss": (lambda z: F.poisson_nll_loss(z, D["counts"]),) * 2,
    "poisson_nll_loss of rates": (
        lambda z: F.poisson_nll_loss(torch.exp(z), D["counts"], log_input=False, eps=0.0),
        lambda z: F.poisson_nll_loss(z, D["counts"]),
    ),
    "gaussian_nll_loss": (lambda z: F.gaussian_nll_loss(z[:, :1], D["real"][:, :1], torch.exp(z[:, 1:2])),) * 2,
    "ctc_loss": (
        lambda z: F.ctc_loss(
            torch.log_softmax(z, -1).unsqueeze(1).expand(-1, 2, -1),
            torch.tensor([[1, 2], [2, 1]]),
            torch.tensor([B, B]),
            torch.tensor([2, 2]),
        ),
    )
    * 2,
}


def test_all_losses_are_tried() -> None:
    assert {name.split()[0] for name in CASES} - {"CrossEntropyLoss"} == set(LOSSES)


@pytest.mark.parametrize("name", CASES)
def test_losses_see_the_linearised_logits(name: str) -> None:
    if name == "CrossEntropyLoss":
        module = nn.CrossEntropyLoss(label_smoothing=0.2)
        criterion = expected = lambda z: module(z, D["classes"])
    else:
        criterion, expected = CASES[name]
    model, h = tuned(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    x = torch.randn(B, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = h.draw(B)
    responses = response_parameters(model)
    ours = response_loss(lambda: criterion(model(x)), h, p)
    theirs = expected(linearised(lambda: model(x), h, p))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    with h.use(p):
        assert (criterion(model(x)) - ours).abs() > 1e-6
    for a, b in zip(torch.autograd.grad(ours, responses), torch.autograd.grad(theirs, responses), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_no_loss_function_is_an_error_that_says_what_to_do() -> None:
    model, h = tuned(nn.Linear(4, 3))
    x = torch.ones(B, 4, dtype=torch.float64)
    p = h.draw(B)
    with pytest.raises(ValueError, match="pass predict and criterion apart"):
        response_loss(lambda: (model(x) - 1).square().mean(), h, p)
    with pytest.raises(ValueError, match="a part of the loss depends on the perturbed"):
        response_loss(lambda: F.mse_loss(model(x), ONES) + model(x).square().mean(), h, p)
    with pytest.raises(ValueError, match="through no prediction"):
        response_loss(lambda: F.mse_loss(x, x), h, p)
    # Nothing of the mode is left behind.
    assert collapse(x) is x


def test_own_losses_collapse_the_prediction() -> None:
    model, h = tuned()
    x, y = inputs()
    p = h.draw(B)
    ours = same_masks(lambda: response_loss(lambda: -collapse(model(x)).log_softmax(1)[range(B), y].mean(), h, p))
    split = PredictionLoss(lambda: model(x), lambda z: -z.log_softmax(1)[range(B), y].mean())
    theirs = same_masks(lambda: perturbed_loss(split, h, p))
    known = same_masks(lambda: response_loss(lambda: F.cross_entropy(model(x), y), h, p))
    torch.testing.assert_close(ours, known)
    torch.testing.assert_close(theirs, known)


def test_weight_decay_is_that_of_the_perturbed_weights_in_both_forms() -> None:
    model, h = tuned(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    x = torch.randn(B, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = h.draw(B)

    def criterion(z: Tensor) -> Tensor:
        return F.cross_entropy(z, D["classes"]) + (h["decay"] * squared_norms(model)).mean()

    at_once = response_loss(lambda: criterion(model(x)), h, p)
    apart = perturbed_loss(PredictionLoss(lambda: model(x), criterion), h, p)
    with h.use(p):
        penalty = (h["decay"] * squared_norms(model)).mean()
    cross_entropy = F.cross_entropy(linearised(lambda: model(x), h, p), D["classes"])
    torch.testing.assert_close(apart, cross_entropy + penalty)
    torch.testing.assert_close(at_once, apart)
    responses = response_parameters(model)
    for a, b in zip(torch.autograd.grad(at_once, responses), torch.autograd.grad(apart, responses), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    model, h = tuned()
    x, y = inputs()
    p = h.draw(B)
    model.eval()  # masks of the CPU and the GPU differ
    expected = perturbed_loss(lambda: F.cross_entropy(model(x), y), h, p)
    model.cuda()
    moved = dataclasses.replace(p, raw=p.raw.cuda(), inputs=p.inputs.cuda(), delta=p.delta.cuda())
    ours = perturbed_loss(lambda: F.cross_entropy(model(x.cuda()), y.cuda()), h, moved)
    torch.testing.assert_close(ours.cpu(), expected)
