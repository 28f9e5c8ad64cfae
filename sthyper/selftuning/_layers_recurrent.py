"""Best-response versions of recurrent layers and cells, as explicit products of the gates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from sthyper.selftuning._layers_base import BestResponse, Examples, prepare
from sthyper.selftuning._response import Site
from sthyper.selftuning.perturbation import Perturbation

__all__ = [
    "BestResponseGRU",
    "BestResponseGRUCell",
    "BestResponseLSTM",
    "BestResponseLSTMCell",
    "BestResponseRNN",
    "BestResponseRNNCell",
]

State = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, State], State]


def _lstm(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    i, f, g, o = (from_input + from_hidden).chunk(4, dim=-1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def _gru(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    r_x, z_x, n_x = from_input.chunk(3, dim=-1)
    r_h, z_h, n_h = from_hidden.chunk(3, dim=-1)
    n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    return (n + torch.sigmoid(z_x + z_h) * (state[0] - n),)


def _tanh(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    return (torch.tanh(from_input + from_hidden),)


def _relu(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    return (torch.relu(from_input + from_hidden),)


_STEPS: dict[str, Step] = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh, "RNN_RELU": _relu}
_FUSED: dict[str, Callable[..., Any]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}


class _Recurrent(BestResponse):
    """A recurrent layer whose gates respond to hyperparameters.

    With one effective weight for the batch, or for each group of it, torch's own loop runs; with a scale for each
    example, or under a forward-mode derivative, an explicit one.
    """

    @classmethod
    def sites(cls, layer: Any) -> list[Site]:
        """Return the weights of inputs, hidden states and projections of all layers and directions."""
        result = []
        for suffix in _suffixes(layer):
            for part in ("ih", "hh"):
                bias = f"bias_{part}{suffix}" if layer.bias else None
                result.append(Site(f"{part}{suffix}", f"weight_{part}{suffix}", bias))
            if layer.proj_size:
                result.append(Site(f"hr{suffix}", f"weight_hr{suffix}", None))
        return result

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Return outputs and last states as the plain layer does.

        Raises:
            TypeError: For packed sequences, where a response counts.
        """
        layer = cast(Any, self)
        perturbation = self.perturbation()
        if perturbation is None:
            return super().forward(input, hx)  # type: ignore[misc]
        name = self.link.name
        if isinstance(input, PackedSequence):
            raise TypeError(
                f"layer {name!r}: packed sequences suit the plain layer only; pad them (pad_packed_sequence), or "
                "exclude the layer"
            )
        batch_axis = 0 if layer.batch_first else 1
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(batch_axis)
        x = x.transpose(0, 1) if layer.batch_first else x
        given = () if hx is None else (hx if isinstance(hx, tuple) else (hx,))
        state = tuple(s if batched else s.unsqueeze(1) for s in given) or self._zeros(x)
        size = x.shape[1] if perturbation.n_groups > 1 else 1
        examples = Examples(name, 1, size)
        output, last = self._run(x, state, perturbation, examples)
        output = output.transpose(0, 1) if layer.batch_first else output
        if not batched:
            output, last = output.squeeze(batch_axis), tuple(s.squeeze(1) for s in last)
        return output, (last if layer.mode == "LSTM" else last[0])

    def _zeros(self, x: Tensor) -> State:
        layer = cast(Any, self)
        n = layer.num_layers * (2 if layer.bidirectional else 1)
        h = x.new_zeros(n, x.shape[1], layer.proj_size or layer.hidden_size)
        return (h, x.new_zeros(n, x.shape[1], layer.hidden_size)) if layer.mode == "LSTM" else (h,)

    def _run(self, x: Tensor, state: State, perturbation: Perturbation, examples: Examples) -> tuple[Tensor, State]:
        groups = perturbation.n_groups
        few = groups == 1 or groups != perturbation.batch_size
        if perturbation.linearised or not few:
            return self._explicit(x, state, perturbation, examples)
        sizes = [x.shape[1]] if groups == 1 else examples.chunks(perturbation)
        assert sizes is not None  # the examples have an axis of their own
        effective = {}
        for site in self.sites(self):
            weights, biases = self.response(site.name).effective(*site.general(cast(nn.Module, self)), perturbation)
            effective[site.weight] = weights.unbind(0)
            if site.bias is not None and biases is not None:
                effective[site.bias] = biases.unbind(0)
        parts = []
        chunks = zip(torch.split(x, sizes, 1), *(torch.split(s, sizes, 1) for s in state), strict=True)
        for group, (part, *states) in enumerate(chunks):
            parts.append(self._torch(part, tuple(states), {name: each[group] for name, each in effective.items()}))
        outputs = [torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)]
        return outputs[0], tuple(outputs[1:])

    def _torch(self, x: Tensor, state: State, weights: dict[str, Tensor]) -> State:
        layer = cast(Any, self)
        flat = [weights[name] for name in layer._flat_weights_names]
        hx: Any = tuple(s.contiguous() for s in state) if layer.mode == "LSTM" else state[0].contiguous()
        options = (layer.bias, layer.num_layers, layer.dropout, layer.training, layer.bidirectional, False)
        return tuple(_FUSED[layer.mode](x, hx, flat, *options))

    def _explicit(
        self, x: Tensor, state: State, perturbation: Perturbation, examples: Examples
    ) -> tuple[Tensor, State]:
        layer = cast(Any, self)
        last: list[State] = []
        suffixes = list(_suffixes(layer))
        for depth in range(layer.num_layers):
            if depth and layer.dropout and layer.training:
                x = F.dropout(x, layer.dropout)
            outputs = []
            for suffix in suffixes[depth :: layer.num_layers]:
                start = tuple(s[len(last)] for s in state)
                output, end = self._direction(x, start, suffix, perturbation, examples)
                outputs.append(output)
                last.append(end)
            x = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
        return x, tuple(torch.stack(parts) for parts in zip(*last, strict=True))

    def _direction(
        self, x: Tensor, state: State, suffix: str, perturbation: Perturbation, examples: Examples
    ) -> tuple[Tensor, State]:
        layer = cast(Any, self)
        step = _STEPS[layer.mode]
        from_input = self._prepare("ih", suffix, perturbation, examples)(x)
        single = Examples(examples.name, 0, examples.size)
        from_hidden = self._prepare("hh", suffix, perturbation, single)
        project = self._prepare("hr", suffix, perturbation, single) if layer.proj_size else None
        outputs = []
        gates = from_input.unbind(0)
        backward = suffix.endswith("_reverse")
        for gate in reversed(gates) if backward else gates:
            state = step(gate, from_hidden(state[0]), state)
            if project is not None:
                state = (project(state[0]), *state[1:])
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backward else outputs), state

    def _prepare(
        self, part: str, suffix: str, perturbation: Perturbation, examples: Examples
    ) -> Callable[[Tensor], Tensor]:
        layer = cast(Any, self)
        weight = getattr(layer, f"weight_{part}{suffix}")
        bias = getattr(layer, f"bias_{part}{suffix}") if layer.bias and part != "hr" else None
        return prepare(F.linear, weight, bias, self.response(part + suffix), perturbation, examples)


def _suffixes(layer: Any) -> Iterator[str]:
    """Return the endings of parameter names: all layers forwards, then all layers backwards."""
    for direction in ("", "_reverse") if layer.bidirectional else ("",):
        for depth in range(layer.num_layers):
            yield f"_l{depth}{direction}"


class BestResponseLSTM(_Recurrent, nn.LSTM):
    """See :class:`torch.nn.LSTM`; its gates respond to hyperparameters."""

    plain_class = nn.LSTM


class BestResponseGRU(_Recurrent, nn.GRU):
    """See :class:`torch.nn.GRU`; its gates respond to hyperparameters."""

    plain_class = nn.GRU


class BestResponseRNN(_Recurrent, nn.RNN):
    """See :class:`torch.nn.RNN`; its units respond to hyperparameters."""

    plain_class = nn.RNN


class _Cell(BestResponse):
    """One step of a recurrent layer whose gates respond to hyperparameters."""

    @classmethod
    def sites(cls, layer: Any) -> list[Site]:
        """Return the weights of input and hidden state."""
        return [
            Site(part, f"weight_{part}", f"bias_{part}" if layer.bias_ih is not None else None) for part in ("ih", "hh")
        ]

    @abstractmethod
    def _step(self) -> Step:
        """Return what makes the next state."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Return the next state as the plain cell does (``B x hidden``)."""
        layer = cast(Any, self)
        perturbation = self.perturbation()
        if perturbation is None:
            return super().forward(input, hx)  # type: ignore[misc]
        step = self._step()
        n_states = 2 if step is _lstm else 1
        if hx is None:
            state: State = (input.new_zeros(*input.shape[:-1], layer.hidden_size),) * n_states
        else:
            state = tuple(hx) if n_states == 2 else (hx,)
        examples = Examples.of(input, self.link, 1, perturbation)
        parts = []
        for site, values in zip(self.sites(self), (input, state[0]), strict=True):
            weight, bias = site.general(layer)
            parts.append(prepare(F.linear, weight, bias, self.response(site.name), perturbation, examples)(values))
        result = step(parts[0], parts[1], state)
        return result if n_states == 2 else result[0]


class BestResponseLSTMCell(_Cell, nn.LSTMCell):
    """See :class:`torch.nn.LSTMCell`; its gates respond to hyperparameters."""

    plain_class = nn.LSTMCell

    def _step(self) -> Step:
        return _lstm


class BestResponseGRUCell(_Cell, nn.GRUCell):
    """See :class:`torch.nn.GRUCell`; its gates respond to hyperparameters."""

    plain_class = nn.GRUCell

    def _step(self) -> Step:
        return _gru


class BestResponseRNNCell(_Cell, nn.RNNCell):
    """See :class:`torch.nn.RNNCell`; its units respond to hyperparameters."""

    plain_class = nn.RNNCell

    def _step(self) -> Step:
        return _tanh if self.nonlinearity == "tanh" else _relu
