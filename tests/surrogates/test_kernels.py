"""Covariance functions against GPyTorch's own and by their properties."""

from __future__ import annotations

import math

import gpytorch
import pytest
import torch
from torch import Tensor

from sthyper.config_space import choice, ordinal, randint, uniform
from sthyper.encoding import SpaceEncoder
from sthyper.surrogates.inputs import InputStructure
from sthyper.surrogates.kernels import KernelForm, RadialKernel, squared_distances
from sthyper.surrogates.warping import kumaraswamy

SPACE = {
    "x": uniform(0.0, 1.0),
    "kind": choice(["a", "b", "c"]),
    "flag": choice(["on", "off"]),
    "n": randint(1, 9),
    "size": ordinal([1, 2, 4]),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64)


def values(form: KernelForm, batch: tuple[int, ...] = (), seed: int = 0) -> dict[str, Tensor]:
    g = generator(seed)

    def positive(size: int) -> Tensor:
        return 0.3 + torch.rand(*batch, size, generator=g, dtype=torch.float64)

    width = len(form.warped)
    return {
        "lengthscale": positive(len(form.lengthscale_names)),
        "outputscale": positive(1),
        "warping_a": positive(width),
        "warping_b": positive(width),
    }


@pytest.mark.parametrize(
    ("kernel", "theirs"),
    [
        ("matern52-ard", gpytorch.kernels.MaternKernel(2.5, ard_num_dims=3)),
        ("matern52-noard", gpytorch.kernels.MaternKernel(2.5)),
        ("rbf-ard", gpytorch.kernels.RBFKernel(ard_num_dims=3)),
        ("rbf-noard", gpytorch.kernels.RBFKernel()),
    ],
)
def test_kernels_are_gpytorchs(kernel: str, theirs: gpytorch.kernels.Kernel) -> None:
    form = KernelForm(InputStructure.plain(3), kernel, warping=False)
    parameters = values(form)
    theirs = gpytorch.kernels.ScaleKernel(theirs).double()
    theirs.base_kernel.lengthscale = parameters["lengthscale"]
    theirs.outputscale = parameters["outputscale"]
    ours = RadialKernel(form, parameters)
    A, B = rand(2, 7, 3), rand(2, 5, 3, seed=1)
    with torch.no_grad():
        assert torch.allclose(ours(A, B).to_dense(), theirs(A, B).to_dense(), rtol=1e-10, atol=1e-12)
        assert torch.allclose(ours(A).to_dense(), theirs(A).to_dense(), rtol=1e-10, atol=1e-12)
        assert torch.allclose(ours(A, diag=True), theirs(A, diag=True))


def test_inverse_lengthscales_are_their_inverses() -> None:
    form = KernelForm(InputStructure.plain(2), warping=False)
    parameters = values(form)
    inverse = {**parameters, "lengthscale": 1.0 / parameters["lengthscale"]}
    X = rand(6, 2)
    with torch.no_grad():
        ours, theirs = RadialKernel(form, parameters)(X), RadialKernel(form, inverse, inverse=True)(X)
        assert torch.allclose(ours.to_dense(), theirs.to_dense())


@pytest.mark.parametrize("kernel", ["matern52-ard", "rbf-noard"])
@pytest.mark.parametrize("categorical", ["one-hot", "exchangeable"])
@pytest.mark.parametrize("warping", [True, False])
def test_covariances_are_positive_definite_and_1_at_distance_0(kernel: str, categorical: str, warping: bool) -> None:
    encoder = SpaceEncoder(SPACE)
    form = KernelForm(InputStructure.of_space(encoder), kernel, categorical, warping=warping)
    X = rand(40, encoder.ndarray_size)
    Z = form.scaled(X, values(form))
    K = form.correlation(Z, Z)
    assert torch.allclose(K, K.T)
    assert torch.allclose(K.diagonal(), torch.ones(40).double(), atol=1e-6)
    assert float(torch.linalg.eigvalsh(K).min()) > -1e-9
    assert (K <= 1 + 1e-12).all()


def test_derivatives_by_the_squared_distance() -> None:
    encoder = SpaceEncoder(SPACE)
    for kernel in ("matern52-ard", "rbf-ard"):
        form = KernelForm(InputStructure.of_space(encoder), kernel, "exchangeable")
        parts = form.scaled(rand(6, encoder.ndarray_size), values(form))
        assert len(parts) == 2
        K, slopes = form.slopes([part.clone() for part in parts])
        assert torch.allclose(K, form.correlation(parts, parts))
        for i, slope in enumerate(slopes):
            # A constant difference in a column of its own adds to the squared distance of this factor.
            h = 1e-6
            wide = [torch.cat([p, torch.zeros(6, 1).double()], 1) for p in parts]
            moved = [w.clone() for w in wide]
            moved[i][:, -1] = math.sqrt(h)
            expected = (form.correlation(moved, wide) - form.correlation(wide, wide)) / h
            apart = ~torch.eye(6, dtype=torch.bool)
            assert torch.allclose(slope[apart], expected[apart], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("per_column", [False, True])
def test_exchangeable_categories_are_all_as_far_from_each_other(per_column: bool) -> None:
    encoder = SpaceEncoder({"kind": choice(["a", "b", "c"]), "flag": choice(["on", "off"])})
    form = KernelForm(InputStructure.of_space(encoder), categorical="exchangeable", per_column=per_column)
    assert form.lengthscale_names == ["flag", "kind"]
    assert form.warped == []
    parameters = values(form)
    configs = [{"kind": kind, "flag": flag} for kind in "abc" for flag in ("on", "off")]
    X = encoder.encode(configs).double()
    Z = form.scaled(X, parameters)
    K = form.correlation(Z, Z)
    of_flag, of_kind = (math.exp(-1 / float(length)) for length in parameters["lengthscale"])
    for i, one in enumerate(configs):
        for j, other in enumerate(configs):
            expected = (of_kind if one["kind"] != other["kind"] else 1) * (
                of_flag if one["flag"] != other["flag"] else 1
            )
            assert float(K[i, j]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kernel", ["matern52-ard", "rbf-noard"])
def test_categories_are_as_far_apart_as_the_ends_of_a_numbers_range(kernel: str) -> None:
    # However many there are, and whether in one-hot form or in a single column.
    encoder = SpaceEncoder({"flag": choice(["on", "off"]), "kind": choice(["a", "b", "c"]), "x": uniform(0.0, 1.0)})
    first = {"flag": "on", "kind": "a", "x": 0.0}
    configs = [first, {**first, "flag": "off"}, {**first, "kind": "c"}, {**first, "x": 1.0}]
    X = encoder.encode(configs).double()
    form = KernelForm(InputStructure.of_space(encoder), kernel, warping=False)
    parameters = values(form) | {"lengthscale": torch.full((len(form.lengthscale_names),), 0.7).double()}
    correlations = form.correlation(*[form.scaled(X, parameters)] * 2)[0, 1:]
    assert 0.1 < float(correlations[0]) < 0.6
    assert torch.allclose(correlations, correlations[0], rtol=1e-6)
    # With a lengthscale a column the columns are taken as they are: 1/2, sqrt(2) and 1.
    form = KernelForm(InputStructure.of_space(encoder), kernel, warping=False, per_column=True)
    parameters["lengthscale"] = torch.full((len(form.lengthscale_names),), 0.7).double()
    flag, kind, x = form.correlation(*[form.scaled(X, parameters)] * 2)[0, 1:].tolist()
    assert flag > x > kind


def test_which_lengthscales_there_are() -> None:
    # Columns are in alphabetical order.
    structure = InputStructure.of_space(SpaceEncoder(SPACE))
    assert KernelForm(structure).lengthscale_names == ["flag", "kind", "n", "size", "x"]
    assert KernelForm(structure, "rbf-noard").lengthscale_names == ["all"]
    assert KernelForm(structure, categorical="exchangeable").lengthscale_names == ["n", "size", "x", "flag", "kind"]
    each = KernelForm(structure, per_column=True).lengthscale_names
    assert each == ["flag", "kind[0]", "kind[1]", "kind[2]", "n", "size", "x"]
    task = InputStructure.of_space(SpaceEncoder(SPACE), "kind")
    assert KernelForm(task).lengthscale_names == ["flag", "n", "size", "x", "kind"]
    assert KernelForm(task, transfer="matern52_same").lengthscale_names == ["flag", "n", "size", "x"]


def test_numbers_and_ordinals_are_warped_and_categories_are_not() -> None:
    structure = InputStructure.of_space(SpaceEncoder(SPACE))
    names = [structure.names[structure.groups[column]] for column in KernelForm(structure).warped]
    assert names == ["n", "size", "x"]
    assert KernelForm(structure, warping=False).warped == []
    # Nothing is warped in transfer learning.
    assert KernelForm(InputStructure.of_space(SpaceEncoder(SPACE), "kind")).warped == []


def test_the_task_makes_no_difference_to_the_same_kernel() -> None:
    encoder = SpaceEncoder({"x": uniform(0.0, 1.0), "task": choice(["a", "b", "c"])})
    structure = InputStructure.of_space(encoder, "task")
    X = torch.tensor([[0.2, 1, 0, 0], [0.2, 0, 1, 0], [0.7, 0, 0, 1]], dtype=torch.float64)
    same, product = (KernelForm(structure, transfer=f"matern52_{name}") for name in ("same", "product"))
    K = same.correlation(*[same.scaled(X, values(same))] * 2)
    assert float(K[0, 1]) == 1.0
    L = product.correlation(*[product.scaled(X, values(product))] * 2)
    assert 0 < float(L[0, 1]) < 1


def test_a_structure_of_the_task_alone_is_refused() -> None:
    structure = InputStructure.of_space(SpaceEncoder({"task": choice(["a", "b"])}), "task")
    form = KernelForm(structure, transfer="matern52_same")
    with pytest.raises(ValueError, match="no column that makes a difference"):
        form.correlation([], [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": "matern32-ard"}, "gp_base_kernel='matern32-ard' is unknown.*matern52-ard"),
        ({"categorical": "onehot"}, "categorical_kernel='onehot' is unknown.*one-hot"),
        ({"transfer": "same"}, "transfer_learning_model='same' is unknown"),
    ],
)
def test_unknown_names_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KernelForm(InputStructure.plain(1), **changes)


def test_parameters_have_batches() -> None:
    form = KernelForm(InputStructure.of_space(SpaceEncoder(SPACE)), categorical="exchangeable")
    parameters = values(form, (3,))
    X = rand(5, 7)
    kernel = RadialKernel(form, parameters)
    with torch.no_grad():
        together = kernel(X.expand(3, 5, 7)).to_dense()
        assert together.shape == (3, 5, 5)
        for i in range(3):
            single = RadialKernel(form, {name: value[i] for name, value in parameters.items()})
            assert torch.allclose(together[i], single(X).to_dense())
    assert {name for name, _ in kernel.named_parameters()} == {"lengthscales", "outputscale", "warping_a", "warping_b"}


def test_squared_distances_are_not_negative_and_the_same_with_gradients() -> None:
    A = 1e3 * rand(20, 4)
    plain = squared_distances(A, A)
    assert (plain >= 0).all()
    direct = (A.unsqueeze(1) - A.unsqueeze(0)).square().sum(-1)
    assert torch.allclose(plain, direct, rtol=1e-8, atol=1e-5)
    assert torch.allclose(squared_distances(A.clone().requires_grad_(), A), plain)


def test_warping_is_monotone_from_0_to_1() -> None:
    x = torch.linspace(0, 1, 101, dtype=torch.float64).unsqueeze(-1)
    for a, b in ((0.25, 4.0), (4.0, 0.25), (2.0, 3.0), (1.0, 1.0)):
        w = kumaraswamy(x, torch.tensor([a]).double(), torch.tensor([b]).double())
        assert (w.diff(dim=0) > 0).all()
        assert float(w[0]) == pytest.approx(0.0, abs=0.13)  # (1e-6)^(1/4), times 4
        assert float(w[-1]) == pytest.approx(1.0, abs=0.05)  # (4e-6)^(1/4)
        assert torch.allclose(w[1:-1], 1 - (1 - x[1:-1] ** a) ** b, atol=1e-4)
    edges = torch.tensor([[0.0], [1.0]]).double().requires_grad_()
    (slope,) = torch.autograd.grad(kumaraswamy(edges, torch.tensor([0.3]), torch.tensor([0.3])).sum(), edges)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_a_warped_input_can_leave_the_edge_by_its_gradient(edge: float) -> None:
    x = torch.tensor([edge], dtype=torch.float64, requires_grad=True)
    a, b = torch.tensor([1.3], dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64)
    (slope,) = torch.autograd.grad(kumaraswamy(x, a, b), x)
    inside = edge + (1e-7 if edge == 0.0 else -1e-7)
    step = kumaraswamy(torch.tensor([inside], dtype=torch.float64), a, b) - kumaraswamy(x.detach(), a, b)
    assert float(slope) > 0.0
    assert float(step / (inside - edge)) == pytest.approx(float(slope), rel=0.1)
