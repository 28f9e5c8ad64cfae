"""Monotone maps between the values of a numeric domain and the scale on which they are uniform."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LINEAR", "LOG", "REVERSE_LOG", "LinearScaling", "LogScaling", "ReverseLogScaling", "Scaling"]


class Scaling(ABC):
    """A strictly increasing map s and its inverse, for numbers and for arrays."""

    name: ClassVar[str]

    @abstractmethod
    def to_internal(self, value: float) -> float:
        """Return s(value)."""

    @abstractmethod
    def from_internal(self, value: float) -> float:
        """Return the inverse of s at ``value``."""

    @abstractmethod
    def array_to_internal(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return s elementwise, same shape."""

    @abstractmethod
    def array_from_internal(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the inverse of s elementwise, same shape."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self).__name__)


class LinearScaling(Scaling):
    """s(x) = x."""

    name = "linear"

    def to_internal(self, value: float) -> float:
        return float(value)

    def from_internal(self, value: float) -> float:
        return value

    def array_to_internal(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values

    def array_from_internal(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values


class LogScaling(Scaling):
    """s(x) = log(x), for x > 0."""

    name = "log"

    def to_internal(self, value: float) -> float:
        return math.log(value)

    def from_internal(self, value: float) -> float:
        return math.exp(value)

    def array_to_internal(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np

        return np.log(values)

    def array_from_internal(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np

        return np.exp(values)


class ReverseLogScaling(Scaling):
    """s(x) = -log(1 - x), for 0 <= x < 1: resolves values close to 1."""

    name = "reverse_log"

    def to_internal(self, value: float) -> float:
        return -math.log1p(-value)

    def from_internal(self, value: float) -> float:
        return -math.expm1(-value)

    def array_to_internal(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np

        return -np.log1p(-values)

    def array_from_internal(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np

        return -np.expm1(-values)


LINEAR = LinearScaling()
LOG = LogScaling()
REVERSE_LOG = ReverseLogScaling()
