"""The networks of the papers' experiments as plain modules, whose dropout layers are there to be tuned.

Sizes are those of MacKay et al. 2019 (https://arxiv.org/abs/1903.03088) and Bae and Grosse 2020
(https://arxiv.org/abs/2010.13514). All dropout layers have the rate 0 unless told; the names in :func:`dropouts` are
those that hyperparameters get.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from torch import nn

from sthyper.errors import closest
from sthyper.selftuning._language_model import LanguageModel, LanguageOutput

__all__ = [
    "NETWORKS",
    "LanguageModel",
    "LanguageOutput",
    "alexnet",
    "dropouts",
    "fashion_cnn",
    "keras_cnn",
    "make_network",
    "mlp",
    "small_cnn",
    "vgg16",
]

Rates = float | Mapping[str, float]
_Parts = Iterable[tuple[str, nn.Module]]


class _Rates:
    """Makes dropout layers by name, and notices rates for layers that there are not."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates if isinstance(rates, Mapping) else None
        self._default = 0.0 if isinstance(rates, Mapping) else rates
        self._names: list[str] = []

    def layer(self, name: str, channels: bool = False) -> tuple[str, nn.Module]:
        rate = self._default if self._rates is None else self._rates.get(name, 0.0)
        if not (isinstance(rate, int | float) and 0 <= rate < 1):
            raise ValueError(f"dropout: the rate of {name!r} must be a number in [0, 1), got {rate!r}")
        self._names.append(name)
        return name, nn.Dropout2d(rate) if channels else nn.Dropout(rate)

    def check(self) -> None:
        for name in self._rates or ():
            if name not in self._names:
                raise ValueError(
                    f"dropout: there is no dropout layer {name!r}{closest(name, self._names)}; known are {self._names}"
                )


def _sequential(parts: _Parts, rates: _Rates) -> nn.Sequential:
    network = nn.Sequential(OrderedDict(parts))
    rates.check()
    return network


def _check_outputs(n_outputs: int) -> None:
    if not isinstance(n_outputs, int) or n_outputs < 1:
        raise ValueError(f"n_outputs must be a whole number of at least 1, got {n_outputs!r}")


def _convolution(
    i: int, channels: tuple[int, int], kernel: int = 3, stride: int = 1, padding: int = 1, pool: bool = False
) -> list[tuple[str, nn.Module]]:
    parts: list[tuple[str, nn.Module]] = [
        (f"conv{i}", nn.Conv2d(*channels, kernel_size=kernel, stride=stride, padding=padding))
    ]
    if pool:
        # Before the activation: the same, for a quarter of its cost.
        parts.append((f"pool{i}", nn.MaxPool2d(2)))
    return [*parts, (f"relu{i}", nn.ReLU())]


def alexnet(n_outputs: int = 10, dropout: Rates = 0.0) -> nn.Sequential:
    """Return the AlexNet for images of ``3 x 32 x 32`` (MacKay et al. 2019).

    Five 3 x 3 convolutions with 64 (stride 2), 192, 384, 256 and 256 channels, pooled after the first, second and
    fifth; linear layers 1024-4096-4096. Dropout: ``indropout`` on the pixels, ``dropout0`` to ``dropout4`` on the
    channels after each convolution, ``fcdropout0`` and ``fcdropout1`` before the first two linear layers.

    Args:
        n_outputs: Number of classes.
        dropout: Rate of all dropout layers, or rates by name; the others are 0.

    Returns:
        A network from ``B x 3 x 32 x 32`` to ``B x n_outputs``.

    Raises:
        ValueError: For unknown names, and rates outside of [0, 1).
    """
    _check_outputs(n_outputs)
    rates = _Rates(dropout)
    channels = [3, 64, 192, 384, 256, 256]
    parts = [rates.layer("indropout")]
    for i in range(5):
        parts += _convolution(i, (channels[i], channels[i + 1]), stride=2 if i == 0 else 1, pool=i in (0, 1, 4))
        parts.append(rates.layer(f"dropout{i}", channels=True))
    parts += [
        ("flatten", nn.Flatten()),
        rates.layer("fcdropout0"),
        ("fc0", nn.Linear(1024, 4096)),
        ("fcrelu0", nn.ReLU()),
        rates.layer("fcdropout1"),
        ("fc1", nn.Linear(4096, 4096)),
        ("fcrelu1", nn.ReLU()),
        ("fc2", nn.Linear(4096, n_outputs)),
    ]
    return _sequential(parts, rates)


def small_cnn(n_outputs: int = 10, dropout: Rates = 0.0) -> nn.Sequential:
    """Return the small CNN for images of ``3 x 32 x 32`` (MacKay et al. 2019).

    Three 3 x 3 convolutions with 10, 20 and 40 channels, each pooled; one linear layer from 640. Dropout:
    ``indropout`` on the pixels, ``dropout0`` and ``dropout1`` on channels, ``dropout2`` on the features of the linear
    layer.

    Args:
        n_outputs: Number of classes.
        dropout: See :func:`alexnet`.

    Returns:
        A network from ``B x 3 x 32 x 32`` to ``B x n_outputs``.

    Raises:
        ValueError: See :func:`alexnet`.
    """
    _check_outputs(n_outputs)
    rates = _Rates(dropout)
    channels = [3, 10, 20, 40]
    parts = [rates.layer("indropout")]
    for i in range(3):
        parts += _convolution(i, (channels[i], channels[i + 1]), pool=True)
        parts.append(rates.layer(f"dropout{i}", channels=i < 2))
    parts += [("flatten", nn.Flatten()), ("fc", nn.Linear(640, n_outputs))]
    return _sequential(parts, rates)


def vgg16(n_outputs: int = 10, dropout: Rates = 0.0) -> nn.Sequential:
    """Return the VGG16 without normalisation for images of ``3 x 32 x 32`` (Bae and Grosse 2020).

    Thirteen 3 x 3 convolutions, linear layers 512-512-512. Weights of convolutions are drawn with variance
    ``2 / (9 * channels)``, their biases are 0. Dropout: ``dropout0`` on the pixels, ``dropout1`` to ``dropout13`` on
    the channels after each convolution, ``dropout_fc1`` and ``dropout_fc2`` after the first two linear layers.

    Args:
        n_outputs: Number of classes.
        dropout: See :func:`alexnet`.

    Returns:
        A network from ``B x 3 x 32 x 32`` to ``B x n_outputs``.

    Raises:
        ValueError: See :func:`alexnet`.
    """
    _check_outputs(n_outputs)
    rates = _Rates(dropout)
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    parts = [rates.layer("dropout0")]
    for i in range(1, 14):
        parts += _convolution(i, (channels[i - 1], channels[i]), pool=i in (2, 4, 7, 10, 13))
        parts.append(rates.layer(f"dropout{i}", channels=True))
    parts.append(("flatten", nn.Flatten()))
    for i in (1, 2):
        parts += [(f"fc{i}", nn.Linear(512, 512)), (f"fcrelu{i}", nn.ReLU()), rates.layer(f"dropout_fc{i}")]
    network = _sequential([*parts, ("fc3", nn.Linear(512, n_outputs))], rates)
    for module in network:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / (9 * module.out_channels)))
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network


def mlp(
    n_outputs: int = 10, dropout: Rates = 0.0, *, n_inputs: int = 784, hidden: Sequence[int] = (1200, 1200)
) -> nn.Sequential:
    """Return a network of linear layers and ReLU; by default the one for MNIST (Bae and Grosse 2020).

    The paper speaks of three hidden layers and its program has two: say ``hidden=(1200, 1200, 1200)`` for three.
    Dropout: ``dropout0`` on the inputs, ``dropout1``, ``dropout2`` ... after each hidden layer.

    Args:
        n_outputs: Number of outputs.
        dropout: See :func:`alexnet`.
        n_inputs: Number of inputs, over all axes after the first.
        hidden: Units of each hidden layer.

    Returns:
        A network from ``B x ...`` with ``n_inputs`` numbers an example to ``B x n_outputs``.

    Raises:
        ValueError: See :func:`alexnet`; or if a size is not positive.
    """
    _check_outputs(n_outputs)
    sizes = [n_inputs, *hidden]
    if any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"n_inputs and hidden must be whole numbers of at least 1, got {n_inputs!r} and {hidden!r}")
    rates = _Rates(dropout)
    parts: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten()), rates.layer("dropout0")]
    for i in range(1, len(sizes)):
        parts += [(f"fc{i}", nn.Linear(sizes[i - 1], sizes[i])), (f"relu{i}", nn.ReLU()), rates.layer(f"dropout{i}")]
    parts.append((f"fc{len(sizes)}", nn.Linear(sizes[-1], n_outputs)))
    return _sequential(parts, rates)


def fashion_cnn(n_outputs: int = 10, dropout: Rates = 0.0) -> nn.Sequential:
    """Return the "SimpleCNN" for Fashion-MNIST, images of ``1 x 28 x 28`` (Bae and Grosse 2020).

    Two 5 x 5 convolutions with 16 and 32 channels, each pooled; linear layers 1568-1568. Dropout: ``dropout0`` on the
    pixels, ``dropout1`` and ``dropout2`` on channels, ``dropout_fc`` after the first linear layer.

    Args:
        n_outputs: Number of classes.
        dropout: See :func:`alexnet`.

    Returns:
        A network from ``B x 1 x 28 x 28`` to ``B x n_outputs``.

    Raises:
        ValueError: See :func:`alexnet`.
    """
    _check_outputs(n_outputs)
    rates = _Rates(dropout)
    channels = [1, 16, 32]
    parts = [rates.layer("dropout0")]
    for i in (1, 2):
        parts += _convolution(i, (channels[i - 1], channels[i]), kernel=5, padding=2, pool=True)
        parts.append(rates.layer(f"dropout{i}", channels=True))
    parts += [("flatten", nn.Flatten()), ("fc1", nn.Linear(1568, 1568)), ("fcrelu1", nn.ReLU())]
    return _sequential([*parts, rates.layer("dropout_fc"), ("fc2", nn.Linear(1568, n_outputs))], rates)


def keras_cnn(n_outputs: int = 10, dropout: Rates = 0.0) -> nn.Sequential:
    """Return the CNN of the Keras tutorial for images of ``3 x 32 x 32``, which the TensorFlow port of STN tunes.

    Three 3 x 3 convolutions without padding and with 32, 64 and 64 channels, the first two pooled; one hidden layer of
    64. Dropout: ``dropout0`` to ``dropout2`` on the channels after each convolution.

    Args:
        n_outputs: Number of classes.
        dropout: See :func:`alexnet`.

    Returns:
        A network from ``B x 3 x 32 x 32`` to ``B x n_outputs``.

    Raises:
        ValueError: See :func:`alexnet`.
    """
    _check_outputs(n_outputs)
    rates = _Rates(dropout)
    channels = [3, 32, 64, 64]
    parts: list[tuple[str, nn.Module]] = []
    for i in range(3):
        parts += _convolution(i, (channels[i], channels[i + 1]), padding=0, pool=i < 2)
        parts.append(rates.layer(f"dropout{i}", channels=True))
    parts += [("flatten", nn.Flatten()), ("fc0", nn.Linear(1024, 64)), ("fcrelu0", nn.ReLU())]
    return _sequential([*parts, ("fc1", nn.Linear(64, n_outputs))], rates)


NETWORKS: Mapping[str, Callable[[int, Rates], nn.Module]] = MappingProxyType(
    {
        "alexnet": alexnet,
        "small_cnn": small_cnn,
        "vgg16": vgg16,
        "mlp": mlp,
        "fashion_cnn": fashion_cnn,
        "keras_cnn": keras_cnn,
        "language_model": LanguageModel,
    }
)
"""The networks by name: functions of the number of outputs (or words) and the dropout rates."""


def make_network(name: str, n_outputs: int = 10, dropout: Rates = 0.0) -> nn.Module:
    """Return a network by its name.

    Args:
        name: One of :data:`NETWORKS`.
        n_outputs: Number of classes; of ``"language_model"`` the number of words.
        dropout: Rate of all dropout layers, or rates by name; the others are 0.

    Raises:
        ValueError: If there is no network of this name, or an argument does not suit it.
    """
    if name not in NETWORKS:
        raise ValueError(f"there is no network {name!r}{closest(name, NETWORKS)}; known are {sorted(NETWORKS)}")
    return NETWORKS[name](n_outputs, dropout)


def dropouts(model: nn.Module) -> list[str]:
    """Return the names of the dropout layers of a model, which hyperparameters get to set their rates.

    Args:
        model: Any module.
    """
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]
