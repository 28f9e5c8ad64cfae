"""Regularisers with a strength for each example, as functions and as modules that look it up by name.

The functions take a number, a 0-d tensor, or one strength for each example (``B``). The modules take the
:class:`~sthyper.selftuning.hyperparameters.Hyperparameters` and a name. See :mod:`sthyper.selftuning.defaults` for
domains that suit them.
"""

from __future__ import annotations

from sthyper.selftuning._dropout import (
    LARGEST_RATE,
    drop_connect,
    dropout,
    dropout_1d,
    dropout_2d,
    dropout_3d,
    embedding_dropout,
    input_dropout,
    locked_dropout,
)
from sthyper.selftuning._noise import gaussian_noise, input_scale
from sthyper.selftuning._penalties import (
    activation_penalty,
    mixup,
    smoothed_cross_entropy,
    temporal_penalty,
    weight_decay,
)
from sthyper.selftuning._regulariser_modules import (
    DropConnect,
    EmbeddingDropout,
    GaussianNoise,
    InputDropout,
    InputScale,
    LockedDropout,
    Regulariser,
    TunableDropout,
    TunableDropout1d,
    TunableDropout2d,
    TunableDropout3d,
    drop_connections,
)

__all__ = [
    "LARGEST_RATE",
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
    "activation_penalty",
    "drop_connect",
    "drop_connections",
    "dropout",
    "dropout_1d",
    "dropout_2d",
    "dropout_3d",
    "embedding_dropout",
    "gaussian_noise",
    "input_dropout",
    "input_scale",
    "locked_dropout",
    "mixup",
    "smoothed_cross_entropy",
    "temporal_penalty",
    "weight_decay",
]
