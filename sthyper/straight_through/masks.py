"""Masks with trained probabilities on the parameters of any module: ``w -> w * mask(scores)``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sthyper.errors import closest
from sthyper.straight_through._mask_draws import masked, soft_mask
from sthyper.straight_through.sampler import BernoulliEstimator

__all__ = [
    "MaskMode",
    "MaskOptions",
    "ScoreMask",
    "is_masked_module",
    "kept_share",
    "mask_module",
    "named_masks",
    "set_evaluation",
]

MaskMode = Literal["sample", "threshold", "expected"]
MODES: tuple[str, ...] = get_args(MaskMode)
_ESTIMATORS: tuple[str, ...] = get_args(BernoulliEstimator)


@dataclass(frozen=True)
class MaskOptions:
    """How masks behave and start.

    A mode says what a weight is multiplied with: ``"sample"`` draws 0 or 1, ``"threshold"`` takes 1 where the
    probability is above one half, ``"expected"`` the probability itself.

    Args:
        estimator: What the derivative of a sampled or thresholded mask with respect to its probability is taken to be:
            ``"probs"`` the probability, as FL4Health does, ``"identity"`` 1, the classic straight-through estimator.
            Without effect on mode ``"expected"``, whose derivative is exact.
        training: Mode of modules in training.
        evaluation: Mode of modules in evaluation. FL4Health samples there too; the default is repeatable.
        mean: Mean of the initial scores; the sigmoid of a score is the probability.
        std: Standard deviation of the initial scores, at least 0.
        freeze: Whether the masked parameters get no gradient, so that only masks are trained.

    Raises:
        TypeError: If ``mean`` or ``std`` is no number, or ``freeze`` no truth value.
        ValueError: For unknown names, a deviation below 0 and numbers that are not finite.
    """

    estimator: BernoulliEstimator = "probs"
    training: MaskMode = "sample"
    evaluation: MaskMode = "threshold"
    mean: float = 0.0
    std: float = 1.0
    freeze: bool = True

    def __post_init__(self) -> None:
        check_name("estimator", self.estimator, _ESTIMATORS)
        check_name("training", self.training, MODES)
        check_name("evaluation", self.evaluation, MODES)
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not isinstance(self.freeze, bool):
            raise TypeError(f"freeze must be True or False, got {self.freeze!r}")
        if not isfinite(self.mean):
            raise ValueError(f"mean must be finite, got {self.mean!r}")
        if not (isfinite(self.std) and self.std >= 0):
            raise ValueError(f"std must be finite and at least 0, got {self.std!r}")


def check_options(options: object) -> MaskOptions:
    """Return options, the default ones for ``None``; raise for anything else."""
    if options is None:
        return MaskOptions()
    if not isinstance(options, MaskOptions):
        raise TypeError(f"options must be MaskOptions(...), got {options!r}")
    return options


def check_name(argument: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} must be one of {list(allowed)}, got {value!r}{closest(value, allowed)}")


class ScoreMask(nn.Module):
    """Parametrisation of :mod:`torch.nn.utils.parametrize` that multiplies a tensor with a mask of trained scores.

    A value is kept with the probability ``sigmoid(score)``. Masks are drawn from torch's own generator, as those of
    dropout are, each time the parameter is read; within :func:`torch.nn.utils.parametrize.cached` once.
    :func:`mask_module` attaches it. Assigning to a masked parameter sets the values under the mask.

    Source: B. Isik et al.: Sparse Random Networks for Communication-Efficient Federated Learning, 2023
    (arXiv 2209.15328).

    Args:
        scores: Initial scores, of the shape, dtype and device of the tensor to mask.
        options: Mode and estimator.

    Raises:
        TypeError: If scores are not a floating tensor.
    """

    def __init__(self, scores: Tensor, options: MaskOptions | None = None) -> None:
        super().__init__()
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
            raise TypeError(f"scores must be a floating tensor, got {got}")
        self.options = check_options(options)
        self.scores = nn.Parameter(scores.detach().clone())

    @property
    def mode(self) -> MaskMode:
        """Return the mode of now: that of training or of evaluation."""
        return self.options.training if self.training else self.options.evaluation

    def probabilities(self) -> Tensor:
        """Return the probability that each value is kept, of the shape of the scores; differentiable."""
        return self.scores.sigmoid()

    def mask(self, mode: MaskMode | None = None) -> Tensor:
        """Return a mask of the shape of the scores; gradients pass.

        Args:
            mode: Default is the mode of now.

        Raises:
            ValueError: For an unknown mode.
        """
        if mode is None:
            mode = self.mode
        else:
            check_name("mode", mode, MODES)
        return soft_mask(self.probabilities(), mode, self.options.estimator)

    def decisions(self) -> Tensor:
        """Return which values the threshold keeps: a bool tensor of the shape of the scores."""
        return self.probabilities().detach() > 0.5

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor times the mask, of its dtype."""
        return masked(x, self.scores, self.mode, self.options.estimator)

    def right_inverse(self, x: Tensor) -> Tensor:
        """Return what lies under the mask when ``x`` is assigned: ``x`` itself."""
        return x

    def extra_repr(self) -> str:
        """Return shape and options for ``print``."""
        o = self.options
        return f"{tuple(self.scores.shape)}, estimator={o.estimator}, training={o.training}, evaluation={o.evaluation}"


def mask_module(
    module: nn.Module,
    names: Sequence[str] | None = None,
    options: MaskOptions | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Put masks of trained scores on a module's own parameters, in place.

    Any module will do that reads them as attributes: ``mask_module(nn.Embedding(5, 3))``. The scores of ``weight`` are
    then ``parametrizations.weight.0.scores`` and the values under the mask ``parametrizations.weight.original`` in
    ``module.state_dict()``. The parametrised module keeps its class as a base.

    Args:
        module: The module; parameters of its children are left alone.
        names: Which parameters. Default are ``weight`` and ``bias``, as far as there are such. A name whose parameter
            is ``None`` (``bias=False``) is passed over.
        options: Modes, estimator and initial scores.
        generator: Draws the initial scores; default is torch's own.

    Returns:
        The module itself.

    Raises:
        TypeError: If ``module`` is no module, ``names`` is a string, or a parameter is not floating point.
        ValueError: If there is nothing of that name, it is masked already, or it is not initialised yet.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a module, got {module!r}")
    if isinstance(names, str):
        raise TypeError(f"names must be a sequence of names, got the string {names!r}: say names=({names!r},)")
    options = check_options(options)
    present = _own_parameters(module)
    if names is None:
        names = [n for n in ("weight", "bias") if n in present or isinstance(getattr(module, n, None), Tensor)]
        if not names:
            raise ValueError(
                f"names: {type(module).__name__} has neither weight nor bias; name parameters of it, which are "
                f"{list(present)}"
            )
    chosen = {}
    for name in names:
        if name not in present:
            if isinstance(getattr(module, name, None), Tensor):
                raise ValueError(
                    f"names: {name} of {type(module).__name__} is no parameter but computed or a buffer; mask what it "
                    f"is computed from, or use a parametrisation of torch.nn.utils.parametrizations"
                )
            raise ValueError(
                f"names: {type(module).__name__} has no parameter {name!r}{closest(name, present)}; it has "
                f"{list(present)}"
            )
        if (parameter := present[name]) is not None:
            _check_maskable(module, name, parameter)
            chosen[name] = parameter
    # All that can be refused comes before the first change.
    if chosen and parametrize.is_parametrized(module):
        own_class(module)
    for name, parameter in chosen.items():
        mask = ScoreMask(_initial_scores(parameter, options, generator), options).train(module.training)
        # What is left out by unsafe is a trial evaluation, which would draw random numbers.
        parametrize.register_parametrization(module, name, mask, unsafe=True)
        if options.freeze:
            for original in _originals(module, name):
                original.requires_grad_(False)
    return module


def _own_parameters(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the module's own parameters, parametrised ones too, those that are ``None`` included."""
    own: dict[str, Tensor | None] = dict(module._parameters)
    if parametrize.is_parametrized(module):
        # The values, since what lies under a parametrisation may have another shape.
        with torch.no_grad():
            own |= {name: getattr(module, name) for name in parametrizations_of(module)}
    return own


def parametrizations_of(module: nn.Module) -> dict[str, parametrize.ParametrizationList]:
    """Return what computes the parametrised parameters of a module, by their names."""
    if not parametrize.is_parametrized(module):
        return {}
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    return dict(lists.items())  # type: ignore[arg-type]


def own_class(module: nn.Module) -> None:
    """Give a parametrised module a class of its own: copies share theirs, whose properties are about to change."""
    shared = type(module)
    content = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, content)


def _originals(module: nn.Module, name: str) -> list[Tensor]:
    """Return the tensors under the parametrisations of a parameter: mostly one."""
    return [p for p in parametrizations_of(module)[name]._parameters.values() if p is not None]


def _check_maskable(module: nn.Module, name: str, parameter: Tensor) -> None:
    kind = type(module).__name__
    if is_lazy(parameter):
        raise ValueError(f"module: {name} of {kind} is not initialised yet; run a batch through it first")
    if not parameter.is_floating_point():
        raise TypeError(f"names: {name} of {kind} is not floating point but {parameter.dtype}, and cannot be masked")
    if masks_of(module, name):
        raise ValueError(f"module: {name} of {kind} is masked already")


def _initial_scores(parameter: Tensor, options: MaskOptions, generator: torch.Generator | None) -> Tensor:
    """Draw normal scores where the generator is, and bring them to the parameter."""
    device = parameter.device if generator is None else generator.device
    scores = torch.randn(parameter.shape, dtype=parameter.dtype, device=device, generator=generator)
    return scores.mul_(options.std).add_(options.mean).to(parameter.device)


def masks_of(module: nn.Module, name: str) -> list[ScoreMask]:
    """Return the masks on a parameter of a module."""
    if not parametrize.is_parametrized(module, name):
        return []
    return [p for p in parametrizations_of(module)[name] if isinstance(p, ScoreMask)]


def masked_names(module: nn.Module) -> list[str]:
    """Return the names of the module's own parameters that are masked."""
    return [name for name in parametrizations_of(module) if masks_of(module, name)]


def is_masked_module(module: nn.Module) -> bool:
    """Return whether parameters of the module itself, not of its children, are masked."""
    return bool(masked_names(module))


def named_masks(model: nn.Module) -> Iterator[tuple[str, ScoreMask]]:
    """Yield the path and the :class:`ScoreMask` of all masks in a model; ``path + ".scores"`` is in its state dict."""
    for name, module in model.named_modules():
        if isinstance(module, ScoreMask):
            yield name, module


def set_evaluation(model: nn.Module, evaluation: MaskMode) -> None:
    """Say what all masks of a model do in evaluation.

    Args:
        model: A model with masks.
        evaluation: ``"sample"``, ``"threshold"`` or ``"expected"``, see :class:`MaskOptions`.

    Raises:
        ValueError: For an unknown mode, or if the model has no masks.
    """
    check_name("evaluation", evaluation, MODES)
    for mask in all_masks(model).values():
        mask.options = replace(mask.options, evaluation=evaluation)


def all_masks(model: nn.Module) -> dict[str, ScoreMask]:
    """Return all masks of a model by path; an error if there are none."""
    masks = dict(named_masks(model))
    if not masks:
        raise ValueError("model has no masks; make a masked one with convert_to_masked_model or mask_module")
    return masks


def kept_share(model: nn.Module) -> float:
    """Return the share of masked values that the threshold keeps, from 0 to 1.

    Raises:
        ValueError: If the model has no masks.
    """
    decisions = [mask.decisions() for mask in all_masks(model).values()]
    n = sum(d.numel() for d in decisions)
    return sum(int(d.sum()) for d in decisions) / n if n else 1.0
