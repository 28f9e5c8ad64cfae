"""The order of sums over workers: published values, edge cases, and that the order of arrival does not matter."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sthyper.straight_through.order import (
    decode_and_pseudo_sort_results,
    ordered_sum,
    pseudo_sort_scoring_function,
    select_zeroeth_element,
)


def published_arrays() -> list[Any]:
    state = np.random.RandomState(42)
    return [state.rand(10, 10), state.rand(10, 10), state.rand(5, 5), state.rand(5, 5)]


def test_published_score() -> None:
    assert pseudo_sort_scoring_function(("client", published_arrays(), 13)) == pytest.approx(14.29199, abs=5e-6)


def test_published_score_ignores_bools_and_strings() -> None:
    arrays = published_arrays()
    more = [np.array([[True, False]]), *arrays[:2], np.array(["a", "b"]), *arrays[2:]]
    assert pseudo_sort_scoring_function(("client", more, 13)) == pseudo_sort_scoring_function(("client", arrays, 13))


@pytest.mark.parametrize("as_tensors", [False, True])
def test_published_order(as_tensors: bool) -> None:
    results = []
    for n in (100, 75, 50):
        arrays = [np.full((3, 4), 0.5), np.full((2,), 0.25)]
        results.append((f"client {n}", ([torch.from_numpy(a) for a in arrays] if as_tensors else arrays, n)))
    ordered = decode_and_pseudo_sort_results(results)
    assert [n for _, _, n in ordered] == [50, 75, 100]
    assert [client for client, _, _ in ordered] == ["client 50", "client 75", "client 100"]
    assert ordered[0][1][0] is results[2][1][0][0]


def test_forms_of_results() -> None:
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    flower = SimpleNamespace(parameters=SimpleNamespace(tensors=[buffer.getvalue()]), num_examples=3)
    plain = SimpleNamespace(parameters=[array], num_examples=2)
    forms: list[Any] = [("a", flower), ("b", plain), ("c", ([array], 1)), ("d", [array], 0)]
    ordered = decode_and_pseudo_sort_results(forms)
    assert [(client, n) for client, _, n in ordered] == [("d", 0), ("c", 1), ("b", 2), ("a", 3)]
    assert all(len(arrays) == 1 and np.array_equal(arrays[0], array) for _, arrays, _ in ordered)


def test_bytes_are_not_unpickled() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    result = SimpleNamespace(parameters=SimpleNamespace(tensors=[buffer.getvalue()]), num_examples=3)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        decode_and_pseudo_sort_results([("a", result)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_floating_tensors_count(dtype: torch.dtype) -> None:
    tensors = [torch.full((2, 3), 0.25, dtype=dtype), torch.tensor(1.5, dtype=dtype), torch.full((4,), -2.0).to(dtype)]
    assert pseudo_sort_scoring_function((0, tensors, 7)) == 7 + 0.25 + 1.5 - 2.0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_floating_arrays_count(dtype: Any) -> None:
    arrays = [np.full((2, 3), 0.25, dtype=dtype), np.array(1.5, dtype=dtype), dtype(-2.0)]
    assert pseudo_sort_scoring_function((0, arrays, 7)) == 7 + 0.25 + 1.5 - 2.0


IGNORED: list[Any] = [
    torch.tensor([3]),
    torch.tensor([True]),
    torch.tensor([3.0 + 1j]),
    torch.empty(0),
    torch.empty(2, 0, 3),
    np.array([3]),
    np.array([3], dtype=np.uint8),
    np.array([True]),
    np.array(["3.0"]),
    np.array([3.0 + 1j]),
    np.array([3.0], dtype=object),
    np.empty(0),
    np.empty((2, 0)),
    np.array(["2020-01-01"], dtype="datetime64[D]"),
    np.int64(3),
]


@pytest.mark.parametrize("array", IGNORED, ids=lambda a: f"{type(a).__name__}-{a.dtype}-{tuple(a.shape)}")
def test_others_are_left_out(array: Any) -> None:
    assert pseudo_sort_scoring_function((0, [array], 5)) == 5
    assert pseudo_sort_scoring_function((0, [array, torch.tensor([0.5]), array], 5)) == 5.5


def test_without_floating_arrays_the_score_is_the_number_of_examples() -> None:
    assert pseudo_sort_scoring_function((None, [], 9)) == 9
    ordered = decode_and_pseudo_sort_results([("a", [], 3), ("b", [torch.tensor([1])], 2)])
    assert [client for client, _, _ in ordered] == ["b", "a"]


def test_score_is_added_up_in_double_precision_and_list_order() -> None:
    tensors = [torch.tensor([1e8]), torch.tensor([0.25]), torch.tensor([-1e8])]
    # In single precision the quarter would be lost.
    assert pseudo_sort_scoring_function((0, tensors, 0)) == 0.25
    tensors = [torch.tensor([x], dtype=torch.float64) for x in (1e16, 1.0, -1e16)]
    assert pseudo_sort_scoring_function((0, tensors, 0)) == 0.0
    assert pseudo_sort_scoring_function((0, [tensors[0], tensors[2], tensors[1]], 0)) == 1.0


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (torch.arange(6.0).view(2, 3) + 4, 4.0),
        (torch.arange(6.0).view(2, 3).t() + 4, 4.0),
        (torch.tensor(2.5, dtype=torch.bfloat16), 2.5),
        (torch.tensor([7, 8]), 7),
        (torch.tensor([1 + 2j]), 1 + 2j),
        (torch.ones(2, requires_grad=True), 1.0),
        (np.array([[5.5, 1.0]]), 5.5),
        (np.array(3.5), 3.5),
        (np.float32(0.5), 0.5),
        (np.array([["x", "y"]]), "x"),
        (np.array([[True]]), True),
        (np.array([["x", 2]], dtype=object), "x"),
    ],
    ids=repr,
)
def test_zeroeth_element(array: Any, expected: object) -> None:
    element = select_zeroeth_element(array)
    assert element == expected
    assert type(element) is type(expected)


@pytest.mark.parametrize("array", [torch.empty(2, 0), np.empty((0, 3))], ids=["tensor", "array"])
def test_empty_has_no_zeroeth_element(array: Any) -> None:
    with pytest.raises(IndexError, match=r"an array of shape \(.*\) has no first element"):
        select_zeroeth_element(array)


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_nan_comes_last(position: int) -> None:
    results: list[Any] = [("b", [torch.tensor([2.0])], 1), ("a", [torch.tensor([1.0])], 1)]
    results.append(("inf", [torch.tensor([math.inf])], 1))
    results.insert(position, ("nan", [torch.tensor([math.nan])], 1))
    assert [client for client, _, _ in decode_and_pseudo_sort_results(results)] == ["a", "b", "inf", "nan"]


def test_several_nans_are_sorted_by_what_else_there_is() -> None:
    results = [(f"{i}", [torch.tensor([math.nan, i % 3])], i) for i in range(6)]
    expected = [str(i) for i in range(6)]
    for order in (range(6), reversed(range(6)), (3, 1, 5, 0, 2, 4)):
        got = decode_and_pseudo_sort_results([results[i] for i in order])
        assert [client for client, _, _ in got] == expected


@pytest.mark.parametrize("convert", [torch.from_numpy, lambda a: a], ids=["tensors", "arrays"])
def test_ties_are_broken_by_contents(convert: Any) -> None:
    """As with a first weight that is frozen or starts at 0: all scores are the same."""
    state = np.random.RandomState(0)
    contents = [np.concatenate([[0.0], state.rand(5)]) for _ in range(6)]
    results = [(i, [convert(content)], 10) for i, content in enumerate(contents)]
    first = [i for i, _, _ in decode_and_pseudo_sort_results(results)]
    for _ in range(5):
        shuffled = [results[i] for i in state.permutation(6)]
        assert [i for i, _, _ in decode_and_pseudo_sort_results(shuffled)] == first


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([torch.tensor([0.0, 1.0])], [torch.tensor([0.0, 2.0])]),
        ([torch.tensor([0.0, 1.0], dtype=torch.bfloat16)], [torch.tensor([0.0, 2.0], dtype=torch.bfloat16)]),
        ([torch.zeros(2, 3)], [torch.zeros(3, 2)]),
        ([torch.zeros(2)], [torch.zeros(2, dtype=torch.float64)]),
        ([torch.zeros(2), torch.tensor([1])], [torch.zeros(2), torch.tensor([2])]),
        ([np.zeros(2), np.array(["a"])], [np.zeros(2), np.array(["b"])]),
        ([np.zeros(2), np.array([1, "a"], dtype=object)], [np.zeros(2), np.array([1, "b"], dtype=object)]),
        ([torch.tensor(0.0), torch.tensor(1)], [torch.tensor(0.0), torch.tensor(2)]),
        ([np.zeros((2, 2))[:, :1], np.arange(4).reshape(2, 2).T], [np.zeros((2, 2))[:, :1], np.arange(4)]),
    ],
)
def test_whatever_differs_breaks_a_tie(one: list[Any], other: list[Any]) -> None:
    forwards = decode_and_pseudo_sort_results([("one", one, 3), ("other", other, 3)])
    backwards = decode_and_pseudo_sort_results([("other", other, 3), ("one", one, 3)])
    assert [client for client, _, _ in forwards] == [client for client, _, _ in backwards]


def test_number_of_examples_breaks_a_tie_first() -> None:
    # Both scores are 5.
    results = [("many", [torch.tensor([1.0, 9.0])], 4), ("few", [torch.tensor([2.0, 9.0])], 3)]
    assert [client for client, _, _ in decode_and_pseudo_sort_results(results)] == ["few", "many"]


def test_equal_results_stay_in_order_of_arrival() -> None:
    results = [(name, [torch.ones(3)], 3) for name in ("z", "a", "m")]
    assert [client for client, _, _ in decode_and_pseudo_sort_results(results)] == ["z", "a", "m"]


def test_clients_need_not_be_comparable() -> None:
    results: list[Any] = [(object(), [torch.ones(2)], 1), (None, [torch.ones(2)], 1), ({}, [torch.zeros(2)], 1)]
    assert decode_and_pseudo_sort_results(results)[0][0] == {}


numbers = st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, 1.0]))
workers = st.lists(st.tuples(st.lists(numbers, min_size=1, max_size=3), st.integers(0, 3)), min_size=1, max_size=6)


@given(workers=workers, data=st.data())
def test_order_of_arrival_does_not_matter(workers: list[tuple[list[float], int]], data: st.DataObject) -> None:
    results = [(object(), [torch.tensor(values), torch.zeros(1)], n) for values, n in workers]
    shuffled = data.draw(st.permutations(results))

    def contents(ordered: list[Any]) -> list[Any]:
        return [(arrays[0].numpy().tobytes(), n) for _, arrays, n in ordered]

    ordered = decode_and_pseudo_sort_results(results)
    assert contents(ordered) == contents(decode_and_pseudo_sort_results(shuffled))
    scores = [pseudo_sort_scoring_function(result) for result in ordered]
    known = [score for score in scores if not math.isnan(score)]
    assert scores[: len(known)] == sorted(known)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([5], r"results must hold \(client, result\) or \(client, arrays, n\); got int"),
        ([("a", 5)], r"must be \(arrays, n\) or have parameters and num_examples, as a FitRes; it is int"),
        ([("a", [1.0, 2.0], 3)], "an array must be a tensor or a NumPy array; it is float"),
        ([("a", torch.ones(3), 3)], "arrays must be a list of tensors or arrays; it is Tensor"),
        ([("a", np.ones(3), 3)], "arrays must be a list of tensors or arrays; it is ndarray"),
        ([("a", [torch.ones(3)], "3")], "n must be the number of examples; it is '3'"),
        ([("a", [torch.ones(3)], True)], "n must be the number of examples; it is True"),
    ],
)
def test_wrong_results_are_refused(results: list[Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        decode_and_pseudo_sort_results(results)


def test_wrong_arguments_of_scores_are_refused() -> None:
    with pytest.raises(TypeError, match=r"client_result must be \(client, arrays, n\); it is tuple of length 2"):
        pseudo_sort_scoring_function(([], 3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="an array must be a tensor or a NumPy array; it is list"):
        select_zeroeth_element([1.0])  # type: ignore[arg-type]


# ---- sums ----------------------------------------------------------------------------------------------


def random_tensors(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(5, 40, generator=generator, dtype=torch.float64) * 10.0 ** (i % 4)).to(dtype) for i in range(n)
    ]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64], ids=str
)
@pytest.mark.parametrize("weighted", [False, True])
def test_sum_is_the_same_to_the_last_bit_in_any_order(dtype: torch.dtype, weighted: bool) -> None:
    tensors = random_tensors(9, dtype)
    weights = [0.1 * (i + 1) for i in range(9)] if weighted else None
    total = ordered_sum(tensors, weights=weights)
    assert total.dtype == dtype
    plain = torch.stack([t.to(torch.complex128) * (weights[i] if weights else 1) for i, t in enumerate(tensors)]).sum(0)
    eps = 1e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-5
    torch.testing.assert_close(total.to(torch.complex128), plain, atol=eps * 100, rtol=eps)
    differs = False
    for seed in range(8):
        order = torch.randperm(9, generator=torch.Generator().manual_seed(seed)).tolist()
        shuffled = [tensors[i] for i in order]
        given = None if weights is None else [weights[i] for i in order]
        assert torch.equal(ordered_sum(shuffled, weights=given), total)
        differs = differs or not torch.equal(torch.stack(shuffled).sum(0), torch.stack(tensors).sum(0))
    # Otherwise the order would not have mattered. (Half precision rounds such differences away.)
    assert differs or dtype in (torch.float16, torch.bfloat16)


def test_sum_with_equal_first_elements() -> None:
    tensors = random_tensors(7)
    for tensor in tensors:
        tensor[0, 0] = 0.0
    total = ordered_sum(tensors)
    assert all(torch.equal(ordered_sum([tensors[(i + k) % 7] for i in range(7)]), total) for k in range(7))


def test_sum_in_the_order_of_given_scores() -> None:
    terms = [torch.tensor([x], dtype=torch.float64) for x in (1e16, 1.0, -1e16)]
    # (1e16 + 1) - 1e16 is 0, (1e16 - 1e16) + 1 is 1.
    assert ordered_sum(terms, [1, 2, 3]).item() == 0.0
    assert ordered_sum(terms, [1, 3, 2]).item() == 1.0
    assert ordered_sum(terms, [1, math.nan, 2]).item() == 1.0
    assert ordered_sum(terms).item() == 0.0  # -1e16 first, then 1


def test_stacked_terms_and_weights_as_tensors() -> None:
    stacked = torch.stack(random_tensors(5))
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    assert torch.equal(ordered_sum(stacked), ordered_sum(list(stacked)))
    assert torch.equal(ordered_sum(stacked, weights=weights), ordered_sum(stacked, weights=list(weights)))


def test_gradients_of_sums() -> None:
    tensors = [t.requires_grad_() for t in random_tensors(4)]
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True)
    ordered_sum(tensors, weights=weights).sum().backward()
    assert weights.grad is not None
    for i, tensor in enumerate(tensors):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad, weights.detach()[i].expand_as(tensor))
        torch.testing.assert_close(weights.grad[i], tensor.detach().sum())


def test_half_precision_is_added_up_in_single() -> None:
    ones = [torch.tensor([1.0], dtype=torch.bfloat16)] * 600
    assert ordered_sum(ones).item() == 600  # in bfloat16 it would stop at 256


def test_sums_of_integers_bools_empty_and_0d() -> None:
    assert ordered_sum([torch.tensor([3, 4]), torch.tensor([1, 2])]).tolist() == [4, 6]
    assert ordered_sum([torch.tensor(0.5), torch.tensor(0.25)]).item() == 0.75
    assert ordered_sum([torch.empty(0, 3), torch.empty(0, 3)]).shape == (0, 3)
    assert ordered_sum([torch.tensor([True, False]), torch.tensor([True, True])]).tolist() == [2, 1]


def test_sum_of_one_is_a_new_tensor() -> None:
    tensor = torch.ones(3)
    total = ordered_sum([tensor])
    total += 1
    assert tensor.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, "at least one tensor"),
        (([1.0],), TypeError, "tensors must hold tensors; one is float"),
        (([torch.ones(2), torch.ones(3)],), ValueError, r"one shape.*\(2,\) torch.float32 on cpu and \(3,\)"),
        (([torch.ones(2), torch.ones(2).double()],), ValueError, "dtype"),
        (([torch.ones(2)], [1.0, 2.0]), ValueError, "scores must be one for each of the 1 tensors; there are 2"),
        (([torch.ones(2)] * 2, None, [1.0]), ValueError, "weights must be one for each of the 2 tensors; there are 1"),
        (([torch.tensor([1])], None, [0.5]), ValueError, "weights need floating tensors; they are torch.int64"),
    ],
)
def test_wrong_arguments_of_sums_are_refused(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ordered_sum(*arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    tensors = random_tensors(5)
    on_gpu = [t.cuda() for t in tensors]
    results = [(i, [t], 3) for i, t in enumerate(tensors)]
    expected = [i for i, _, _ in decode_and_pseudo_sort_results(results)]
    assert [i for i, _, _ in decode_and_pseudo_sort_results([(i, [t.cuda()], 3) for i, [t], _ in results])] == expected
    assert torch.equal(ordered_sum(on_gpu).cpu(), ordered_sum(tensors))


@pytest.mark.parametrize("kind", ["conjugated", "negative", "sparse"])
def test_ties_of_views_and_sparse_tensors(kind: str) -> None:
    def made(second: float) -> Tensor:
        x = torch.tensor([1.0, second])
        if kind == "conjugated":
            return torch.complex(x, x).conj()
        if kind == "negative":
            return torch.complex(x, -x).conj().imag
        return x.to_sparse()

    results: list[Any] = [(second, [made(second)], 3) for second in (2.0, 3.0, 4.0)]
    orders = [[client for client, _, _ in decode_and_pseudo_sort_results(r)] for r in (results, results[::-1])]
    assert orders[0] == orders[1]


def test_ties_with_an_unknown_number_of_examples() -> None:
    results: list[Any] = [(second, [torch.tensor([1.0, second])], float("nan")) for second in (2.0, 3.0, 4.0)]
    orders = [[client for client, _, _ in decode_and_pseudo_sort_results(r)] for r in (results, results[::-1])]
    assert orders[0] == orders[1]
