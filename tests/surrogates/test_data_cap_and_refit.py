"""Which observations are kept, and when parameters are fitted anew."""

from __future__ import annotations

import json

import pytest
import torch

from sthyper.surrogates.data_cap import cap_size
from sthyper.surrogates.refit import AlwaysSkip, NeverSkip, RefitRule, SkipNoMaxResource, SkipPeriodically


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(n: int = 40) -> torch.Tensor:
    return torch.randn(n, dtype=torch.float64, generator=generator(7))


# ---- data cap ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_size", [None, 40, 1000])
def test_all_are_kept_without_a_cap_and_nothing_is_drawn(max_size: int | None) -> None:
    source = generator()
    before = source.get_state()
    assert torch.equal(cap_size(values(), max_size, 0.25, source), torch.arange(40))
    assert torch.equal(source.get_state(), before)
    assert cap_size(torch.zeros(0), 5, 0.25, source).tolist() == []


@pytest.mark.parametrize(
    ("max_size", "top_fraction", "num_best"), [(10, 0.0, 0), (12, 0.25, 3), (11, 0.25, 3), (10, 0.3, 3), (10, 1.0, 10)]
)
def test_the_lowest_are_kept_and_a_sorted_random_rest(max_size: int, top_fraction: float, num_best: int) -> None:
    Y = values()
    order = Y.argsort().tolist()
    counts = torch.zeros(40)
    num_draws = 600
    for seed in range(num_draws):
        kept = cap_size(Y, max_size, top_fraction, generator(seed)).tolist()
        assert kept == sorted(set(kept))
        assert len(kept) == max_size
        assert set(order[:num_best]) <= set(kept)
        counts[kept] += 1
    # Each of the others has the same chance.
    others = counts[order[num_best:]] / num_draws
    chance = (max_size - num_best) / (40 - num_best)
    assert (others - chance).abs().max() < 5 * (chance * (1 - chance) / num_draws) ** 0.5 + 1e-9


def test_the_generator_decides_and_ties_go_to_the_earlier() -> None:
    Y = values()
    first, again, other = (cap_size(Y, 10, 0.5, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.int64
    assert cap_size(torch.ones(9), 3, 1.0, generator()).tolist() == [0, 1, 2]


def test_bad_arguments_of_the_cap_are_named() -> None:
    with pytest.raises(ValueError, match="max_size must be a positive int or None, got 0"):
        cap_size(values(), 0, 0.25, generator())
    with pytest.raises(TypeError, match=r"max_size must be a positive int or None, got 2\.5"):
        cap_size(values(), 2.5, 0.25, generator())  # type: ignore[arg-type]
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="top_fraction must be in"):
            cap_size(values(), 10, fraction, generator())
    with pytest.raises(ValueError, match=r"Y must have the shape \(n,\), got \(40, 1\)"):
        cap_size(values()[:, None], 10, 0.25, generator())


# ---- refit -------------------------------------------------------------------------------------------


def test_never_and_always() -> None:
    assert all(NeverSkip().should_fit(n) for n in range(5))
    assert not any(AlwaysSkip().should_fit(n) for n in range(5))


def test_periodically_fits_below_the_start_and_then_every_period_th() -> None:
    rule = SkipPeriodically(init_length=4, period=3)
    fitted = [n for n in range(1, 15) if rule.should_fit(n)]
    assert fitted == [1, 2, 3, 4, 7, 10, 13]
    assert [n for n in range(1, 8) if SkipPeriodically(4, 1).should_fit(n)] == [1, 2, 3, 4, 5, 6, 7]
    other = SkipPeriodically(init_length=0, period=3)
    assert [n for n in range(1, 8) if other.should_fit(n)] == [1, 4, 7]


def test_asking_again_about_the_same_data_changes_nothing() -> None:
    once, often = SkipPeriodically(2, 3), SkipPeriodically(2, 3)
    for n in range(1, 12):
        answer = once.should_fit(n)
        assert [often.should_fit(n) for _ in range(4)] == [answer] * 4
    rule = SkipNoMaxResource(1, 9)
    rule.should_fit(2, [1, 1])
    assert [rule.should_fit(3, [1, 1, 9]) for _ in range(3)] == [True] * 3


def test_growth_by_several_observations_is_one_change() -> None:
    rule = SkipPeriodically(10, 2)
    assert [rule.should_fit(n) for n in (12, 19, 23, 30)] == [True, False, True, False]


def test_no_max_resource_fits_only_if_the_largest_resource_has_more() -> None:
    rule = SkipNoMaxResource(init_length=3, max_resource=9)
    resources: list[float] = []
    answers = []
    for resource in (1, 3, 1, 3, 9, 1, 3, 9, 9, 1):
        resources.append(resource)
        answers.append(rule.should_fit(len(resources), resources))
    assert answers == [True, True, False, False, True, False, False, True, True, False]
    other = SkipNoMaxResource(init_length=3, max_resource=3)
    assert [other.should_fit(n, resources[:n]) for n in range(1, 6)] == [True, True, False, True, False]
    assert SkipNoMaxResource(0, 9).should_fit(4, [1, 1, 1, 1])  # there is nothing to keep yet


@pytest.mark.parametrize(
    "make", [NeverSkip, AlwaysSkip, lambda: SkipPeriodically(2, 3), lambda: SkipNoMaxResource(2, 9)]
)
def test_state_goes_on_and_reset_starts_again(make: type[RefitRule]) -> None:
    resources = [9, 1, 9, 1, 1, 9, 1, 9]
    whole, first = make(), make()
    answers = [whole.should_fit(n, resources[:n]) for n in range(1, 9)]
    assert [first.should_fit(n, resources[:n]) for n in range(1, 5)] == answers[:4]
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.should_fit(n, resources[:n]) for n in range(4, 9)] == answers[3:]
    second.reset()
    assert [second.should_fit(n, resources[:n]) for n in range(1, 9)] == answers


def test_bad_arguments_of_the_rules_are_named() -> None:
    with pytest.raises(ValueError, match="period must be at least 1, got 0"):
        SkipPeriodically(3, 0)
    with pytest.raises(ValueError, match="init_length must be at least 0, got -1"):
        SkipPeriodically(-1, 2)
    with pytest.raises(TypeError, match=r"period must be an int, got 2\.0"):
        SkipPeriodically(3, 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_resource must be at least 1, got 0"):
        SkipNoMaxResource(3, 0)
    with pytest.raises(ValueError, match="num_labeled must not be negative"):
        NeverSkip().should_fit(-1)
    with pytest.raises(ValueError, match="resources must be those of 3 observations, got 2"):
        NeverSkip().should_fit(3, [1, 2])
    with pytest.raises(ValueError, match="needs the resources"):
        SkipNoMaxResource(3, 9).should_fit(3)
