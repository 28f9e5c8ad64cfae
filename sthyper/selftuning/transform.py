"""Turns a model into a self-tuning one, in place, and back into a plain one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from sthyper.errors import closest
from sthyper.selftuning._layers_base import LINK, Link
from sthyper.selftuning._layers_norm import _BatchStatistics
from sthyper.selftuning._plain import (
    export,
    frozen_statistics,
    general_parameters,
    plain_state_dict,
    response_parameters,
    squared_norms,
)
from sthyper.selftuning._response import Form, Kind, Response, Site
from sthyper.selftuning._selection import Selection, Selector, by_pattern, check_patterns
from sthyper.selftuning._state import SelfTuning, sequential_class
from sthyper.selftuning._tunable_dropout import swap_dropout
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.layers import LAYERS, best_response_class

__all__ = [
    "SelfTuning",
    "export",
    "frozen_statistics",
    "general_parameters",
    "plain_state_dict",
    "response_parameters",
    "self_tune",
    "squared_norms",
]

ResponseForm = Literal["full", "lowrank", "auto"]

# With "auto", convolutions use effective weights for each of so many groups of examples: a training step of batch 128
# costs about 1.2 times the plain one, against 1.1 with 4 groups, 1.3 with 16 and 1.7 without groups.
DEFAULT_GROUPS = 8
# With "auto", linear layers and embeddings of at least so many weights get factors: 1.9 times the plain layer, against
# 2.4 in full, and 1.2 against 2.1 from a million weights on. Smaller layers gain little, and cost little.
WIDE = 2**16


@dataclass(frozen=True)
class _Options:
    kind: Kind
    response: ResponseForm
    rank: int
    groups: int | None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("kind", self.kind, get_args(Kind)),
            ("response", self.response, get_args(ResponseForm)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}{closest(value, allowed)}")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank must be a whole number of at least 1, got {self.rank!r}")
        if self.groups is not None and (not isinstance(self.groups, int) or self.groups < 1):
            raise ValueError(f"groups must be a whole number of at least 1, or None, got {self.groups!r}")

    def form(self, layer: nn.Module, weight: Tensor) -> Form:
        """Return the form of the response of a weight."""
        if self.response != "auto":
            return self.response
        # Convolutions: effective weights of few groups. Recurrent layers: each weight is used at every time step.
        suits = isinstance(layer, nn.Linear | nn.Embedding | nn.MultiheadAttention)
        return "lowrank" if suits and weight.numel() >= WIDE else "full"


def self_tune(
    model: nn.Module,
    hyperparameters: Hyperparameters,
    kind: Kind = "delta",
    response: ResponseForm = "auto",
    *,
    rank: int = 8,
    groups: int | None = None,
    include: Selector | Iterable[Selector] | None = None,
    exclude: Selector | Iterable[Selector] = (),
    dropout: Literal["auto"] | Mapping[str, str] | None = "auto",
    batch_dim: int | Mapping[str, int] = 0,
    seed: int = 0,
) -> nn.Module:
    """Let the layers of a model respond to hyperparameters, in place.

    Layers in :data:`~sthyper.selftuning.layers.LAYERS` become best-response layers (MacKay et al. 2019,
    https://arxiv.org/abs/1903.03088, and Bae & Grosse 2020, https://arxiv.org/abs/2010.13514): they keep their class as
    a base, their parameters and the names of these. All that is new is in ``model.selftuning``. Other layers stay as
    they are; of layers that share a weight one responds, an embedding before others.

    Inputs that were flattened from ``B x T x ...`` to ``B T x ...`` suit ``batch_dim=0``; if they were flattened from
    ``T x B x ...``, give the layer ``batch_dim=1``. Recurrent layers and attention know their axis themselves.

    Example:
        >>> from sthyper.config_space import uniform
        >>> from sthyper.selftuning.hyperparameters import Hyperparameters
        >>> hyperparameters = Hyperparameters({"rate": uniform(0, 0.9)})
        >>> model = self_tune(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), hyperparameters)
        >>> with hyperparameters.perturbed(batch_size=5):
        ...     y = model(torch.ones(5, 4))

    Args:
        model: Any module; what it computes is unchanged until hyperparameters are perturbed or moved.
        hyperparameters: What it responds to, completely registered. Gates and choices are sampled where the model
            reads them; if there are no others the layers stay as they are.
        kind: ``"delta"`` for responses to the distance from the centre, which vanish there; ``"stn"`` for the form of
            the 2019 paper.
        response: ``"full"`` for responses like the weights, ``"lowrank"`` for a product of two factors, ``"auto"`` for
            the cheapest form of each layer that keeps the quality: factors for wide linear layers and embeddings,
            groups of examples for convolutions.
        rank: Rank of the factors.
        groups: In how many groups training cuts a batch, as ``model.selftuning.groups`` says to it. Default is one
            group for each example, with ``"auto"`` 8.
        include: Layers to transform: types, patterns of paths (as in :mod:`fnmatch`; a module's pattern means all
            within) or functions ``(path, module) -> bool``. Default is all.
        exclude: Layers to leave alone, in the same way. Running statistics of left-out normalisations follow the same
            rule as those of others, see :func:`frozen_statistics`.
        dropout: Which dropout layers take their rate from which hyperparameter: a mapping of patterns of paths to
            names, or ``"auto"`` for those whose path is the name of one. ``None`` leaves all alone.
        batch_dim: Axis of the examples in the inputs of layers, for all or by patterns of paths (others: 0).
        seed: Seed of the initial responses.

    Returns:
        The model itself.

    Raises:
        TypeError: For arguments of another type.
        ValueError: For unknown names and options, layers that cannot be transformed, a model without any that can be,
            and one that is self-tuning already.
    """
    options = _Options(kind, response, rank, groups)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {model!r}")
    if isinstance(model, nn.ModuleList | nn.ModuleDict):
        raise TypeError("model must have a forward method; ModuleList and ModuleDict have none")
    if not isinstance(hyperparameters, Hyperparameters):
        raise TypeError(f"hyperparameters must be Hyperparameters, got {hyperparameters!r}")
    if not len(hyperparameters):
        raise ValueError("hyperparameters must hold at least one")
    if any(LINK in module.__dict__ or isinstance(module, SelfTuning) for module in model.modules()):
        raise ValueError("model is self-tuning already; transform a plain one, for example what export(model) returns")
    if hasattr(model, "selftuning"):
        raise ValueError("model has an attribute 'selftuning' already, which is where the responses go")
    included = None if include is None else Selection("include", include, model)
    excluded = Selection("exclude", exclude, model)
    # Layers do not respond to gates and choices.
    chosen = _choose(model, included, excluded) if hyperparameters.continuous else []
    axes = _axes(batch_dim, model, chosen)
    state = SelfTuning(hyperparameters, kind, DEFAULT_GROUPS if groups is None and response == "auto" else groups)
    # All that can be refused comes before the first change of the model.
    dropouts = swap_dropout(model, hyperparameters, dropout, excluded, axes)
    generator = torch.Generator().manual_seed(seed)
    for name, layer, sites in chosen:
        responses = _respond(name, layer, sites, state, options, generator)
        _attach(name, layer, Link(name, state, responses, axes.get(name, 0)))
    _left_out(model, chosen, state)
    state.dropouts = dropouts
    state.train(model.training)
    if isinstance(model, nn.Sequential):
        model.__class__ = sequential_class(type(model))
    model.selftuning = state
    return model


# ---- what is transformed -----------------------------------------------------------------------------------


_Chosen = list[tuple[str, nn.Module, list[Site]]]


def _choose(model: nn.Module, included: Selection | None, excluded: Selection) -> _Chosen:
    """Return the layers to transform with their sites."""
    problems: dict[str, str] = {}
    found: _Chosen = []
    parts = {f"{name}.out_proj" if name else "out_proj" for name, m in model.named_modules() if _is_attention(m)}
    for name, module in model.named_modules():
        if name in parts or excluded(name, module) or (included is not None and not included(name, module)):
            continue
        problem = _problem(module)
        if problem:
            problems[name] = problem
            continue
        plain = best_response_class(type(module))
        sites = [] if plain is None else plain.sites(module)
        if sites:
            found.append((name, module, sites))
    if problems:
        names = ", ".join(f"{name!r} ({problem})" for name, problem in problems.items())
        raise ValueError(f"layers that cannot be transformed: {names}; exclude them with exclude={tuple(problems)!r}")
    if included is not None:
        _check_included(included, found)
    found = _untied(found)
    if not found:
        types = sorted({type(m).__name__ for m in model.modules() if next(m.parameters(False), None) is not None})
        raise ValueError(
            f"model has no layer that can be transformed; modules with parameters are of the types {types}, those that "
            f"can be transformed are {sorted(c.__name__ for c in LAYERS)}"
        )
    return found


def _is_attention(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention)


def _problem(module: nn.Module) -> str | None:
    """Return why a layer that looks supported is not."""
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "not initialised; run a batch through the model first"
    if isinstance(module, nn.SyncBatchNorm):
        return "SyncBatchNorm; transform the model before it is converted"
    if not isinstance(module, tuple(LAYERS)):
        return None
    if any(is_parametrized(m) for m in module.modules()):
        return "its weights are parametrised"
    try:
        plain = best_response_class(type(module))
    except TypeError as error:
        return str(error)
    for site in [] if plain is None else plain.sites(module):
        path, _, attribute = site.weight.rpartition(".")
        if module.get_submodule(path)._parameters.get(attribute) is None:
            return f"its {site.weight} is no parameter, but computed (weight_norm, spectral_norm, pruning)"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm changes the table in the forward pass"
    return None


def _check_included(included: Selection, found: _Chosen) -> None:
    for pattern in included.patterns:
        names = [name for name, _, _ in found]
        check_patterns("include (among layers that can be transformed)", [pattern], names)
    for wanted in included.types:
        if not any(issubclass(plain, wanted) or issubclass(wanted, plain) for plain in LAYERS):
            names = [plain.__name__ for plain in LAYERS]
            raise ValueError(
                f"include: {wanted.__name__} cannot be transformed{closest(wanted.__name__, names)}; possible are "
                f"{names}"
            )


def _untied(found: _Chosen) -> _Chosen:
    """Leave one of the layers that share a weight: an embedding, else the first."""
    owner: dict[int, int] = {}
    for i, (_, layer, sites) in enumerate(found):
        for site in sites:
            key = id(site.general(layer)[0]) if site.part is None else id(layer)
            first = owner.setdefault(key, i)
            if first != i and isinstance(layer, nn.Embedding) and not isinstance(found[first][1], nn.Embedding):
                owner[key] = i
    dropped = set()
    for i, (_, layer, sites) in enumerate(found):
        if any(site.part is None and owner[id(site.general(layer)[0])] != i for site in sites):
            dropped.add(i)
    return [entry for i, entry in enumerate(found) if i not in dropped]


def _axes(batch_dim: int | Mapping[str, int], model: nn.Module, chosen: _Chosen) -> dict[str, int]:
    """Return the axis of the examples of each layer that does not know it."""
    own = (nn.RNNBase, nn.MultiheadAttention)
    names = [name for name, layer, _ in chosen if not isinstance(layer, own)]
    names += [name for name, module in model.named_modules() if type(module) is nn.Dropout]
    patterns = batch_dim if isinstance(batch_dim, Mapping) else {"*": batch_dim}
    for axis in patterns.values():
        if isinstance(axis, bool) or not isinstance(axis, int) or axis < 0:
            raise ValueError(f"batch_dim must be a whole number of at least 0, got {axis!r}")
    if isinstance(batch_dim, Mapping):
        check_patterns("batch_dim (among layers that do not know their axis)", patterns, names)
    return {name: by_pattern(patterns, name) or 0 for name in names}


# ---- the changes -------------------------------------------------------------------------------------------


def _respond(
    name: str, layer: nn.Module, sites: list[Site], state: SelfTuning, options: _Options, generator: torch.Generator
) -> nn.Module:
    """Make the responses of a layer, at the layer's path in ``state.responses``."""
    padding_idx = layer.padding_idx if isinstance(layer, nn.Embedding) else None
    node = state.responses
    parts = name.split(".") if name else []
    for i, site in enumerate(sites):
        weight, bias = site.general(layer)
        response = Response(
            weight,
            bias,
            len(state.hyperparameters.continuous),
            kind=options.kind,
            form=options.form(layer, weight),
            rank=options.rank,
            layout=site.layout,
            generator=generator,
            padding_idx=padding_idx,
        )
        state.forms[".".join(p for p in (name, site.name) if p)] = response.form
        if i == 0:
            for part in parts[:-1]:
                node = _child(node, part)
            if site.name and parts:
                node = _child(node, parts[-1])
        if site.name:
            setattr(node, site.name, response)
        elif parts:
            setattr(node, parts[-1], response)
            return response
        else:
            state.responses = response
            return response
    return node


def _child(node: nn.Module, name: str) -> nn.Module:
    if name not in node._modules:
        setattr(node, name, nn.Module())
    child = node._modules[name]
    assert child is not None
    return child


def _attach(name: str, layer: nn.Module, link: Link) -> None:
    new = best_response_class(type(layer))
    assert new is not None
    layer.__class__ = new
    # Not as an attribute, which would register the responses with the layer.
    layer.__dict__[LINK] = link


def _left_out(model: nn.Module, chosen: _Chosen, state: SelfTuning) -> None:
    """Let other modules with running statistics, and those whose kernels pass over their parts, follow the rules."""
    paths = {id(layer) for _, layer, _ in chosen}
    inner = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    untouched = []
    for name, module in model.named_modules():
        if id(module) in paths or id(module) in inner:
            continue
        if next(module.parameters(recurse=False), None) is not None:
            untouched.append(name)
        try:
            new = best_response_class(type(module))
        except TypeError:
            continue
        parametrised = is_parametrized(module) or isinstance(module, LazyModuleMixin)
        if new is not None and not parametrised and (issubclass(new, _BatchStatistics) or not new.sites(module)):
            _attach(name, module, Link(name, state, None))
    state.untouched = tuple(untouched)
