"""The cost model of NAS-Bench-201 cells against features worked out by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from sthyper.surrogates.cost import CostObservation, NASBench201LinearCostModel

KEYS = tuple(f"x{i}" for i in range(6))
OPS = {"skip": 0, "none": 1, "c1": 2, "c3": 3, "avg": 4}


def config(text: str) -> dict[str, str]:
    return dict(zip(KEYS, text.split(), strict=True))


def model(separate: bool = False, count_sum: bool = False, **options: Any) -> NASBench201LinearCostModel:
    return NASBench201LinearCostModel(KEYS, OPS, separate, count_sum, **options)


# (cell, number of average poolings, of 1x1, of 3x3, of point-wise sums)
CELLS = [
    ("skip skip skip skip skip skip", 0, 0, 0, 3),
    ("avg c1 c3 c3 none avg", 2, 1, 2, 2),
    # Nothing reaches node 1: x2 and x4 do nothing.
    ("none c1 c3 avg c3 c3", 1, 1, 1, 1),
    # Nothing reaches nodes 1 and 2.
    ("none none c3 c1 c3 c3", 0, 1, 0, 0),
    # Nothing reaches node 2, node 1 is used.
    ("c1 none none avg c3 c3", 1, 1, 1, 1),
    # Nothing reaches node 3.
    ("c3 c3 c3 none none none", 0, 0, 3, 1),
    ("none none none none none none", 0, 0, 0, 0),
]


@pytest.mark.parametrize(("cell", "avg", "c1", "c3", "sums"), CELLS)
def test_features(cell: str, avg: int, c1: int, c3: int, sums: int) -> None:
    f0, f1 = model().feature_matrices([config(cell)])
    np.testing.assert_allclose(f0, [[1.0]])
    np.testing.assert_allclose(f1, [[1.0, 5 / 6 * avg, (c1 + 9 * c3) / 12]])
    _, f1 = model(separate=True, count_sum=True).feature_matrices([config(cell)])
    np.testing.assert_allclose(f1, [[1.0, 5 / 6 * avg, 5 / 6 * c1, 5 / 6 * c3, 25 / 76 * sums]])
    assert model(separate=True).feature_matrices([config(cell)])[1].shape == (1, 4)
    assert model(count_sum=True).feature_matrices([config(cell)])[1].shape == (1, 4)


def test_operations_are_numbered_as_in_the_reference() -> None:
    Op = NASBench201LinearCostModel.Op
    assert [op.name for op in Op] == ["SKIP_CONNECT", "NONE", "NOR_CONV_1x1", "NOR_CONV_3x3", "AVG_POOL_3x3"]
    assert [int(op) for op in Op] == [0, 1, 2, 3, 4]


def test_values_are_mapped_by_the_given_table() -> None:
    cell = config("avg c1 c3 c3 none avg")
    swapped = NASBench201LinearCostModel(KEYS, OPS | {"c1": 3, "c3": 2}, True, False)
    assert swapped.feature_matrices([cell])[1][0].tolist() == pytest.approx([1.0, 10 / 6, 10 / 6, 5 / 6])
    reversed_keys = NASBench201LinearCostModel(KEYS[::-1], OPS, False, False)
    dead = config("c1 c3 c3 c3 c3 none")  # read backwards, nothing reaches node 1
    assert reversed_keys.feature_matrices([dead])[1][0, 2] == pytest.approx((1 + 9 * 2) / 12)


def test_costs_without_noise_are_recovered() -> None:
    cells = [config(" ".join(ops)) for ops in itertools.islice(itertools.product(OPS, repeat=6), 0, None, 311)]
    fitted = model(True, True, alphas=[1e-10])
    weights = np.array([3.0, 1.0, 2.0, 9.0, 0.5])
    features = fitted.feature_matrices(cells)[1]
    fitted.update(
        [CostObservation(c, r, 20 + r * f @ weights) for c, f in zip(cells, features, strict=True) for r in (1, 7)]
    )
    test = config("c3 c3 avg c1 skip c1")
    (value,) = fitted.sample_joint([test])
    assert value.c0 == pytest.approx(20.0, abs=1e-5)
    assert value.c1 == pytest.approx(float(fitted.feature_matrices([test])[1][0] @ weights), abs=1e-5)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="config_keys"):
        NASBench201LinearCostModel(KEYS[:5], OPS, False, False)
    with pytest.raises(ValueError, match="config_keys"):
        NASBench201LinearCostModel(("x0",) * 6, OPS, False, False)
    with pytest.raises(ValueError, match="map_config_values.*'c5'.*got 5"):
        NASBench201LinearCostModel(KEYS, OPS | {"c5": 5}, False, False)
    with pytest.raises(ValueError, match="'avgg'.*did you mean 'avg'"):
        model().feature_matrices([config("avgg c1 c1 c1 c1 c1")])
    with pytest.raises(ValueError, match="no 'x5'"):
        model().feature_matrices([{k: "c1" for k in KEYS[:5]}])
