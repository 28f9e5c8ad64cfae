"""The cheap samples of masks: exact probabilities, next to no dependence, repeatable, safe at the borders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sthyper.straight_through._mask_draws import draw, uniform

N_LOW = 1024


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(100_000,), (64, 1024), (7, 0)])
def test_shape_type_and_range_of_uniform_numbers(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    u = uniform(torch.Size(shape), dtype, seeded())
    assert u.shape == shape
    assert u.dtype == dtype
    if u.numel():
        assert 0 <= float(u.min()) < 1e-3
        assert 0.999 < float(u.max()) < 1


def test_the_largest_number_is_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """All high bits 1 and the largest low ones: what is certain stays certain."""
    monkeypatch.setattr(Tensor, "random_", lambda self, *_, **__: self.fill_(-1))
    monkeypatch.setattr(Tensor, "uniform_", lambda self, start, end, **__: self.fill_(end))
    for dtype in (torch.float32, torch.float64):
        assert 1 - 2.0**-23 <= float(uniform(torch.Size([5]), dtype).max()) < 1


def test_all_bytes_are_equally_frequent() -> None:
    """Chi-squared with 255 degrees of freedom, of the high and of the middle bits."""
    u = uniform(torch.Size([2**20]), torch.float64, seeded())
    counts = torch.bincount((u * 256).long(), minlength=256).double()
    chi_squared = float(((counts - 4096) ** 2 / 4096).sum())
    assert 170 < chi_squared < 355  # all but 1e-5 on each side
    pools = torch.stack([uniform(torch.Size([N_LOW]), torch.float64, seeded(seed)) for seed in range(256)])
    middle = torch.bincount((pools * 2**16).long().remainder(256).flatten(), minlength=256).double()
    assert 170 < float(((middle - 1024) ** 2 / 1024).sum()) < 355


@pytest.mark.parametrize("p", [0.0005, 0.1, 0.5, 0.50195, 0.9])
def test_frequencies_are_the_probabilities(p: float) -> None:
    """Probabilities between multiples of 1/256, too, which high bits alone could not tell apart."""
    n, rounds = 2**16, 60
    generator = seeded(1)
    counts = torch.stack([draw(torch.full((n,), p), generator).sum().double() for _ in range(rounds)])
    deviation = (p * (1 - p) / (n * rounds)) ** 0.5
    assert abs(float(counts.mean()) / n - p) < 4.5 * deviation


def test_numbers_that_share_low_bits_are_nearly_independent() -> None:
    """The sum of a column of 1024 that share theirs varies as that of independent ones does."""
    generator = seeded(2)
    p = torch.full((1024, N_LOW), 0.50195)  # between 128 / 256 and 129 / 256: the worst case
    sums = torch.stack([draw(p, generator).sum(0) for _ in range(8)]).flatten().double()
    binomial = 1024 * 0.25
    assert 0.93 < float(sums.var()) / binomial < 1.07
    rows = torch.stack([draw(p, generator).sum(1) for _ in range(8)]).flatten().double()
    assert 0.93 < float(rows.var()) / binomial < 1.07


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 5000, 8192])
def test_shape_and_dtype_follow_the_probabilities(dtype: torch.dtype, n: int) -> None:
    p = torch.full((n, 1), 0.3, dtype=dtype)
    sample = draw(p, seeded())
    assert sample.shape == p.shape
    assert sample.dtype == dtype
    assert set(sample.float().unique().tolist()) <= {0.0, 1.0}
    if n > 1:
        assert abs(float(sample.double().mean()) - 0.3) < 0.04


@pytest.mark.parametrize("n", [10, 300_001])
def test_zero_and_one_are_certain_and_nan_counts_as_zero(n: int) -> None:
    assert draw(torch.zeros(n)).sum() == 0
    assert draw(torch.ones(n)).sum() == n
    assert draw(torch.full((n,), torch.nan)).sum() == 0


@pytest.mark.parametrize("n", [10, 5000])
def test_generators_decide(n: int) -> None:
    p = torch.full((n,), 0.5)

    def first_of(generator: torch.Generator | None) -> Tensor:
        return draw(p, generator)

    assert torch.equal(first_of(seeded(3)), first_of(seeded(3)))
    assert not torch.equal(first_of(seeded(3)), first_of(seeded(4)))
    state = torch.get_rng_state()
    first_of(seeded(3))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    a = first_of(None)
    torch.manual_seed(5)
    assert torch.equal(a, first_of(None))


def test_strided_probabilities() -> None:
    p = torch.zeros(100, 80)
    p[:, ::2] = 1
    assert torch.equal(draw(p.t()), p.t())
