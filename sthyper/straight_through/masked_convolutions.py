"""Convolutions with masked weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn.common_types import _size_1_t, _size_2_t, _size_3_t

from sthyper.straight_through._masked_base import MaskedLayer, check_zeros
from sthyper.straight_through.masks import MaskOptions

__all__ = [
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedConv3d",
    "MaskedConvTranspose1d",
    "MaskedConvTranspose2d",
    "MaskedConvTranspose3d",
]

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Device = torch.device | str | int


class MaskedConv1d(MaskedLayer, nn.Conv1d):
    """:class:`torch.nn.Conv1d` with masks of trained scores on frozen weights.

    Args:
        in_channels: As in the plain layer, and so on up to ``dtype``.
        options: Modes, estimator and initial scores of the masks.
        generator: Draws the initial scores; default is torch's own.
    """

    plain = nn.Conv1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_1_t,
        stride: _size_1_t = 1,
        padding: str | _size_1_t = 0,
        dilation: _size_1_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        *,
        options: MaskOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        nn.Conv1d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._put_masks(options, generator)


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    """:class:`torch.nn.Conv2d` with masks of trained scores on frozen weights.

    Args:
        in_channels: As in the plain layer, and so on up to ``dtype``.
        options: Modes, estimator and initial scores of the masks.
        generator: Draws the initial scores; default is torch's own.
    """

    plain = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: str | _size_2_t = 0,
        dilation: _size_2_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        *,
        options: MaskOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        nn.Conv2d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._put_masks(options, generator)


class MaskedConv3d(MaskedLayer, nn.Conv3d):
    """:class:`torch.nn.Conv3d` with masks of trained scores on frozen weights.

    Args:
        in_channels: As in the plain layer, and so on up to ``dtype``.
        options: Modes, estimator and initial scores of the masks.
        generator: Draws the initial scores; default is torch's own.
    """

    plain = nn.Conv3d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_3_t,
        stride: _size_3_t = 1,
        padding: str | _size_3_t = 0,
        dilation: _size_3_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        *,
        options: MaskOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        nn.Conv3d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._put_masks(options, generator)


class MaskedConvTranspose1d(MaskedLayer, nn.ConvTranspose1d):
    """:class:`torch.nn.ConvTranspose1d` with masks of trained scores on frozen weights.

    Args:
        in_channels: As in the plain layer, and so on up to ``dtype``.
        padding_mode: Only ``"zeros"``, as in the plain layer.
        options: Modes, estimator and initial scores of the masks.
        generator: Draws the initial scores; default is torch's own.

    Raises:
        ValueError: For another padding mode.
    """

    plain = nn.ConvTranspose1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_1_t,
        stride: _size_1_t = 1,
        padding: _size_1_t = 0,
        output_padding: _size_1_t = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: _size_1_t = 1,
        padding_mode: PaddingMode = "zeros",
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        *,
        options: MaskOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_zeros(padding_mode)
        nn.ConvTranspose1d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self._put_masks(options, generator)


class MaskedConvTranspose2d(MaskedLayer, nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` with masks of trained scores on frozen weights.

    Args:
        in_channels: As in the plain layer, and so on up to ``dtype``.
        padding_mode: Only ``"zeros"``, as in the plain layer.
        options: Modes, estimator and initial scores of the masks.
        generator: Draws the initial scores; default is torch's own.

    Raises:
        ValueError: For another padding mode.
    """

    plain = nn.ConvTranspose2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: _size_2_t = 0,
        output_padding: _size_2_t = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: _size_2_t = 1,
        padding_mode: PaddingMode = "zeros",
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        *,
        options: MaskOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_zeros(padding_mode)
        nn.ConvTranspose2d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self._put_masks(options, generator)


class MaskedConvTranspose3d(MaskedLayer, nn.ConvTranspose3d):
    """:class:`torch.nn.ConvTranspose3d` with masks of trained scores on frozen weights.

    Args:
        in_channels: As in the plain layer, and so on up to ``dtype``.
        padding_mode: Only ``"zeros"``, as in the plain layer.
        options: Modes, estimator and initial scores of the masks.
        generator: Draws the initial scores; default is torch's own.

    Raises:
        ValueError: For another padding mode.
    """

    plain = nn.ConvTranspose3d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_3_t,
        stride: _size_3_t = 1,
        padding: _size_3_t = 0,
        output_padding: _size_3_t = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: _size_3_t = 1,
        padding_mode: PaddingMode = "zeros",
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        *,
        options: MaskOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_zeros(padding_mode)
        nn.ConvTranspose3d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self._put_masks(options, generator)
