"""Regularisers and augmentations by name: domains and start values that suit them.

The domains are those of the experiments in MacKay et al. 2019 (https://arxiv.org/abs/1903.03088) and Bae & Grosse 2020
(https://arxiv.org/abs/2010.13514); what is in neither is marked so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from sthyper.config_space import Domain, loguniform, randint, uniform
from sthyper.errors import closest

__all__ = ["AUGMENTATIONS", "REGULARISERS", "Paper", "Tunable", "default_shared", "default_space", "default_start"]


@dataclass(frozen=True)
class Tunable:
    """A strength that can be tuned.

    Args:
        purpose: What it is, in one line.
        domain: Domain that suits it.
        start: Value to begin with.
        shared: Whether all examples of a batch have to share it.
        stn: Domain in MacKay et al. 2019, if that is another one.
    """

    purpose: str
    domain: Domain
    start: float = 0.05
    shared: bool = False
    stn: Domain | None = None


Paper = Literal["delta-stn", "stn"]
Names = Iterable[str] | Mapping[str, str] | Mapping[str, Tunable]

_RATE, _STN_RATE = uniform(0.0, 0.95), uniform(0.0, 0.9)

AUGMENTATIONS: Mapping[str, Tunable] = MappingProxyType(
    {
        "brightness": Tunable("change of the brightness, a part of it", uniform(0.0, 1.0)),
        "contrast": Tunable("change of the contrast, a part of it", uniform(0.0, 1.0)),
        "saturation": Tunable("change of the saturation, a part of it", uniform(0.0, 1.0)),
        "hue": Tunable("shift of the hue, in turns of the colour circle", uniform(0.0, 0.5)),
        "degrees": Tunable("largest angle of a rotation, degrees", uniform(0.0, 45.0), start=5.0),
        "translate": Tunable("largest translation, a part of the size", uniform(0.0, 0.5)),
        "scale": Tunable("largest change of the size, a part of it", uniform(0.0, 0.5)),
        "shear": Tunable("largest angle of a shear, degrees", uniform(0.0, 45.0), start=5.0),
        "cutout_length": Tunable("side of cutout holes, pixels", randint(2, 24), start=4, stn=randint(0, 24)),
        "cutout_holes": Tunable("number of cutout holes", randint(0, 5), start=1, stn=randint(0, 4)),
    }
)
"""Strengths that :class:`~sthyper.selftuning.augmentation.Augmentation` understands, by name."""

REGULARISERS: Mapping[str, Tunable] = MappingProxyType(
    {
        "dropout": Tunable("dropout rate of a layer; dropout0, dropout1 ... are others", _RATE, stn=_STN_RATE),
        "fcdropout": Tunable("dropout rate before a linear layer; fcdropout0 ...", _RATE, stn=_STN_RATE),
        "indropout": Tunable("dropout rate of the pixels", _RATE, stn=uniform(0.0, 1.0)),
        "inscale": Tunable("random factor of the inputs", uniform(0.0, 0.3)),
        "dropouto": Tunable("dropout rate of the outputs of a language model", _RATE),
        "dropouti": Tunable("dropout rate of its embedded words", _RATE),
        "dropouth": Tunable("dropout rate between its recurrent layers", _RATE),
        "dropoute": Tunable("dropout rate of whole words", _RATE, shared=True),
        "wdrop": Tunable("DropConnect rate of recurrent weights", _RATE, shared=True),
        # The papers tune these without an upper bound.
        "alpha": Tunable("penalty of activations (AR)", loguniform(1e-3, 10.0), shared=True),
        "beta": Tunable("penalty of changes of activations (TAR)", loguniform(1e-3, 10.0), shared=True),
        # In neither paper:
        "noise": Tunable("standard deviation of noise on the inputs", uniform(0.0, 0.5)),
        "label_smoothing": Tunable("label smoothing", uniform(0.0, 0.5)),
        "mixup": Tunable("alpha of mixup", uniform(0.0, 1.0)),
        "weight_decay": Tunable("weight decay", loguniform(1e-6, 1e-2), start=1e-5),
    }
)
"""Strengths of regularisers by the names of the experiments."""


def default_space(names: Names, paper: Paper = "delta-stn") -> dict[str, Domain]:
    """Return a configuration space for regularisers and augmentations.

    Example:
        >>> names = ["dropout0", "dropout1", "weight_decay", "hue"]
        >>> sorted(default_space(names))
        ['dropout0', 'dropout1', 'hue', 'weight_decay']

    Args:
        names: Names in :data:`REGULARISERS` and :data:`AUGMENTATIONS`; also with a number behind (``"dropout3"``) and
            as the last part of a path (``"features.dropout3"``). Other names as a mapping to one of these, or to a
            :class:`Tunable`.
        paper: Whose ranges count where they differ: ``"delta-stn"`` or ``"stn"``.

    Raises:
        TypeError: If ``names`` is a text.
        ValueError: For unknown or repeated names.
    """
    papers = get_args(Paper)
    if paper not in papers:
        raise ValueError(f"paper must be one of {list(papers)}, got {paper!r}{closest(paper, papers)}")
    found = _tunables(names).items()
    return {n: t.stn if paper == "stn" and t.stn is not None else t.domain for n, t in found}


def default_start(names: Names) -> dict[str, float]:
    """Return start values by name, for ``Hyperparameters(default_space(names), start=...)``.

    Args:
        names: See :func:`default_space`.

    Raises:
        TypeError: See :func:`default_space`.
        ValueError: See :func:`default_space`.
    """
    return {name: tunable.start for name, tunable in _tunables(names).items()}


def default_shared(names: Names) -> list[str]:
    """Return those that all examples of a batch share, for ``Hyperparameters(default_space(names), shared=...)``.

    Args:
        names: See :func:`default_space`.

    Raises:
        TypeError: See :func:`default_space`.
        ValueError: See :func:`default_space`.
    """
    return [name for name, tunable in _tunables(names).items() if tunable.shared]


def _tunables(names: Names) -> dict[str, Tunable]:
    if isinstance(names, str):
        raise TypeError(f"names must be a list of names or a mapping, got {names!r}; one name is [{names!r}]")
    known = {**REGULARISERS, **AUGMENTATIONS}
    result: dict[str, Tunable] = {}
    for name in names:
        if name in result:
            raise ValueError(f"names: {name!r} is there twice")
        meant = names[name] if isinstance(names, Mapping) else name.rpartition(".")[2]
        if isinstance(meant, Tunable):
            result[name] = meant
            continue
        base = meant if meant in known else re.sub(r"\d+$", "", meant)
        if base not in known:
            raise ValueError(
                f"there is no regulariser or augmentation {meant!r}{closest(meant, known)}; known are {list(known)}, "
                "and other names as a mapping to one of these"
            )
        result[name] = known[base]
    return result
