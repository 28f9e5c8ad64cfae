from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sthyper.config_space import uniform
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.networks import (
    NETWORKS,
    LanguageModel,
    alexnet,
    dropouts,
    fashion_cnn,
    keras_cnn,
    make_network,
    mlp,
    small_cnn,
    vgg16,
)
from sthyper.selftuning.regularisers import drop_connect
from sthyper.selftuning.transform import export, self_tune

IMAGES = {"mlp": (1, 28, 28), "fashion_cnn": (1, 28, 28)}
CIFAR = (3, 32, 32)


def weights(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for name, p in network.named_parameters() if name.endswith("weight")]


@pytest.fixture
def meta() -> object:
    """Networks without their numbers, which take time to draw."""
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(
    ("make", "shapes", "names"),
    [
        (
            alexnet,
            [
                *[(64, 3, 3, 3), (192, 64, 3, 3), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3)],
                *[(4096, 1024), (4096, 4096), (10, 4096)],
            ],
            ["indropout", *(f"dropout{i}" for i in range(5)), "fcdropout0", "fcdropout1"],
        ),
        (
            small_cnn,
            [(10, 3, 3, 3), (20, 10, 3, 3), (40, 20, 3, 3), (10, 640)],
            ["indropout", "dropout0", "dropout1", "dropout2"],
        ),
        (
            vgg16,
            [
                *[(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (256, 128, 3, 3)],
                *[(256, 256, 3, 3)] * 2,
                *[(512, 256, 3, 3), *[(512, 512, 3, 3)] * 5],
                *[(512, 512), (512, 512), (10, 512)],
            ],
            [*(f"dropout{i}" for i in range(14)), "dropout_fc1", "dropout_fc2"],
        ),
        (mlp, [(1200, 784), (1200, 1200), (10, 1200)], ["dropout0", "dropout1", "dropout2"]),
        (
            fashion_cnn,
            [(16, 1, 5, 5), (32, 16, 5, 5), (1568, 1568), (10, 1568)],
            ["dropout0", "dropout1", "dropout2", "dropout_fc"],
        ),
        (
            keras_cnn,
            [(32, 3, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (64, 1024), (10, 64)],
            ["dropout0", "dropout1", "dropout2"],
        ),
    ],
)
def test_the_shapes_of_the_papers(
    make: Callable[[], nn.Module], shapes: list[tuple[int, ...]], names: list[str]
) -> None:
    network = make()
    assert weights(network) == shapes
    assert dropouts(network) == names


def test_sizes_of_feature_maps() -> None:
    """Strides, padding and pooling are those of the papers, which the shapes of the weights do not show."""
    for network, expected in (
        (alexnet(), {"conv0": 16, "dropout0": 8, "dropout1": 4, "dropout2": 4, "dropout3": 4, "dropout4": 2}),
        (small_cnn(), {"conv0": 32, "dropout0": 16, "dropout1": 8, "dropout2": 4}),
        (keras_cnn(), {"conv0": 30, "dropout0": 15, "conv1": 13, "dropout1": 6, "dropout2": 4}),
    ):
        sizes, y = {}, torch.zeros(1, *CIFAR)
        for name, layer in network.named_children():
            y = layer(y)
            sizes[name] = y.shape[-1]
        assert expected.items() <= sizes.items()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_by_name(name: str) -> None:
    network = make_network(name, n_outputs=7)
    if name == "language_model":
        output = network.eval()(torch.randint(7, (2, 5)))
        assert output.logits.shape == (2, 5, 7)
        return
    x = torch.randn(2, *IMAGES.get(name, CIFAR))
    y = network.eval()(x)
    assert y.shape == (2, 7)
    # Without a rate nothing is dropped.
    assert torch.equal(network.train()(x), y)


def test_small_cnn_by_hand() -> None:
    """Pooling before the activation is the same."""
    network, x = small_cnn(), torch.randn(3, *CIFAR)
    y = x
    for i in range(3):
        y = F.max_pool2d(F.relu(network.get_submodule(f"conv{i}")(y)), 2)
    torch.testing.assert_close(network(x), network.fc(y.flatten(1)))


def test_three_hidden_layers_and_other_sizes() -> None:
    with torch.device("meta"):
        network = mlp(hidden=(1200, 1200, 1200))
        assert weights(network) == [(1200, 784), (1200, 1200), (1200, 1200), (10, 1200)]
        assert dropouts(network) == ["dropout0", "dropout1", "dropout2", "dropout3"]
    toy = mlp(1, n_inputs=1, hidden=(8, 8, 8))
    assert toy(torch.zeros(5, 1)).shape == (5, 1)
    for sizes in ({"hidden": (3, 0)}, {"n_inputs": 0}, {"hidden": (2.5,)}):
        with pytest.raises(ValueError, match="whole numbers of at least 1"):
            mlp(**sizes)  # type: ignore[arg-type]


def test_rates() -> None:
    network = small_cnn(dropout=0.3)
    assert [network.get_submodule(name).p for name in dropouts(network)] == [0.3] * 4
    network = small_cnn(dropout={"dropout1": 0.5})
    assert [network.get_submodule(name).p for name in dropouts(network)] == [0, 0, 0.5, 0]
    assert isinstance(network.dropout1, nn.Dropout2d)
    assert not isinstance(network.dropout2, nn.Dropout2d)
    with pytest.raises(ValueError, match=r"no dropout layer 'dropot1' \(did you mean 'dropout1'\?\); known are"):
        small_cnn(dropout={"dropot1": 0.5})
    for rate in (1.0, -0.1, float("nan"), "half"):
        with pytest.raises(ValueError, match=r"the rate of 'dropout1' must be a number in \[0, 1\)"):
            small_cnn(dropout={"dropout1": rate})  # type: ignore[dict-item]


def test_names_and_numbers_of_outputs() -> None:
    with pytest.raises(ValueError, match=r"no network 'vgg' \(did you mean 'vgg16'\?\)"):
        make_network("vgg")
    for name in sorted(set(NETWORKS) - {"language_model"}):
        make = NETWORKS[name]
        with pytest.raises(ValueError, match="n_outputs must be a whole number of at least 1, got 0"):
            make(0, 0.0)


def test_initial_weights_of_vgg() -> None:
    network = vgg16()
    assert torch.count_nonzero(network.conv13.bias) == 0
    assert float(network.conv13.weight.detach().std()) == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)


class TestLanguageModel:
    def small(self, dropout: object = 0.0, seed: int = 0, **options: object) -> LanguageModel:
        torch.manual_seed(seed)
        return LanguageModel(11, dropout, **{"size": 6, "hidden": 5, "n_layers": 2, **options})  # type: ignore[arg-type]

    def hyperparameters(self) -> Hyperparameters:
        space = {name: uniform(0.0, 0.95) for name in LanguageModel.DROPOUTS}
        return Hyperparameters(space, start=dict.fromkeys(space, 0.4), shared=LanguageModel.SHARED)

    @pytest.mark.usefixtures("meta")
    def test_sizes(self) -> None:
        model = LanguageModel(10_000)
        assert model.encoder.weight.shape == (10_000, 650)
        assert [tuple(layer.weight_hh_l0.shape) for layer in model.layers] == [(2600, 650)] * 2
        assert model.decoder.weight is model.encoder.weight
        assert sum(p.numel() for p in model.parameters()) == 10_000 * 651 + 2 * (2 * 2600 * 650 + 2 * 2600)

    def test_other_outputs_and_sizes(self) -> None:
        model = self.small(tied=False, n_outputs=3, n_layers=3)
        assert [layer.hidden_size for layer in model.layers] == [5, 5, 5]
        assert [layer.hidden_size for layer in self.small().layers] == [5, 6]
        assert model(torch.randint(11, (2, 4))).logits.shape == (2, 4, 3)
        with pytest.raises(ValueError, match="n_outputs must be n_words=11 if the decoder is tied, got 3"):
            self.small(n_outputs=3)
        with pytest.raises(ValueError, match="hidden must be a whole number of at least 1, got 0"):
            self.small(hidden=0)

    def test_it_goes_on_from_a_state(self) -> None:
        model, words = self.small().eval(), torch.randint(11, (3, 8))
        whole = model(words)
        first = model(words[:, :5])
        rest = model(words[:, 5:], first.state)
        torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole.logits)
        assert torch.equal(whole.raw, whole.dropped)
        assert torch.equal(whole.logits, F.linear(whole.raw, model.encoder.weight, model.decoder.bias))

    @pytest.mark.parametrize("name", LanguageModel.DROPOUTS)
    def test_each_rate_drops_something_in_training_only(self, name: str) -> None:
        words = torch.randint(11, (3, 8))
        plain, model = self.small(), self.small({name: 0.5})
        assert torch.equal(model.eval()(words).logits, plain.eval()(words).logits)
        assert not torch.equal(model.train()(words).logits, plain.train()(words).logits)
        with pytest.raises(ValueError, match=rf"the rate of '{name}' must be a number in \[0, 1\), got 1\.0"):
            self.small({name: 1.0})

    def test_masks(self) -> None:
        words = torch.randint(11, (3, 8))
        dropped = self.small({"dropouto": 0.5})(words).dropped == 0
        assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
        assert 0.2 < dropped.double().mean() < 0.8
        # A dropped word is so in all examples: without it, what the first layer sees is 0.
        seen: list[torch.Tensor] = []
        model = self.small({"dropoute": 0.5})
        model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(words)
        gone = (seen[0] == 0).all(-1)
        for word in words.unique():
            assert gone[words == word].unique().numel() == 1
        assert 0 < gone.sum() < gone.numel()

    def test_unknown_rates(self) -> None:
        with pytest.raises(ValueError, match=r"no rate 'dropouts' \(did you mean 'dropouto'\?\)"):
            self.small({"dropouts": 0.1})

    def test_dropped_weights_by_hand(self) -> None:
        words = torch.randint(11, (3, 8))
        model, plain = self.small({"wdrop": 0.5}), self.small()
        torch.manual_seed(1)
        output = model(words).logits
        torch.manual_seed(1)
        for layer in plain.layers:
            layer.weight_hh_l0.data *= drop_connect(torch.ones_like(layer.weight_hh_l0), 0.5).detach()
        assert torch.equal(output, plain(words).logits)
        assert torch.equal(model.eval()(words).logits, self.small().eval()(words).logits)

    def test_weights_are_whole_again_after_an_error(self) -> None:
        model = self.small({"wdrop": 0.5})
        before = dict(model.named_parameters())
        with pytest.raises(RuntimeError):
            model(torch.zeros(1, 3, dtype=torch.int64), [(torch.zeros(2, 2, 2), torch.zeros(2, 2, 2))] * 2)
        assert all(before[name] is parameter for name, parameter in model.named_parameters())
        assert model.layers[0]._flat_weights[1] is model.layers[0].weight_hh_l0

    def test_a_response_shares_the_mask_of_its_weight(self) -> None:
        h = self.hyperparameters()
        model = self.small(h, n_layers=1)
        h.set_values({name: 1e-6 for name in LanguageModel.DROPOUTS if name != "wdrop"})
        self_tune(model, h, response="full")
        for parameter in model.selftuning.responses.parameters():
            parameter.data.normal_(0.0, 0.5)
        # A perturbation of all but the shared rates; strengths are those of the centre here.
        perturbation = h.draw(batch_size=3)
        words, plain = torch.randint(11, (3, 8)), export(model)
        layer, embedding = model.layers[0], model.encoder
        with h.use(perturbation):
            torch.manual_seed(1)
            output = model(words).raw
            torch.manual_seed(1)
            torch.rand(11, 1)  # the mask of words
            torch.rand(3, 1, 6)  # the mask of what the layer sees
            mask = drop_connect(torch.ones_like(layer.weight_hh_l0), h["wdrop"]).detach()
            seen = embedding(words)
        weights = {
            name: layer.response(part).effective(*site.general(layer), perturbation)
            for part, name, site in ((s.name, s.weight[7:], s) for s in layer.sites(layer))
        }
        for example in range(3):
            lstm = plain.layers[0]
            for name, (weight, bias) in weights.items():
                lstm.get_parameter(f"weight_{name}").data.copy_(weight[example] * (mask if name == "hh_l0" else 1))
                lstm.get_parameter(f"bias_{name}").data.copy_(bias[example])
            expected, _ = lstm(seen[example : example + 1])
            torch.testing.assert_close(output[example : example + 1], expected)

    def test_self_tuning(self) -> None:
        h = self.hyperparameters()
        model, plain, words = self.small(h), self.small(0.0), torch.randint(11, (3, 8))
        self_tune(model, h)
        assert not any(name.startswith("decoder") for name in model.selftuning.forms)
        assert model.decoder.weight is model.encoder.weight
        assert torch.equal(model.eval()(words).logits, plain.eval()(words).logits)
        assert model.rate("dropouto") == pytest.approx(0.4)
        with h.perturbed(batch_size=3):
            assert model.rate("dropouto").shape == (3,)
            assert model.train()(words).logits.shape == (3, 8, 11)
        twin = copy.deepcopy(model)
        twin.selftuning.hyperparameters.set_values({"dropouto": 0.7})
        assert (twin.rate("dropouto"), model.rate("dropouto")) == (pytest.approx(0.7), pytest.approx(0.4))

    def test_rates_that_the_batch_must_share(self) -> None:
        h = Hyperparameters({"dropoute": uniform(0.0, 0.9)})
        model = self.small(h)
        with h.perturbed(batch_size=3), pytest.raises(ValueError, match="per_example=False"):
            model(torch.randint(11, (3, 8)))
