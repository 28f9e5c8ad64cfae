"""Augmentation of batches of images on any device, with a strength for each image.

The operations work on whole batches where the model is, so that data loaders may have any number of workers: they
deliver plain images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sthyper.errors import closest
from sthyper.selftuning._colour import COLOUR_OPERATIONS, adjust_colour, colour_jitter
from sthyper.selftuning._cutout import cut_boxes, cutout
from sthyper.selftuning._geometry import Interpolation, affine_transform, random_affine, random_flip
from sthyper.selftuning._strength import Strength, check_images
from sthyper.selftuning.defaults import AUGMENTATIONS
from sthyper.selftuning.hyperparameters import Hyperparameters

__all__ = [
    "Augmentation",
    "adjust_colour",
    "affine_transform",
    "augment",
    "colour_jitter",
    "cut_boxes",
    "cutout",
    "random_affine",
    "random_flip",
    "strengths",
    "two_views",
]

# In the order of the arguments of random_affine.
_AFFINE = ("degrees", "translate", "scale", "shear")


def strengths(hyperparameters: Hyperparameters) -> dict[str, Tensor]:
    """Return the strengths of augmentations among hyperparameters, as the current context has them.

    Args:
        hyperparameters: Those whose names are in :data:`~sthyper.selftuning.defaults.AUGMENTATIONS` count.

    Returns:
        Strengths by name: one for each image (``B``) while they are perturbed, else 0-d; detached.
    """
    return {name: hyperparameters[name].detach() for name in AUGMENTATIONS if name in hyperparameters}


@dataclass(frozen=True)
class Augmentation:
    """Flip, affine transformation, colour jitter, normalisation and cutout, in this order.

    An object holds what is not tuned; the strengths come with the images. Validation and test images get
    :meth:`normalised` only.

    Example:
        >>> images = torch.rand(4, 3, 32, 32)
        >>> augmentation = Augmentation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        >>> augmentation(images, {"hue": 0.1, "cutout_length": torch.tensor([0.0, 4.0, 8.0, 16.0])}).shape
        torch.Size([4, 3, 32, 32])

    Args:
        flip: Probability that an image is mirrored left to right.
        mean: Mean of each channel, subtracted after the colours; ``None`` for no normalisation.
        std: Standard deviation of each channel.
        interpolation: ``"bilinear"`` or ``"nearest"``, of the affine transformation.
        fill: What an affine transformation puts where the image ends, before the normalisation.
        cutout_fill: Value of cutout holes, after the normalisation.
        max_holes: Largest number of cutout holes.

    Raises:
        ValueError: If a value is not allowed, or only one of ``mean`` and ``std`` is given.
    """

    flip: float = 0.5
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Interpolation = "bilinear"
    fill: float = 0.0
    cutout_fill: float = 0.0
    max_holes: int = 16

    def __post_init__(self) -> None:
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"flip must be a probability from 0 to 1, got {self.flip!r}")
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean and std belong together, got mean={self.mean!r}, std={self.std!r}")
        std = self.std or ()
        if len(self.mean or ()) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"std must hold a positive number for each of mean={self.mean!r}, got {self.std!r}")
        if self.interpolation not in ("bilinear", "nearest"):
            raise ValueError(
                f"interpolation must be 'bilinear' or 'nearest', got {self.interpolation!r}"
                f"{closest(self.interpolation, ('bilinear', 'nearest'))}"
            )
        if not isinstance(self.max_holes, int) or self.max_holes < 1:
            raise ValueError(f"max_holes must be a whole number of at least 1, got {self.max_holes!r}")

    def __call__(
        self,
        images: Tensor,
        strengths: Mapping[str, Strength] | Hyperparameters | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return a view of images that is made at random.

        Args:
            images: ``B x C x H x W`` with values in [0, 1]; colours need three channels.
            strengths: Strengths by name: numbers, 0-d, or one for each image (``B``); see
                :data:`~sthyper.selftuning.defaults.AUGMENTATIONS`. Those that are missing are 0; with a
                ``cutout_length`` alone there is one hole. Or :class:`Hyperparameters`, see :func:`strengths`.
            generator: Draws; default is torch's own.

        Returns:
            Images of the same shape and type, without gradients.

        Raises:
            TypeError: If ``images`` or strengths do not hold real numbers.
            ValueError: If shapes do not fit, or a name is unknown.
        """
        given = _checked(strengths)
        check_images(images)
        return self._view(self._flipped(images, generator), given, generator)

    def two_views(
        self,
        images: Tensor,
        centre: Mapping[str, Strength],
        perturbed: Mapping[str, Strength],
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return two views of the same mirrored images, for the two updates of a Delta-STN step.

        Args:
            images: See :meth:`__call__`.
            centre: Strengths of the first view, for the update of the general weights.
            perturbed: Strengths of the second view, for the update of the responses.
            generator: Draws; default is torch's own. The views draw one after the other.

        Returns:
            Two batches of images.

        Raises:
            TypeError: See :meth:`__call__`.
            ValueError: See :meth:`__call__`.
        """
        first, second = _checked(centre), _checked(perturbed)
        check_images(images)
        mirrored = self._flipped(images, generator)
        return self._view(mirrored, first, generator), self._view(mirrored, second, generator)

    @torch.no_grad()
    def normalised(self, images: Tensor) -> Tensor:
        """Return images as validation and test see them.

        Args:
            images: ``B x C x H x W``.

        Raises:
            TypeError: If ``images`` does not hold real numbers.
            ValueError: If the number of channels is not that of ``mean``.
        """
        check_images(images)
        if self.mean is None or self.std is None:
            return images.detach()
        if images.shape[1] != len(self.mean):
            raise ValueError(f"mean has {len(self.mean)} numbers for images of shape {tuple(images.shape)}")
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).reshape(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).reshape(1, -1, 1, 1)
        return (images.detach() - mean).div_(std)

    def _flipped(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return random_flip(images, self.flip, generator=generator) if self.flip else images.detach()

    def _view(self, images: Tensor, given: dict[str, Strength], generator: torch.Generator | None) -> Tensor:
        affine = [given.get(name) for name in _AFFINE]
        if any(strength is not None for strength in affine):
            images = random_affine(
                images, *affine, interpolation=self.interpolation, fill=self.fill, generator=generator
            )
        colours = [given.get(name) for name in COLOUR_OPERATIONS]
        if any(strength is not None for strength in colours):
            images = colour_jitter(images, *colours, generator=generator)
        images = self.normalised(images)
        if "cutout_length" in given:
            holes, length = given.get("cutout_holes", 1.0), given["cutout_length"]
            images = cutout(images, holes, length, max_holes=self.max_holes, fill=self.cutout_fill, generator=generator)
        return images


def _checked(given: Mapping[str, Strength] | Hyperparameters | None) -> dict[str, Strength]:
    if isinstance(given, Hyperparameters):
        return dict(strengths(given))
    result = dict(given or {})
    for name in result:
        if name not in AUGMENTATIONS:
            raise ValueError(
                f"there is no augmentation {name!r}{closest(name, AUGMENTATIONS)}; known are {list(AUGMENTATIONS)}"
            )
    if "cutout_holes" in result and "cutout_length" not in result:
        raise ValueError("cutout_holes needs a cutout_length, too")
    return result


def augment(
    images: Tensor,
    strengths: Mapping[str, Strength] | Hyperparameters | None = None,
    *,
    options: Augmentation | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return a view of images that is made at random: :class:`Augmentation` as a function.

    Args:
        images: ``B x C x H x W`` with values in [0, 1].
        strengths: See :meth:`Augmentation.__call__`.
        options: What is not tuned; default is ``Augmentation()``.
        generator: Draws; default is torch's own.

    Raises:
        TypeError: See :meth:`Augmentation.__call__`.
        ValueError: See :meth:`Augmentation.__call__`.
    """
    return (options or Augmentation())(images, strengths, generator=generator)


def two_views(
    images: Tensor,
    centre: Mapping[str, Strength],
    perturbed: Mapping[str, Strength],
    *,
    options: Augmentation | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return two views of the same mirrored images: :meth:`Augmentation.two_views` as a function.

    Args:
        images: ``B x C x H x W`` with values in [0, 1].
        centre: Strengths of the first view.
        perturbed: Strengths of the second view.
        options: What is not tuned; default is ``Augmentation()``.
        generator: Draws; default is torch's own.

    Raises:
        TypeError: See :meth:`Augmentation.__call__`.
        ValueError: See :meth:`Augmentation.__call__`.
    """
    return (options or Augmentation()).two_views(images, centre, perturbed, generator=generator)
