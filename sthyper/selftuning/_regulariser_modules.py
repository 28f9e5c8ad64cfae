"""Modules whose strength is a hyperparameter of a self-tuning run, looked up by name in each pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sthyper.errors import closest
from sthyper.selftuning import _dropout, _noise
from sthyper.selftuning._layers_base import BestResponse
from sthyper.selftuning.hyperparameters import Hyperparameters

__all__ = [
    "DropConnect",
    "EmbeddingDropout",
    "GaussianNoise",
    "InputDropout",
    "InputScale",
    "LockedDropout",
    "Regulariser",
    "TunableDropout",
    "TunableDropout1d",
    "TunableDropout2d",
    "TunableDropout3d",
    "drop_connections",
]


class Regulariser(nn.Module):
    """Base of all modules here: knows where its strength is. In eval mode they return their input.

    The hyperparameters are not registered, so that they are in the state of the model once; a copy of a model refers to
    the copied ones. Random numbers are those of torch's own generator, as in torch's dropout layers.

    Args:
        hyperparameters: Where the strength is.
        name: The name that it has there.

    Attributes:
        hyperparameters: Where the strength is.
        name: The name that it has there.

    Raises:
        TypeError: If ``hyperparameters`` is something else.
        ValueError: If there is none of this name.
    """

    hyperparameters: Hyperparameters
    name: str

    def __init__(self, hyperparameters: Hyperparameters, name: str) -> None:
        nn.Module.__init__(self)
        if not isinstance(hyperparameters, Hyperparameters):
            raise TypeError(f"hyperparameters must be Hyperparameters, got {hyperparameters!r}")
        if name not in hyperparameters:
            raise ValueError(
                f"there is no hyperparameter {name!r}{closest(name, hyperparameters.names)}; known are "
                f"{hyperparameters.names}"
            )
        self.__dict__["hyperparameters"] = hyperparameters
        self.name = name

    @property
    def strength(self) -> Tensor:
        """What the strength is now: 0-d, or one number for each example (``B``)."""
        return self.hyperparameters[self.name]

    def extra_repr(self) -> str:
        return repr(self.name)


class _Dropout(Regulariser):
    """A dropout layer; code that looks for torch's own finds it, and its rate under the usual name."""

    inplace = False

    @property
    def p(self) -> Tensor:
        """The rate as it is now."""
        return self.strength


class TunableDropout(_Dropout, nn.Dropout):  # type: ignore[misc]
    """Dropout of elements, see :func:`~sthyper.selftuning.regularisers.dropout`.

    Args:
        hyperparameters: Where the rate is.
        name: The name that it has there.
        batch_dim: Axis of the examples.

    Raises:
        TypeError: See :class:`Regulariser`.
        ValueError: See :class:`Regulariser`.
    """

    def __init__(self, hyperparameters: Hyperparameters, name: str, batch_dim: int = 0) -> None:
        super().__init__(hyperparameters, name)
        self.batch_dim = batch_dim

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with some elements set to zero."""
        if not self.training:
            return input
        return _dropout.dropout(input, self.strength, batch_dim=self.batch_dim)


class TunableDropout1d(_Dropout, nn.Dropout1d):  # type: ignore[misc]
    """Dropout of channels (``B x C x L``), see :func:`~sthyper.selftuning.regularisers.dropout_1d`.

    Args:
        hyperparameters: Where the rate is.
        name: The name that it has there.

    Raises:
        TypeError: See :class:`Regulariser`.
        ValueError: See :class:`Regulariser`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with some channels set to zero."""
        return _dropout.dropout_1d(input, self.strength) if self.training else input


class TunableDropout2d(_Dropout, nn.Dropout2d):  # type: ignore[misc]
    """Dropout of channels (``B x C x H x W``), see :func:`~sthyper.selftuning.regularisers.dropout_2d`.

    Args:
        hyperparameters: Where the rate is.
        name: The name that it has there.

    Raises:
        TypeError: See :class:`Regulariser`.
        ValueError: See :class:`Regulariser`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with some channels set to zero."""
        return _dropout.dropout_2d(input, self.strength) if self.training else input


class TunableDropout3d(_Dropout, nn.Dropout3d):  # type: ignore[misc]
    """Dropout of channels (``B x C x D x H x W``), see :func:`~sthyper.selftuning.regularisers.dropout_3d`.

    Args:
        hyperparameters: Where the rate is.
        name: The name that it has there.

    Raises:
        TypeError: See :class:`Regulariser`.
        ValueError: See :class:`Regulariser`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with some channels set to zero."""
        return _dropout.dropout_3d(input, self.strength) if self.training else input


class LockedDropout(Regulariser):
    """Dropout with one mask for all times, see :func:`~sthyper.selftuning.regularisers.locked_dropout`.

    Args:
        hyperparameters: Where the rate is.
        name: The name that it has there.
        batch_first: Whether inputs are ``B x T x D`` instead of ``T x B x D``.

    Raises:
        TypeError: See :class:`Regulariser`.
        ValueError: See :class:`Regulariser`.
    """

    def __init__(self, hyperparameters: Hyperparameters, name: str, batch_first: bool = False) -> None:
        super().__init__(hyperparameters, name)
        self.batch_first = batch_first

    def forward(self, input: Tensor) -> Tensor:
        """Return the sequence with some features set to zero."""
        return _dropout.locked_dropout(input, self.strength, batch_first=self.batch_first) if self.training else input


class EmbeddingDropout(Regulariser):
    """Dropout of whole words, see :func:`~sthyper.selftuning.regularisers.embedding_dropout`.

    Its hyperparameter is one that the batch shares (``per_example=False``).

    Args:
        hyperparameters: Where the rate is.
        name: The name that it has there.
        n_words: Size of the vocabulary.

    Raises:
        TypeError: See :class:`Regulariser`.
        ValueError: See :class:`Regulariser`; also if the hyperparameter differs between the examples.
    """

    def __init__(self, hyperparameters: Hyperparameters, name: str, n_words: int) -> None:
        super().__init__(hyperparameters, name)
        _must_be_shared(self)
        self.n_words = n_words

    def forward(self, embedded: Tensor, words: Tensor) -> Tensor:
        """Return the vectors (``... x D``) with those of some words (``...``) set to zero."""
        if not self.training:
            return embedded
        return _dropout.embedding_dropout(embedded, words, self.n_words, self.strength)


class InputDropout(Regulariser):
    """Dropout of pixels, see :func:`~sthyper.selftuning.regularisers.input_dropout`.

    Args:
        hyperparameters: Where the rate is.
        name: The name that it has there.
        share_channels: Whether a pixel is dropped in all channels.
        rescale: Whether what is kept is divided by ``1 - p``.

    Raises:
        TypeError: See :class:`Regulariser`.
        ValueError: See :class:`Regulariser`.
    """

    def __init__(
        self, hyperparameters: Hyperparameters, name: str, share_channels: bool = False, rescale: bool = True
    ) -> None:
        super().__init__(hyperparameters, name)
        self.share_channels = share_channels
        self.rescale = rescale

    def forward(self, input: Tensor) -> Tensor:
        """Return the inputs (``B x ...``) with some of them set to zero."""
        if not self.training:
            return input
        return _dropout.input_dropout(input, self.strength, share_channels=self.share_channels, rescale=self.rescale)


class InputScale(Regulariser):
    """Random factors for whole inputs, see :func:`~sthyper.selftuning.regularisers.input_scale`.

    Args:
        hyperparameters: Where the strength is.
        name: The name that it has there.

    Raises:
        TypeError: See :class:`Regulariser`.
        ValueError: See :class:`Regulariser`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the inputs (``B x ...``), each times a factor."""
        return _noise.input_scale(input, self.strength) if self.training else input


class GaussianNoise(Regulariser):
    """Additive noise, see :func:`~sthyper.selftuning.regularisers.gaussian_noise`.

    Args:
        hyperparameters: Where the standard deviation is.
        name: The name that it has there.
        batch_dim: Axis of the examples.

    Raises:
        TypeError: See :class:`Regulariser`.
        ValueError: See :class:`Regulariser`.
    """

    def __init__(self, hyperparameters: Hyperparameters, name: str, batch_dim: int = 0) -> None:
        super().__init__(hyperparameters, name)
        self.batch_dim = batch_dim

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with noise."""
        if not self.training:
            return input
        return _noise.gaussian_noise(input, self.strength, batch_dim=self.batch_dim)


class DropConnect(Regulariser):
    """Dropout of weights as a parametrisation, see :func:`~sthyper.selftuning.regularisers.drop_connect`.

    Example::

        parametrize.register_parametrization(lstm, "weight_hh_l0", DropConnect(hyperparameters, "wdrop"))

    One mask is drawn for each use of the weight, so one for all times of a recurrent layer; around the time loop of a
    cell, ``with parametrize.cached():`` makes it one. Layers of a self-tuning model: :func:`drop_connections`. Its
    hyperparameter is one that the batch shares
    (``per_example=False``).

    Args:
        hyperparameters: Where the rate is.
        name: The name that it has there.
        rows: Whether whole rows of the weight are dropped.

    Raises:
        TypeError: See :class:`Regulariser`.
        ValueError: See :class:`Regulariser`; also if the hyperparameter differs between the examples.
    """

    def __init__(self, hyperparameters: Hyperparameters, name: str, rows: bool = False) -> None:
        super().__init__(hyperparameters, name)
        _must_be_shared(self)
        self.rows = rows

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with some entries set to zero."""
        self.__dict__["_mask"] = mask = None
        if self.training:
            mask = _dropout.drop_connect(
                torch.ones(weight.shape, dtype=weight.dtype, device=weight.device), self.strength, rows=self.rows
            )
            # The response of the same weight is masked alike.
            self.__dict__["_mask"] = mask
        return weight if mask is None else weight * mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what is stored when somebody assigns a weight."""
        return weight


class _SameMask(nn.Module):
    """Masks the response of a weight as the weight itself was masked last."""

    def __init__(self, source: DropConnect) -> None:
        super().__init__()
        self.__dict__["_source"] = source

    def forward(self, weight: Tensor) -> Tensor:
        """Return the masked response."""
        mask: Tensor | None = self.__dict__["_source"].__dict__.get("_mask")
        return weight if mask is None else weight * mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what is stored when somebody assigns a weight."""
        return weight


def drop_connections(
    layer: nn.Module, weight: str, hyperparameters: Hyperparameters, name: str, rows: bool = False
) -> DropConnect:
    """Drop weights of a layer of a self-tuning model at random, and its response with the same mask.

    Call it after :func:`~sthyper.selftuning.transform.self_tune`, which leaves no parametrised layers in. A response of
    low rank has no entries that could be dropped, so that only the general weight is masked there.

    Args:
        layer: The layer; a plain one will do, too.
        weight: Name of its parameter, such as ``"weight_hh_l0"``.
        hyperparameters: Where the rate is.
        name: The name that it has there.
        rows: Whether whole rows of the weight are dropped.

    Returns:
        The parametrisation; :func:`torch.nn.utils.parametrize.remove_parametrizations` takes it away again.

    Raises:
        TypeError: See :class:`Regulariser`.
        ValueError: If the layer has no such parameter; see also :class:`DropConnect`.
    """
    names = [n for n, _ in layer.named_parameters(recurse=False)]
    if weight not in names:
        raise ValueError(f"weight: the layer has no parameter {weight!r}{closest(weight, names)}; known are {names}")
    dropped = DropConnect(hyperparameters, name, rows).train(layer.training)
    if isinstance(layer, BestResponse) and layer.link.responses is not None:
        for site in layer.sites(layer):
            response = layer.response(site.name)
            if site.weight == weight and site.part is None and response._parameters.get("weight") is not None:
                parametrize.register_parametrization(response, "weight", _SameMask(dropped))
    parametrize.register_parametrization(layer, weight, dropped)
    return dropped


def _must_be_shared(module: Regulariser) -> None:
    if module.hyperparameters.declaration(module.name).per_example:
        raise ValueError(
            f"{type(module).__name__}: the whole batch shares one mask, but hyperparameter {module.name!r} has a value "
            f"for each example; declare it with per_example=False (Hyperparameters(..., shared=[{module.name!r}]))"
        )
