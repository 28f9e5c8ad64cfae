"""The LSTM language model of the papers' experiments, with all of its kinds of dropout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sthyper.errors import closest
from sthyper.selftuning._layers_base import BestResponse
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.regularisers import drop_connect, embedding_dropout, locked_dropout

__all__ = ["LanguageModel", "LanguageOutput"]

Rates = float | Mapping[str, float]
State = list[tuple[Tensor, Tensor]]


class LanguageOutput(NamedTuple):
    """What a :class:`LanguageModel` returns.

    Args:
        logits: Of the next word (``B x T x n_outputs``).
        state: Last hidden state and cell of each layer (``1 x B x D`` each), to go on from.
        raw: Outputs of the last layer before dropout (``B x T x D``), for the temporal penalty.
        dropped: The same after dropout, for the activation penalty.
    """

    logits: Tensor
    state: State
    raw: Tensor
    dropped: Tensor


class LanguageModel(nn.Module):
    """An LSTM that predicts the next word (MacKay et al. 2019, https://arxiv.org/abs/1903.03088, section 5.1).

    An embedding, layers of LSTM, and a decoder that shares the table of the embedding, without a response of its own.
    The first axis is that of the examples.

    Dropout, by name: ``dropoute`` of words, ``dropouti`` of the embedding's outputs, ``dropouth`` between the layers,
    ``dropouto`` of the last layer's outputs (these three with one mask for all times), ``wdrop`` of the weights from
    hidden state to hidden state (DropConnect: one mask for all times and examples, which general weight and full
    response share).

    Args:
        n_words: Size of the vocabulary.
        dropout: One rate for all, rates by name (others are 0), or hyperparameters, of which those with one of the
            names are the rates. There ``dropoute`` and ``wdrop`` are shared by the batch (``per_example=False``).
        n_outputs: Number of outputs at each time, for other tasks; not with ``tied``. Default is ``n_words``.
        size: Size of the embedding.
        hidden: Units of each layer; with ``tied`` the last one has ``size``.
        n_layers: Number of layers.
        tied: Whether the decoder shares the embedding's table.

    Attributes:
        DROPOUTS: The names of the rates.
        SHARED: Those that the whole batch shares.

    Raises:
        ValueError: For unknown names, rates outside of [0, 1), sizes that are not positive, or ``n_outputs`` with
            ``tied``.
    """

    DROPOUTS = ("dropoute", "dropouti", "dropouth", "dropouto", "wdrop")
    SHARED = ("dropoute", "wdrop")

    def __init__(
        self,
        n_words: int,
        dropout: Rates | Hyperparameters = 0.0,
        *,
        n_outputs: int | None = None,
        size: int = 650,
        hidden: int = 650,
        n_layers: int = 2,
        tied: bool = True,
    ) -> None:
        super().__init__()
        for argument, value in (("n_words", n_words), ("size", size), ("hidden", hidden), ("n_layers", n_layers)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{argument} must be a whole number of at least 1, got {value!r}")
        if tied and n_outputs not in (None, n_words):
            raise ValueError(f"n_outputs must be n_words={n_words} if the decoder is tied, got {n_outputs!r}")
        self.__dict__["hyperparameters"] = dropout if isinstance(dropout, Hyperparameters) else None
        self.rates = {} if isinstance(dropout, Hyperparameters) else _checked(dropout)
        self.encoder = nn.Embedding(n_words, size)
        sizes = [size, *[hidden] * (n_layers - 1), size if tied else hidden]
        self.layers = nn.ModuleList(nn.LSTM(sizes[i], sizes[i + 1], batch_first=True) for i in range(n_layers))
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        self.decoder = nn.Linear(sizes[-1], n_words if n_outputs is None else n_outputs)
        nn.init.zeros_(self.decoder.bias)
        if tied:
            # self_tune gives a response to the embedding only.
            self.decoder.weight = self.encoder.weight
        else:
            nn.init.uniform_(self.decoder.weight, -0.1, 0.1)

    def rate(self, name: str) -> Tensor | float:
        """Return a rate as it is now: a number, 0-d, or one for each example (``B``)."""
        hyperparameters = self.__dict__["hyperparameters"]
        if hyperparameters is not None and name in hyperparameters:
            result: Tensor = hyperparameters[name]
            return result
        return self.rates.get(name, 0.0)

    def forward(self, words: Tensor, state: State | None = None) -> LanguageOutput:
        """Predict the word after each word.

        Args:
            words: Numbers of words (``B x T``).
            state: State after the words before; default is zero.
        """
        x = self.encoder(words)
        if self._drops("dropoute"):
            x = embedding_dropout(x, words, self.encoder.num_embeddings, self.rate("dropoute"))
        x = raw = self._locked(x, "dropouti")
        last: State = []
        for i, layer in enumerate(self.layers):
            with _dropped_weights(layer, self.rate("wdrop") if self._drops("wdrop") else None):
                raw, end = layer(x, None if state is None else state[i])
            last.append(end)
            x = self._locked(raw, "dropouto" if i == len(self.layers) - 1 else "dropouth")
        return LanguageOutput(self.decoder(x), last, raw, x)

    def _drops(self, name: str) -> bool:
        rate = self.rate(name)
        return self.training and (isinstance(rate, Tensor) or rate > 0)

    def _locked(self, x: Tensor, name: str) -> Tensor:
        return locked_dropout(x, self.rate(name), batch_first=True) if self._drops(name) else x


def _checked(dropout: Rates) -> dict[str, float]:
    names = LanguageModel.DROPOUTS
    rates = dict(dropout) if isinstance(dropout, Mapping) else dict.fromkeys(names, dropout)
    for name, rate in rates.items():
        if name not in names:
            raise ValueError(f"dropout: there is no rate {name!r}{closest(name, names)}; known are {list(names)}")
        if not (isinstance(rate, int | float) and 0 <= rate < 1):
            raise ValueError(f"dropout: the rate of {name!r} must be a number in [0, 1), got {rate!r}")
    return rates


@contextmanager
def _dropped_weights(layer: nn.Module, rate: Tensor | float | None) -> Iterator[None]:
    """Have some of the weights from hidden state to hidden state at zero for a while."""
    if rate is None:
        yield
        return
    lstm: Any = layer
    name = "weight_hh_l0"
    places: list[tuple[Any, str]] = [(lstm._parameters, name)]
    if isinstance(layer, BestResponse):
        response = layer.response("hh_l0")
        # Factors have no entries to drop.
        if response.weight is not None:
            places.append((response._parameters, "weight"))
    mask = drop_connect(torch.ones_like(lstm.weight_hh_l0, requires_grad=False), rate)
    before = [place[key] for place, key in places]
    flat = list(lstm._flat_weights)
    try:
        for (place, key), weight in zip(places, before, strict=True):
            place[key] = weight * mask
        # What the plain layer gives to its kernel.
        lstm._flat_weights = [lstm._parameters[key] for key in lstm._flat_weights_names]
        yield
    finally:
        for (place, key), weight in zip(places, before, strict=True):
            place[key] = weight
        lstm._flat_weights = flat
