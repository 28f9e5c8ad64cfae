"""Sums over workers in an order that does not depend on who answered first.

Floating sums depend on the order of their terms, and results of workers arrive in any order. Their names do not help,
where these are drawn anew in each run; their contents do. The sort is a *pseudo* sort: it looks at the first element of
each array only, which may be the same for all workers (a frozen or zero-initialised weight). Ties are broken by the
number of examples, then by a digest of the whole contents, so that only results that are equal throughout keep the
order in which they came, and there it does not matter.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["decode_and_pseudo_sort_results", "ordered_sum", "pseudo_sort_scoring_function", "select_zeroeth_element"]

Array = Tensor | np.ndarray | np.generic


def select_zeroeth_element(array: Array) -> Any:
    """Return the element at index 0 of every axis, as a Python value.

    Args:
        array: Tensor or array of any type and at least one element; of a tensor on a GPU one number is copied.

    Raises:
        IndexError: If it is empty.
        TypeError: If it is no array.
    """
    _check_array(array)
    if not _size(array):
        raise IndexError(f"an array of shape {tuple(array.shape)} has no first element")
    if isinstance(array, Tensor):
        return array.detach()[(0,) * array.dim()].item()
    first = np.asarray(array)[(0,) * array.ndim]
    return first.item() if isinstance(first, np.generic) else first


def pseudo_sort_scoring_function(client_result: tuple[Any, Sequence[Array], int]) -> float:
    """Return the number by which results of workers are sorted: first elements plus the number of examples.

    Args:
        client_result: ``(client, arrays, n)``: anything, the arrays or tensors of the worker, and its number of
            examples.

    Returns:
        The sum of the first elements of the floating arrays, in their order and in double precision, plus ``n``. Empty
        arrays and those of integers, bools, strings and complex numbers are left out.

    Raises:
        TypeError: If ``client_result`` is no such triple, or ``n`` no number.

    Source: FL4Health, ``fl4health.utils.functions``.
    """
    _, arrays, n = _check_result(client_result)
    score = 0.0
    for array in arrays:
        if _is_floating(array) and _size(array):
            score += float(select_zeroeth_element(array))
    return score + n


def decode_and_pseudo_sort_results(
    results: Sequence[tuple[Any, Any]] | Sequence[tuple[Any, Sequence[Array], int]],
) -> list[tuple[Any, list[Array], int]]:
    """Return results of workers in an order that does not depend on the order in which they came.

    Args:
        results: ``(client, result)`` for each worker, where the result is ``(arrays, n)``, or has ``parameters`` and
            ``num_examples`` as a Flower ``FitRes`` (arrays, or their bytes in ``parameters.tensors``); or
            ``(client, arrays, n)``.

    Returns:
        ``(client, arrays, n)`` by ascending :func:`pseudo_sort_scoring_function`, those whose score is NaN last. Ties
        are broken by ``n``, then by the contents. Clients are not looked at.

    Raises:
        TypeError: If a result is none of these.

    Source: FL4Health, ``fl4health.utils.functions``.
    """
    decoded = [_decode(result) for result in results]
    order = _order(
        [pseudo_sort_scoring_function(result) for result in decoded],
        lambda i: (_sortable(decoded[i][2]), _digest(decoded[i][1])),
    )
    return [decoded[i] for i in order]


def ordered_sum(
    tensors: Sequence[Tensor] | Tensor,
    scores: Sequence[float] | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Return the sum of tensors, the same to the last bit in whatever order they are given.

    Args:
        tensors: One for each worker, of the same shape, dtype and device; or stacked along the first axis.
        scores: They are added by ascending score, NaN last; default is the first element of each, and what it is
            multiplied with. Ties are broken by weight and contents.
        weights: Numbers to multiply them with (0-d tensors, or a tensor of one axis: may be differentiated); default 1.

    Returns:
        The sum, of their shape and dtype (int64 for bools); half precision is added up in float32. Gradients pass.

    Raises:
        TypeError: If ``tensors`` holds something else.
        ValueError: If it is empty, shapes, dtypes or devices differ, ``scores`` or ``weights`` are not one for each, or
            weights are given for tensors that are not floating point or complex.
    """
    terms = list(tensors)
    _check_terms(terms)
    factors = None if weights is None else list(weights)
    for name, given in (("scores", scores), ("weights", factors)):
        if given is not None and len(given) != len(terms):
            raise ValueError(f"{name} must be one for each of the {len(terms)} tensors; there are {len(given)}")
    if factors is not None and not (terms[0].is_floating_point() or terms[0].is_complex()):
        raise ValueError(f"weights need floating tensors; they are {terms[0].dtype}")
    numbers = [1.0] * len(terms) if factors is None else [_number(factor) for factor in factors]
    if scores is None:
        scores = [
            number * float(select_zeroeth_element(term)) if term.numel() and not term.is_complex() else number
            for number, term in zip(numbers, terms, strict=True)
        ]
    order = _order([_number(score) for score in scores], lambda i: (_sortable(numbers[i]), _digest([terms[i]])))
    dtype = terms[0].dtype
    half = dtype in (torch.float16, torch.bfloat16)
    total: Tensor | None = None
    for i in order:
        # Bools are counted.
        term = terms[i].float() if half else terms[i].long() if dtype == torch.bool else terms[i]
        if factors is not None:
            term = term * factors[i]
        total = term if total is None else total + term
    assert total is not None
    return total.to(torch.long if dtype == torch.bool else dtype, copy=len(order) == 1)


def _number(factor: float | Tensor) -> float:
    return float(factor.detach() if isinstance(factor, Tensor) else factor)


def _order(scores: Sequence[float], further: Callable[[int], tuple]) -> list[int]:
    """Return positions by ascending score, NaN last; what breaks ties is computed only where there are some."""

    def by_score(i: int) -> tuple[bool, float]:
        return _sortable(scores[i])

    order: list[int] = []
    for _, tied in groupby(sorted(range(len(scores)), key=by_score), key=by_score):
        group = list(tied)
        order += sorted(group, key=further) if len(group) > 1 else group
    return order


def _sortable(number: float) -> tuple[bool, float]:
    return (True, 0.0) if math.isnan(number) else (False, number)


def _digest(arrays: Sequence[Array]) -> bytes:
    """Return a hash of types, shapes and contents; it is the same on each machine."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        if isinstance(array, Tensor):
            array = array.detach().cpu()
            if array.layout != torch.strided:
                array = array.to_dense()
            # NumPy has no bfloat16; bytes do.
            array = array.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8).numpy()
        if array.dtype.hasobject:
            digest.update(repr(array.tolist()).encode())
        else:
            digest.update(array.tobytes())
    return digest.digest()


def _decode(result: Any) -> tuple[Any, list[Array], int]:
    if isinstance(result, tuple) and len(result) == 3:
        client, arrays, n = _check_result(result)
        return client, list(arrays), n
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(f"results must hold (client, result) or (client, arrays, n); got {_short(result)}")
    client, content = result
    if isinstance(content, tuple) and len(content) == 2:
        return _decode((client, *content))
    if not (hasattr(content, "parameters") and hasattr(content, "num_examples")):
        raise TypeError(
            f"a result must be (arrays, n) or have parameters and num_examples, as a FitRes; it is {_short(content)}"
        )
    parameters = content.parameters
    if hasattr(parameters, "tensors"):
        parameters = [np.load(io.BytesIO(data), allow_pickle=False) for data in parameters.tensors]
    return _decode((client, parameters, content.num_examples))


def _check_result(result: Any) -> tuple[Any, Sequence[Array], int]:
    if not (isinstance(result, tuple) and len(result) == 3):
        raise TypeError(f"client_result must be (client, arrays, n); it is {_short(result)}")
    client, arrays, n = result
    if isinstance(arrays, Tensor | np.ndarray | str | bytes) or not isinstance(arrays, Sequence):
        raise TypeError(f"arrays must be a list of tensors or arrays; it is {type(arrays).__name__}")
    for array in arrays:
        _check_array(array)
    if isinstance(n, bool) or not isinstance(n, int | float | np.integer | np.floating):
        raise TypeError(f"n must be the number of examples; it is {n!r}")
    return client, arrays, n  # type: ignore[return-value]


def _check_array(array: Any) -> None:
    if not isinstance(array, Tensor | np.ndarray | np.generic):
        raise TypeError(f"an array must be a tensor or a NumPy array; it is {type(array).__name__}")


def _check_terms(terms: Sequence[Any]) -> None:
    if not terms:
        raise ValueError("tensors must hold at least one tensor; it is empty")
    for term in terms:
        if not isinstance(term, Tensor):
            raise TypeError(f"tensors must hold tensors; one is {type(term).__name__}")
        first = terms[0]
        if (term.shape, term.dtype, term.device) != (first.shape, first.dtype, first.device):
            raise ValueError(
                f"tensors must have one shape, dtype and device; there are {tuple(first.shape)} {first.dtype} on "
                f"{first.device} and {tuple(term.shape)} {term.dtype} on {term.device}"
            )


def _is_floating(array: Array) -> bool:
    if isinstance(array, Tensor):
        return array.is_floating_point()
    return bool(np.issubdtype(array.dtype, np.floating))


def _size(array: Array) -> int:
    return array.numel() if isinstance(array, Tensor) else int(array.size)


def _short(value: Any) -> str:
    shape = f" of length {len(value)}" if isinstance(value, tuple | list) else ""
    return f"{type(value).__name__}{shape}"
