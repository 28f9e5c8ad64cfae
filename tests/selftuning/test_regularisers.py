from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from sthyper.config_space import loguniform, uniform
from sthyper.selftuning import Hyperparameters
from sthyper.selftuning.defaults import (
    AUGMENTATIONS,
    REGULARISERS,
    Tunable,
    default_shared,
    default_space,
    default_start,
)
from sthyper.selftuning.regularisers import (
    LARGEST_RATE,
    DropConnect,
    EmbeddingDropout,
    GaussianNoise,
    InputDropout,
    InputScale,
    LockedDropout,
    Regulariser,
    TunableDropout,
    TunableDropout1d,
    TunableDropout2d,
    TunableDropout3d,
    activation_penalty,
    drop_connect,
    drop_connections,
    dropout,
    dropout_1d,
    dropout_2d,
    dropout_3d,
    embedding_dropout,
    gaussian_noise,
    input_dropout,
    input_scale,
    locked_dropout,
    mixup,
    smoothed_cross_entropy,
    temporal_penalty,
    weight_decay,
)
from sthyper.selftuning.transform import self_tune

RATES = torch.tensor([0.0, 0.2, 0.5, 0.9])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator(11), dtype=dtype)


def check_masked(got: Tensor, x: Tensor, rates: Tensor) -> None:
    """Check that each row (``B x n``) is ``Bernoulli(1 - p) / (1 - p)`` times the input, with frequencies that fit."""
    for row, source, p in zip(got, x, rates.tolist(), strict=True):
        kept = row != 0
        torch.testing.assert_close(row[kept], source[kept] / (1 - p))
        if p == 0:
            assert torch.equal(row, source)
        else:
            assert scipy.stats.binomtest(int(kept.sum()), len(row), 1 - p).pvalue > 1e-3


# ---- dropout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, None])
def test_dropout_of_elements(dtype: torch.dtype, seed: int | None) -> None:
    torch.manual_seed(1)
    x = normal(4, 40, 50, dtype=dtype)
    got = dropout(x, RATES, generator=None if seed is None else generator(seed))
    assert got.dtype == dtype
    check_masked(got.flatten(1), x.flatten(1), RATES)
    # One rate for all is the same as the same rate for each.
    each = dropout(x, torch.full((4,), 0.3), generator=generator())
    assert torch.equal(dropout(x, torch.tensor(0.3), generator=generator()), each)
    torch.testing.assert_close(dropout(x, 0.3, generator=generator()), each, rtol=1e-6, atol=0)
    assert torch.equal(dropout(x, torch.full((4, 1), 0.3), generator=generator()), each)


def test_axis_of_the_examples() -> None:
    x = normal(600, 4, 3)
    got = dropout(x, RATES, batch_dim=1, generator=generator())
    check_masked(got.transpose(0, 1).flatten(1), x.transpose(0, 1).flatten(1), RATES)
    last = dropout(x.transpose(1, 2), RATES, batch_dim=-1, generator=generator())
    check_masked(last.permute(2, 0, 1).flatten(1), x.permute(1, 0, 2).flatten(1), RATES)
    # Several neighbouring rows of each example.
    flat = normal(4 * 300, 5)
    check_masked(dropout(flat, RATES, generator=generator()).reshape(4, -1), flat.reshape(4, -1), RATES)


CHANNELS = {1: dropout_1d, 2: dropout_2d, 3: dropout_3d}


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_dropout_of_channels(axes: int) -> None:
    x = normal(4, 2000, *[2] * axes)
    got = CHANNELS[axes](x, RATES, generator=generator()).flatten(2)
    kept = got != 0
    assert (kept.all(2) | ~kept.any(2)).all()
    check_masked(got[..., 0], x.flatten(2)[..., 0], RATES)
    check_masked(got[..., -1], x.flatten(2)[..., -1], RATES)
    single = CHANNELS[axes](x[0], torch.tensor(0.5), generator=generator()).flatten(1)
    assert ((single != 0).all(1) | (single == 0).all(1)).all()
    assert 800 < int((single[:, 0] != 0).sum()) < 1200
    plain = CHANNELS[axes](x[0], 0.5).flatten(1)
    assert ((plain != 0).all(1) | (plain == 0).all(1)).all()
    assert CHANNELS[axes](x, RATES, training=False) is x


def test_numbers_fall_back_to_torch() -> None:
    x3, x4, x5 = normal(2, 6, 3), normal(2, 6, 3, 3), normal(2, 6, 2, 2, 2)
    pairs: list[tuple[Callable[[], Tensor], Callable[[], Tensor]]] = [
        (lambda: dropout(x3, 0.4), lambda: F.dropout(x3, 0.4)),
        (lambda: dropout_1d(x3, 0.4), lambda: F.dropout1d(x3, 0.4)),
        (lambda: dropout_2d(x4, 0.4), lambda: F.dropout2d(x4, 0.4)),
        (lambda: dropout_3d(x5, 0.4), lambda: F.dropout3d(x5, 0.4)),
        (lambda: drop_connect(x3, 0.4), lambda: F.dropout(x3, 0.4)),
        (lambda: input_dropout(x3, 0.4), lambda: F.dropout(x3, 0.4)),
    ]
    for ours, theirs in pairs:
        torch.manual_seed(5)
        wanted = theirs()
        torch.manual_seed(5)
        assert torch.equal(ours(), wanted)


@pytest.mark.parametrize("batch_first", [False, True])
def test_locked_dropout_has_one_mask_for_all_times(batch_first: bool) -> None:
    x = normal(4, 5, 2000) if batch_first else normal(5, 4, 2000)
    got = locked_dropout(x, RATES, batch_first=batch_first, generator=generator())
    by_example = got if batch_first else got.transpose(0, 1)
    source = x if batch_first else x.transpose(0, 1)
    kept = by_example != 0
    assert torch.equal(kept.all(1), kept.any(1))
    check_masked(by_example[:, 2], source[:, 2], RATES)
    assert not torch.equal(kept[2], kept[1])
    shared = locked_dropout(x, 0.5, batch_first=batch_first, generator=generator()) != 0
    assert torch.equal(shared.all(int(batch_first)), shared.any(int(batch_first)))
    assert not shared.all()


def test_embedding_dropout_drops_words_from_all_examples_and_all_tables() -> None:
    words = torch.randint(500, (7, 300), generator=generator())
    table, other = normal(500, 4), normal(500, 4) + 1.0
    s = torch.rand(7, 1, 1, generator=generator())
    embedded = F.embedding(words, table) + s * F.embedding(words, other)
    got = embedding_dropout(embedded, words, 500, 0.4, generator=generator())
    # The same as one mask on the rows of both tables.
    rows = (embedding_dropout(torch.ones(500, 1), torch.arange(500), 500, 0.4, generator=generator())).double()
    wanted = F.embedding(words, table.double() * rows) + s * F.embedding(words, other.double() * rows)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    assert sorted(set(rows.flatten().tolist())) == pytest.approx([0.0, 1 / 0.6])
    assert scipy.stats.binomtest(int((rows == 0).sum()), 500, 0.4).pvalue > 1e-3
    assert torch.equal(embedding_dropout(embedded, words, 500, torch.tensor(0.4), generator=generator()), got)
    assert embedding_dropout(embedded, words, 500, torch.tensor(0.4), training=False) is embedded


def test_drop_connect_of_entries_and_rows() -> None:
    weight = normal(300, 50)
    got = drop_connect(weight, torch.tensor(0.3), generator=generator())
    check_masked(got.reshape(1, -1), weight.reshape(1, -1), torch.tensor([0.3]))
    rows = drop_connect(weight, 0.3, rows=True, generator=generator())
    kept = rows != 0
    assert torch.equal(kept.all(1), kept.any(1))
    check_masked(rows[:, :1].T, weight[:, :1].T, torch.tensor([0.3]))
    assert drop_connect(weight, torch.tensor(0.3), training=False) is weight


def test_input_dropout_of_pixels_in_all_channels() -> None:
    x = normal(4, 3, 40, 40) + 10.0
    got = input_dropout(x, RATES, share_channels=True, generator=generator())
    kept = got != 0
    assert torch.equal(kept.all(1), kept.any(1))
    check_masked(got[:, 1].flatten(1), x[:, 1].flatten(1), RATES)
    each = input_dropout(x, RATES, generator=generator()) != 0
    assert not torch.equal(each.all(1), each.any(1))
    unscaled = input_dropout(x, RATES, rescale=False, generator=generator())
    assert torch.equal(unscaled[unscaled != 0], x[unscaled != 0])
    assert scipy.stats.binomtest(int((unscaled[3] != 0).sum()), 4800, 0.1).pvalue > 1e-3
    moved = input_dropout(x.transpose(0, 1), RATES, batch_dim=1, rescale=False, generator=generator())
    assert torch.equal(moved[:, 0], x[0])
    assert input_dropout(x, RATES, share_channels=True, training=False) is x


def test_rates_of_one_or_more_are_cut() -> None:
    x = torch.ones(3, 20000)
    got = dropout(x, torch.tensor([1.0, 2.0, -1.0]), generator=generator())
    assert got.isfinite().all()
    assert torch.equal(got[2], x[2])
    check_masked(got[:2], x[:2], torch.tensor([LARGEST_RATE, LARGEST_RATE]))


# ---- noise ---------------------------------------------------------------------------------------------------


def test_gaussian_noise() -> None:
    std = torch.tensor([0.0, 0.5, 2.0, -1.0])
    x = normal(4, 5000)
    noise = gaussian_noise(x, std, generator=generator()) - x
    assert torch.equal(noise[[0, 3]], torch.zeros(2, 5000))
    for row, s in ((noise[1], 0.5), (noise[2], 2.0)):
        assert scipy.stats.kstest(row.double().numpy() / s, "norm").pvalue > 1e-3
    moved = gaussian_noise(x.T, std, batch_dim=1, generator=generator()) - x.T
    assert moved[:, 0].abs().max() == 0
    assert moved[:, 2].std() == pytest.approx(2.0, rel=0.1)
    assert gaussian_noise(x, 0.5).shape == x.shape
    assert not torch.equal(gaussian_noise(x, 0.5), x)
    assert gaussian_noise(x, std, training=False) is x


def test_input_scale_draws_one_factor_for_each_input() -> None:
    s = torch.tensor([0.0, 0.3]).repeat_interleave(2000)
    x = normal(4000, 2, 2, dtype=torch.float64).abs() + 0.1
    factor = input_scale(x, s, generator=generator()) / x
    torch.testing.assert_close(factor, factor[:, :1, :1].expand_as(factor))
    assert torch.equal(input_scale(x, s, generator=generator())[:2000], x[:2000])
    low, high = 1 / 1.3, 1.3
    drawn = factor[2000:, 0, 0].numpy()
    # (Strengths are rounded to float32 when they are made.)
    assert scipy.stats.kstest(drawn, scipy.stats.uniform(low - 1e-6, high - low + 2e-6).cdf).pvalue > 1e-3
    one = input_scale(x, 0.3, generator=generator())
    assert torch.unique((one / x)[:, 0, 0]).numel() > 3900
    moved = input_scale(x.transpose(0, 1), 0.3, batch_dim=1, generator=generator())
    torch.testing.assert_close(moved.transpose(0, 1), one)
    assert input_scale(x, s, training=False) is x


# ---- the loss ------------------------------------------------------------------------------------------------

SMOOTHING = torch.tensor([0.0, 0.1, 0.4, 1.0, 0.25])


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 2, 3)])
@pytest.mark.parametrize("soft", [False, True])
def test_smoothed_cross_entropy_is_torchs_of_each_example(shape: tuple[int, ...], soft: bool) -> None:
    logits = normal(*shape, dtype=torch.float64).requires_grad_()
    if soft:
        targets = normal(*shape, dtype=torch.float64).flip(0).softmax(1)
    else:
        targets = torch.randint(7, (shape[0], *shape[2:]), generator=generator())
    e = SMOOTHING.clone().requires_grad_()
    parts = [
        F.cross_entropy(logits[b : b + 1], targets[b : b + 1], label_smoothing=s, reduction="none")
        for b, s in enumerate(SMOOTHING.tolist())
    ]
    wanted = torch.cat(parts)
    got = smoothed_cross_entropy(logits, targets, e, reduction="none")
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(smoothed_cross_entropy(logits, targets, e), wanted.mean())
    torch.testing.assert_close(smoothed_cross_entropy(logits, targets, e, reduction="sum"), wanted.sum())
    ours, to_strength = torch.autograd.grad(got.sum(), (logits, e), retain_graph=True, allow_unused=True)
    assert to_strength is None
    torch.testing.assert_close(ours, torch.autograd.grad(wanted.sum(), logits, retain_graph=True)[0])
    for reduction in ("mean", "sum", "none"):
        one = F.cross_entropy(logits, targets, label_smoothing=0.3, reduction=reduction)
        torch.testing.assert_close(smoothed_cross_entropy(logits, targets, 0.3, reduction=reduction), one)
        shared = smoothed_cross_entropy(logits, targets, torch.tensor(0.3), reduction=reduction)
        torch.testing.assert_close(shared, one, rtol=1e-6, atol=1e-6)


def test_ignored_classes_count_for_nothing() -> None:
    logits = normal(5, 7, 3, dtype=torch.float64)
    targets = torch.randint(7, (5, 3), generator=generator())
    for index in (-100, 2):
        targets[::2, 1] = index
        for reduction in ("mean", "sum", "none"):
            wanted = F.cross_entropy(logits, targets, label_smoothing=0.2, reduction=reduction, ignore_index=index)
            for e in (0.2, torch.full((5,), 0.2)):
                got = smoothed_cross_entropy(logits, targets, e, reduction=reduction, ignore_index=index)
                torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
        targets[targets == -100] = 0


def test_mixup_mixes_inputs_and_targets_alike() -> None:
    n = 50
    x = torch.eye(n, dtype=torch.float64)
    classes = torch.arange(n) % 7
    alpha = torch.linspace(0.0, 2.0, n)
    alpha[10] = 0.0
    mixed, targets = mixup(x, classes, alpha, 7, generator=generator())
    assert torch.equal(mixed[[0, 10]], x[[0, 10]])
    torch.testing.assert_close(mixed.sum(1), torch.ones(n, dtype=torch.float64))
    assert ((mixed > 0).sum(1) <= 2).all()
    assert (mixed.diagonal() >= 0.5).all()
    torch.testing.assert_close(targets, mixed @ F.one_hot(classes, 7).double())
    again, soft = mixup(x, F.one_hot(classes, 7).float(), alpha, generator=generator())
    assert torch.equal(again, mixed)
    torch.testing.assert_close(soft.double(), targets, rtol=1e-6, atol=1e-6)
    assert not torch.equal(mixup(x, classes, alpha, 7, generator=generator(1))[0], mixed)
    grads = mixup(x.clone().requires_grad_(), classes, 0.3, 7)
    assert not grads[0].requires_grad


@pytest.mark.parametrize("alpha", [0.02, 0.3, 1.0, 4.0])
def test_weights_of_mixup_have_the_beta_distribution(alpha: float) -> None:
    n = 4000
    mixed, _ = mixup(torch.arange(n, dtype=torch.float64)[:, None], torch.zeros(n, 1), alpha, generator=generator())
    partner = torch.randperm(n, generator=generator()).double()
    own = torch.arange(n).double()
    other = partner != own
    weight = ((mixed[:, 0] - partner) / (own - partner))[other].numpy()
    beta = scipy.stats.beta(alpha, alpha)
    # (Not by a test of the whole distribution: small alphas have most of it where numbers are rounded to 1.)
    for bound in (0.55, 0.7, 0.9, 0.99, 1 - 1e-6):
        below = 2 * beta.cdf(bound) - 1
        assert scipy.stats.binomtest(int((weight < bound).sum()), len(weight), below).pvalue > 1e-4, bound


def test_penalties_are_those_of_a_loop() -> None:
    h = normal(6, 4, 3, dtype=torch.float64).requires_grad_()
    strength = torch.tensor([0.0, 1.0, 2.5, 0.3], dtype=torch.float64)
    ar = sum(strength[b] * h[t, b].square().mean() for t in range(6) for b in range(4)) / 24
    tar = sum(strength[b] * (h[t + 1, b] - h[t, b]).square().mean() for t in range(5) for b in range(4)) / 20
    torch.testing.assert_close(activation_penalty(h, strength, batch_dim=1), ar)
    torch.testing.assert_close(temporal_penalty(h, strength), tar)
    first = h.transpose(0, 1)
    torch.testing.assert_close(activation_penalty(first, strength), ar)
    torch.testing.assert_close(temporal_penalty(first, strength, batch_first=True), tar)
    torch.testing.assert_close(activation_penalty(h, 2.0), 2 * h.square().mean())
    torch.testing.assert_close(temporal_penalty(h, torch.tensor(2.0)), 2 * h.diff(dim=0).square().mean())
    single = temporal_penalty(h[:1], strength)
    assert single.item() == 0
    assert torch.autograd.grad(single, h)[0].abs().max() == 0
    strength.requires_grad_()
    assert torch.autograd.grad(activation_penalty(h, strength, batch_dim=1), strength, allow_unused=True) == (None,)


@pytest.mark.parametrize("groups", [1, 3, 4, 10])
def test_weight_decay_of_groups_and_examples(groups: int) -> None:
    h = Hyperparameters({"weight_decay": loguniform(1e-4, 1e-1)})
    norms = torch.rand(groups, generator=generator(), requires_grad=True)
    with h.perturbed(10, groups) as perturbation:
        strength = h["weight_decay"]
        each = perturbation.expand(norms) if groups > 1 else norms.expand(10)
        wanted = sum(0.5 * strength[b] * each[b] for b in range(10)) / 10
        got = weight_decay(norms, strength)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(torch.autograd.grad(got, norms)[0], torch.autograd.grad(wanted, norms)[0])
    torch.testing.assert_close(weight_decay(norms, 0.1), 0.05 * norms.mean())
    torch.testing.assert_close(weight_decay(norms[0], strength), 0.5 * norms[0] * strength.mean())
    torch.testing.assert_close(weight_decay(norms, torch.full((groups,), 0.1)), 0.05 * norms.mean())


def test_weight_decay_is_that_of_sgd() -> None:
    weight = normal(3, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(weight_decay(weight.square().sum(), 0.1), weight)
    torch.testing.assert_close(gradient, 0.1 * weight)


# ---- all of them ---------------------------------------------------------------------------------------------

X = normal(4, 6, 5)
RANDOM: dict[str, Callable[[Tensor, Any, torch.Generator | None], Tensor]] = {
    "dropout": lambda x, p, g: dropout(x, p, generator=g),
    "dropout_1d": lambda x, p, g: dropout_1d(x, p, generator=g),
    "dropout_2d": lambda x, p, g: dropout_2d(x[..., None], p, generator=g),
    "dropout_3d": lambda x, p, g: dropout_3d(x[..., None, None], p, generator=g),
    "locked_dropout": lambda x, p, g: locked_dropout(x, p, batch_first=True, generator=g),
    "input_dropout": lambda x, p, g: input_dropout(x, p, generator=g),
    "gaussian_noise": lambda x, p, g: gaussian_noise(x, p, generator=g),
    "input_scale": lambda x, p, g: input_scale(x, p, generator=g),
    "embedding_dropout": lambda x, p, g: embedding_dropout(
        x, torch.arange(24).reshape(4, 6), 24, p if isinstance(p, float) else p.mean(), generator=g
    ),
    "drop_connect": lambda x, p, g: drop_connect(x, p if isinstance(p, float) else p.mean(), generator=g),
}


@pytest.mark.parametrize("name", RANDOM)
def test_generator_decides(name: str) -> None:
    state = torch.get_rng_state()
    p: Any
    for p in (0.5, torch.full((4,), 0.5)):
        first = RANDOM[name](X, p, generator(1))
        assert torch.equal(first, RANDOM[name](X, p, generator(1)))
        assert not torch.equal(first, RANDOM[name](X, p, generator(2)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    free = RANDOM[name](X, torch.full((4,), 0.5), None)
    torch.manual_seed(0)
    assert torch.equal(free, RANDOM[name](X, torch.full((4,), 0.5), None))
    torch.set_rng_state(state)


@pytest.mark.parametrize("name", RANDOM)
def test_strengths_have_no_gradients_and_inputs_have(name: str) -> None:
    x, p = X.clone().requires_grad_(), torch.full((4,), 0.5, requires_grad=True)
    by_x, by_p = torch.autograd.grad(RANDOM[name](x, p, generator()).sum(), (x, p), allow_unused=True)
    assert by_p is None
    assert by_x is not None
    assert by_x.abs().max() > 0


@pytest.mark.parametrize("name", RANDOM)
def test_a_tangent_sees_the_same_mask(name: str) -> None:
    direction = normal(4, 6, 5).flip(0)
    p = torch.full((4,), 0.5)
    # The functions are linear in x but for the noise, so that the tangent is the same function of the direction.
    value, tangent = torch.func.jvp(lambda x: RANDOM[name](x, p, generator(3)), (X,), (direction,))
    assert torch.equal(value, RANDOM[name](X, p, generator(3)))
    wanted = direction if name == "gaussian_noise" else RANDOM[name](direction, p, generator(3))
    torch.testing.assert_close(tangent, wanted)
    torch.manual_seed(0)
    value, tangent = torch.func.jvp(lambda x: RANDOM[name](x, p, None), (X,), (X,))
    if name != "gaussian_noise":
        torch.testing.assert_close(tangent, value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", RANDOM)
def test_type_follows_the_input(name: str, dtype: torch.dtype) -> None:
    got = RANDOM[name](X.to(dtype), torch.full((4,), 0.5), generator())
    assert got.dtype == dtype
    assert got.isfinite().all()


def test_vmap_draws_for_each_example() -> None:
    x = torch.ones(4, 5000)
    got = torch.vmap(lambda row, p: dropout(row, p), randomness="different")(x, RATES)
    check_masked(got, x, RATES)


def test_bad_strengths() -> None:
    x = normal(6, 4)
    with pytest.raises(ValueError, match=r"p has 4 numbers.*axis 0 .* shape \(6, 4\) has 6; see batch_dim"):
        dropout(x, RATES)
    with pytest.raises(ValueError, match=r"batch_dim must be an axis of an input of shape \(6, 4\), got 2"):
        dropout(x, RATES, batch_dim=2)
    with pytest.raises(ValueError, match=r"batch_dim must be an axis"):
        input_scale(x, 0.1, batch_dim=2)
    with pytest.raises(ValueError, match=r"p must be from 0 to 1, got 1.5"):
        dropout(x, 1.5)
    with pytest.raises(ValueError, match=r"p must be finite, got nan"):
        dropout(x, float("nan"))
    with pytest.raises(TypeError, match=r"p must be a number or a tensor.*'a'"):
        dropout(x, "a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"p must be a number or a tensor.*True"):
        dropout(x, True)
    with pytest.raises(TypeError, match=r"real numbers, got a tensor of torch.bool"):
        dropout(x, torch.ones(6, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"floating-point numbers, got torch.int64"):
        dropout(x.long(), torch.rand(6))
    with pytest.raises(ValueError, match=r"one number for each example, got shape \(6, 2\)"):
        dropout(x, torch.rand(6, 2))
    with pytest.raises(ValueError, match=r"dropout_2d: input must have the shape B x C x L x L or C x L x L"):
        dropout_2d(x, RATES)
    with pytest.raises(ValueError, match=r"dropout_1d: p has one number for each example"):
        dropout_1d(x, torch.rand(6))
    with pytest.raises(ValueError, match=r"three axes"):
        locked_dropout(x, RATES)
    with pytest.raises(ValueError, match=r"has 3 examples; see batch_first"):
        locked_dropout(normal(4, 3, 2), RATES)
    with pytest.raises(ValueError, match=r"word dropout is the same for the whole batch.*per_example=False"):
        embedding_dropout(x, torch.zeros(6, dtype=torch.long), 3, RATES)
    with pytest.raises(ValueError, match=r"embedded must have the shape of words"):
        embedding_dropout(x, torch.zeros(5, dtype=torch.long), 3, 0.1)
    with pytest.raises(ValueError, match=r"n_words must be a whole number of at least 1, got 0"):
        embedding_dropout(x, torch.zeros(6, dtype=torch.long), 0, 0.1)
    with pytest.raises(ValueError, match=r"DropConnect is the same for the whole batch"):
        drop_connect(x, RATES)
    with pytest.raises(ValueError, match=r"share_channels: an input of shape \(6, 4\) has no channels"):
        input_dropout(x, 0.1, share_channels=True)
    with pytest.raises(ValueError, match=r"std must be at least 0, got -0.1"):
        gaussian_noise(x, -0.1)
    with pytest.raises(ValueError, match=r"s must be at least 0, got -0.1"):
        input_scale(x, -0.1)


def test_bad_arguments_of_losses() -> None:
    x = normal(6, 4)
    classes = torch.zeros(6, dtype=torch.long)
    with pytest.raises(ValueError, match=r"reduction must be 'mean', 'sum' or 'none', got 'avg'"):
        smoothed_cross_entropy(x, classes, reduction="avg")
    with pytest.raises(ValueError, match=r"smoothing must be from 0 to 1, got 2"):
        smoothed_cross_entropy(x, classes, 2.0)
    with pytest.raises(ValueError, match=r"targets must be classes"):
        smoothed_cross_entropy(x, classes[:5], torch.rand(6))
    with pytest.raises(ValueError, match=r"n_classes=None"):
        mixup(x, classes, 0.2)
    with pytest.raises(ValueError, match=r"n_classes=3 is for targets that are classes"):
        mixup(x, x, 0.2, 3)
    with pytest.raises(ValueError, match=r"as many examples"):
        mixup(x, x[:5], 0.2)
    with pytest.raises(ValueError, match=r"alpha must be at least 0"):
        mixup(x, x, -0.2)
    with pytest.raises(ValueError, match=r"three axes"):
        temporal_penalty(x, 0.1)
    with pytest.raises(ValueError, match=r"0-d or one for each group, got shape \(6, 4\)"):
        weight_decay(x, 0.1)
    with pytest.raises(ValueError, match=r"strength has 2 numbers for 3 groups"):
        weight_decay(torch.ones(3), torch.ones(2))


# ---- modules -------------------------------------------------------------------------------------------------


def hyperparameters() -> Hyperparameters:
    return Hyperparameters(
        {"rate": uniform(0.0, 0.9), "shared": uniform(0.0, 0.9)}, start={"rate": 0.4, "shared": 0.4}, shared=["shared"]
    )


Make = Callable[[Hyperparameters], Regulariser]
MODULES: dict[str, tuple[Make, tuple[Tensor, ...], Callable[..., Tensor]]] = {
    "TunableDropout": (lambda h: TunableDropout(h, "rate"), (X,), dropout),
    "TunableDropout, second axis": (
        lambda h: TunableDropout(h, "rate", batch_dim=1),
        (X.transpose(0, 1),),
        lambda x, p: dropout(x, p, batch_dim=1),
    ),
    "TunableDropout1d": (lambda h: TunableDropout1d(h, "rate"), (X,), dropout_1d),
    "TunableDropout2d": (lambda h: TunableDropout2d(h, "rate"), (X[..., None],), dropout_2d),
    "TunableDropout3d": (lambda h: TunableDropout3d(h, "rate"), (X[..., None, None],), dropout_3d),
    "LockedDropout": (lambda h: LockedDropout(h, "rate"), (X.transpose(0, 1),), locked_dropout),
    "LockedDropout, batch first": (
        lambda h: LockedDropout(h, "rate", batch_first=True),
        (X,),
        lambda x, p: locked_dropout(x, p, batch_first=True),
    ),
    "InputDropout": (lambda h: InputDropout(h, "rate"), (X,), input_dropout),
    "InputDropout, not scaled": (
        lambda h: InputDropout(h, "rate", rescale=False),
        (X,),
        lambda x, p: input_dropout(x, p, rescale=False),
    ),
    "InputDropout, channels": (
        lambda h: InputDropout(h, "rate", share_channels=True),
        (X[..., None],),
        lambda x, p: input_dropout(x, p, share_channels=True),
    ),
    "InputScale": (lambda h: InputScale(h, "rate"), (X,), input_scale),
    "GaussianNoise": (lambda h: GaussianNoise(h, "rate"), (X,), gaussian_noise),
    "GaussianNoise, second axis": (
        lambda h: GaussianNoise(h, "rate", batch_dim=1),
        (X.transpose(0, 1),),
        lambda x, p: gaussian_noise(x, p, batch_dim=1),
    ),
    "EmbeddingDropout": (
        lambda h: EmbeddingDropout(h, "shared", 9),
        (X[0], torch.arange(6)),
        lambda x, words, p: embedding_dropout(x, words, 9, p),
    ),
    "DropConnect": (lambda h: DropConnect(h, "shared"), (X,), drop_connect),
    "DropConnect, rows": (
        lambda h: DropConnect(h, "shared", rows=True),
        (X,),
        lambda x, p: drop_connect(x, p, rows=True),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_the_functions_with_the_strength_of_the_context(name: str) -> None:
    make, inputs, function = MODULES[name]
    h = hyperparameters()
    module = make(h)
    assert module.training
    for context in (h.perturbed(4), h.centred(), h.off()):
        with context:
            torch.manual_seed(0)
            got = module(*inputs)
            assert torch.equal(module.strength, h[module.name])
            torch.manual_seed(0)
            assert torch.equal(got, function(*inputs, h[module.name]))
            assert not torch.equal(got, inputs[0])
    module.eval()
    with h.perturbed(4):
        assert module(*inputs) is inputs[0]


@pytest.mark.parametrize("name", MODULES)
def test_modules_keep_the_hyperparameters_outside_of_their_state(name: str) -> None:
    h = hyperparameters()
    module = MODULES[name][0](h)
    assert not module.state_dict()
    assert not list(module.parameters())
    assert module.hyperparameters is h
    model = nn.Module()
    model.first, model.second, model.known = module, MODULES[name][0](h), h
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.known is not h
        assert copied.first.hyperparameters is copied.known
        assert copied.second.hyperparameters is copied.known
    assert sum(key.endswith("raw") for key in model.state_dict()) == 1
    assert module.name in repr(module)
    model.apply(lambda m: m.eval() if isinstance(m, Regulariser) else None)
    assert not module.training


@pytest.mark.parametrize("name", MODULES)
def test_modules_under_a_tangent(name: str) -> None:
    make, (x, *others), _ = MODULES[name]
    h = hyperparameters()
    module = make(h)
    with h.perturbed(4):
        value, tangent = torch.func.jvp(lambda x: module(x, *others), (x,), (x,))
    if "Noise" in name:
        assert torch.equal(tangent, x)
    else:
        torch.testing.assert_close(tangent, value)


def test_dropout_modules_are_found_as_torchs() -> None:
    h = hyperparameters()
    pairs = [
        (TunableDropout, nn.Dropout),
        (TunableDropout1d, nn.Dropout1d),
        (TunableDropout2d, nn.Dropout2d),
        (TunableDropout3d, nn.Dropout3d),
    ]
    for ours, theirs in pairs:
        module: Any = ours(h, "rate")
        assert isinstance(module, theirs)
        assert float(module.p) == pytest.approx(0.4)


def test_bad_modules() -> None:
    h = hyperparameters()
    with pytest.raises(ValueError, match=r"no hyperparameter 'rat' \(did you mean 'rate'\?\); known are"):
        TunableDropout(h, "rat")
    with pytest.raises(TypeError, match=r"must be Hyperparameters, got \{\}"):
        LockedDropout({}, "rate")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"DropConnect: the whole batch shares one mask.*shared=\['rate'\]"):
        DropConnect(h, "rate")
    with pytest.raises(ValueError, match=r"EmbeddingDropout: the whole batch shares one mask"):
        EmbeddingDropout(h, "rate", 10)


def test_drop_connect_of_a_recurrent_layer() -> None:
    torch.manual_seed(0)
    h = hyperparameters()
    lstm = nn.LSTM(3, 40)
    plain = copy.deepcopy(lstm)
    parametrize.register_parametrization(lstm, "weight_hh_l0", DropConnect(h, "shared"))
    x = normal(5, 2, 3)
    drawn: list[Tensor] = []
    lstm.parametrizations.weight_hh_l0[0].register_forward_hook(lambda module, args, weight: drawn.append(weight))  # type: ignore[union-attr, index]
    with h.perturbed(2):
        first = lstm(x)[0]
        outputs = []
        for weight in drawn:
            check_masked(weight.reshape(1, -1), plain.weight_hh_l0.reshape(1, -1), h["shared"].reshape(1))
            one = copy.deepcopy(plain)
            with torch.no_grad():
                one.weight_hh_l0.copy_(weight)
            outputs.append(one(x)[0])
        # One of the masks was there at all times.
        assert sum(torch.allclose(first, output, atol=1e-6) for output in outputs) == 1
        assert not torch.equal(lstm(x)[0], first)
    lstm.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])
    parametrize.remove_parametrizations(lstm, "weight_hh_l0", leave_parametrized=False)
    assert sorted(lstm.state_dict()) == sorted(plain.state_dict())


@pytest.mark.parametrize("response", ["full", "lowrank"])
@pytest.mark.parametrize("rows", [False, True])
def test_drop_connections_masks_weight_and_response_alike(response: Any, rows: bool) -> None:
    torch.manual_seed(0)
    h = hyperparameters()
    model: Any = self_tune(nn.Sequential(nn.LSTM(3, 30)), h, response=response, rank=2)
    for parameter in model.selftuning.responses.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    before = copy.deepcopy(model)
    dropped = drop_connections(model[0], "weight_hh_l0", h, "shared", rows)
    x = normal(5, 4, 3)
    masks: list[Tensor] = []
    dropped.register_forward_hook(lambda module, args, weight: masks.append(weight / args[0]))
    with h.perturbed(4, same=True) as perturbation:
        got = model(x)[0]
        plain = nn.LSTM(3, 30)
        with torch.no_grad():
            for site in before[0].sites(before[0]):
                general = site.general(before[0])
                weights, biases = before[0].response(site.name).effective(*general, perturbation)
                weight = weights[0]
                if site.weight == "weight_hh_l0":
                    mask = masks[-1]
                    kept = mask != 0
                    assert torch.equal(kept.all(1), kept.any(1)) == rows
                    weight = weight * mask if response == "full" else weight + general[0] * (mask - 1)
                getattr(plain, site.weight).copy_(weight)
                getattr(plain, site.bias).copy_(biases[0])
        torch.testing.assert_close(got, plain(x)[0], rtol=1e-4, atol=1e-5)
    model.eval()
    before.eval()
    before[0].link.owner.hyperparameters.load_state_dict(h.state_dict())
    with h.use(perturbation), before[0].link.owner.hyperparameters.use(perturbation):
        torch.testing.assert_close(model(x)[0], before(x)[0])
    with pytest.raises(ValueError, match=r"no parameter 'weight_hh_l1' \(did you mean"):
        drop_connections(nn.LSTM(3, 4), "weight_hh_l1", h, "shared")


def test_drop_connect_of_a_cell_has_one_mask_while_it_is_cached() -> None:
    h = hyperparameters()
    cell = nn.LSTMCell(3, 40)
    parametrize.register_parametrization(cell, "weight_hh", DropConnect(h, "shared"))
    with parametrize.cached():
        assert torch.equal(cell.weight_hh, cell.weight_hh)
    assert not torch.equal(cell.weight_hh, cell.weight_hh)
    cell.weight_hh = torch.ones(160, 40)  # type: ignore[assignment]
    cell.eval()
    assert torch.equal(cell.weight_hh, torch.ones(160, 40))


# ---- defaults ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", ["delta-stn", "stn"])
def test_every_default_makes_a_hyperparameter_that_can_move(paper: Any) -> None:
    names = [*REGULARISERS, *AUGMENTATIONS]
    h = Hyperparameters(default_space(names, paper), start=default_start(names), shared=default_shared(names))
    assert h.names == names
    assert h.values() == pytest.approx(default_start(names), rel=1e-5)
    assert h.raw.abs().max() <= 3.0
    assert not h.idle().any()
    assert default_shared(names) == ["dropoute", "wdrop", "alpha", "beta"]


def test_ranges_of_both_papers() -> None:
    names = ["dropout0", "indropout", "inscale", "hue", "cutout_length", "cutout_holes", "degrees", "translate"]
    delta, stn = default_space(names), default_space(names, "stn")
    ends = [{n: (getattr(d, "lower"), getattr(d, "upper")) for n, d in space.items()} for space in (delta, stn)]  # noqa: B009
    assert ends[0]["dropout0"] == (0, 0.95)
    assert ends[1]["dropout0"] == (0, 0.9)
    assert ends[1]["indropout"] == (0, 1)
    assert ends[0]["inscale"] == ends[1]["inscale"] == (0, 0.3)
    assert ends[0]["hue"] == (0, 0.5)
    assert (ends[0]["cutout_length"], ends[1]["cutout_length"]) == ((2, 24), (0, 24))
    assert (ends[0]["cutout_holes"], ends[1]["cutout_holes"]) == ((0, 5), (0, 4))
    assert ends[0]["degrees"] == (0, 45)
    assert ends[0]["translate"] == (0, 0.5)


def test_names_with_numbers_paths_and_meanings() -> None:
    assert default_space(["features.dropout12", "fcdropout0"]) == default_space(
        {"features.dropout12": "dropout", "fcdropout0": "fcdropout"}
    )
    own = Tunable("own", uniform(0.0, 3.0), start=1.0, shared=True)
    assert default_space({"mine": own}) == {"mine": own.domain}
    assert default_start({"mine": own, "rate": "weight_decay"}) == {"mine": 1.0, "rate": 1e-5}
    assert default_shared({"mine": own, "rate": "wdrop", "x": "hue"}) == ["mine", "rate"]


def test_unknown_defaults() -> None:
    with pytest.raises(ValueError, match=r"'weigth_decay' \(did you mean 'weight_decay'\?\); known"):
        default_space(["weigth_decay"])
    with pytest.raises(ValueError, match=r"did you mean 'hue'"):
        default_start({"x": "hues"})
    with pytest.raises(ValueError, match=r"'hue' is there twice"):
        default_space(["hue", "hue"])
    with pytest.raises(TypeError, match=r"one name is \['hue'\]"):
        default_space("hue")
    with pytest.raises(ValueError, match=r"paper must be one of .* got 'sth' \(did you mean 'stn'\?\)"):
        default_space(["hue"], "sth")  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", RANDOM)
def test_on_a_gpu_the_same_masks_as_on_the_cpu(name: str) -> None:
    if name == "embedding_dropout":
        words = torch.arange(24).reshape(4, 6)
        wanted = embedding_dropout(X, words, 24, 0.5, generator=generator())
        got = embedding_dropout(X.cuda(), words.cuda(), 24, 0.5, generator=generator())
    else:
        # A generator on the CPU draws the same numbers for tensors on the GPU.
        p = torch.full((4,), 0.5)
        wanted = RANDOM[name](X, p, generator())
        got = RANDOM[name](X.cuda(), p.cuda(), generator())
        assert RANDOM[name](X.cuda(), p, torch.Generator("cuda")).is_cuda
    assert got.is_cuda
    torch.testing.assert_close(got.cpu(), wanted)
