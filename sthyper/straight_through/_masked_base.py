"""What all masked layers have in common."""

from __future__ import annotations

import copy
import inspect
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from sthyper.straight_through.masks import MaskOptions, is_masked_module, mask_module, masks_of

__all__ = ["MaskedLayer", "become_masked", "check_zeros"]


class MaskedLayer:
    """A plain layer with masks of trained scores (:class:`~sthyper.straight_through.ScoreMask`) on frozen weights.

    The masks are parametrisations; the class adds only how such a layer is made and where its scores are. A layer
    without weight or bias has no scores there.

    Args:
        *args: Those of the plain layer, also by name, device and dtype included.
        options: Modes, estimator and initial scores of the masks.
        generator: Draws the initial scores; default is torch's own.

    Raises:
        TypeError: For arguments that the plain layer does not take.
        ValueError: For those that it refuses, and a transposed convolution that pads with other values than zeros.
    """

    plain: ClassVar[type[nn.Module]]
    """The layer without masks."""

    def __init_subclass__(cls) -> None:
        # What help() and editors show.
        plain = inspect.signature(cls.plain)
        own = [p for p in inspect.signature(MaskedLayer.__init__).parameters.values() if p.kind == p.KEYWORD_ONLY]
        cls.__signature__ = plain.replace(parameters=[*plain.parameters.values(), *own])  # type: ignore[attr-defined]

    def __init__(
        self, *args: Any, options: MaskOptions | None = None, generator: torch.Generator | None = None, **plain: Any
    ) -> None:
        if issubclass(self.plain, _ConvTransposeNd):
            given = inspect.signature(self.plain).bind(*args, **plain).arguments
            check_zeros(given.get("padding_mode", "zeros"))
        super().__init__(*args, **plain)
        self._put_masks(options, generator)

    @classmethod
    def from_pretrained(
        cls, module: nn.Module, options: MaskOptions | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Return a masked copy of a plain layer: its weights, buffers, hooks, device, dtype and mode.

        Args:
            module: A layer of class ``cls.plain``; it is not changed.
            options: Modes, estimator and initial scores of the masks.
            generator: Draws the initial scores; default is torch's own.

        Raises:
            TypeError: If the layer is of another class.
            ValueError: If it is masked already, or its weights are not initialised yet.
        """
        if type(module) is not cls.plain:
            if isinstance(module, nn.Module) and is_masked_module(module):
                raise ValueError(f"module is masked already: {type(module).__name__}")
            raise TypeError(
                f"module must be a {cls.plain.__name__}, got {type(module).__name__}; for others and subclasses there "
                "is mask_module"
            )
        layer = copy.deepcopy(module)
        become_masked(layer, cls, options, generator)
        return layer  # type: ignore[return-value]

    @property
    def weight_scores(self) -> nn.Parameter | None:
        """Return the scores of the weight, ``None`` for a layer without one."""
        return _scores(self, "weight")

    @property
    def bias_scores(self) -> nn.Parameter | None:
        """Return the scores of the bias, ``None`` for a layer without one."""
        return _scores(self, "bias")

    def _put_masks(self, options: MaskOptions | None, generator: torch.Generator | None) -> None:
        assert isinstance(self, nn.Module)
        if isinstance(self, _ConvTransposeNd):
            check_zeros(self.padding_mode)
        mask_module(self, options=options, generator=generator)


def check_zeros(padding_mode: str) -> None:
    """Raise if a transposed convolution is to pad with other values than zeros."""
    if padding_mode != "zeros":
        raise ValueError(f"padding_mode must be 'zeros' for a transposed convolution, got {padding_mode!r}")


def become_masked(
    layer: nn.Module, masked: type[MaskedLayer], options: MaskOptions | None, generator: torch.Generator | None
) -> None:
    """Make a plain layer a masked one, in place; if it cannot be masked it stays plain."""
    layer.__class__ = masked  # type: ignore[assignment]
    try:
        masked._put_masks(layer, options, generator)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        layer.__class__ = masked.plain
        raise


def _scores(layer: MaskedLayer, name: str) -> nn.Parameter | None:
    assert isinstance(layer, nn.Module)
    masks = masks_of(layer, name)
    return masks[0].scores if masks else None
