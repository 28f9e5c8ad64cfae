"""Configurations as points of the unit cube, in batches.

Each hyperparameter takes one column, a ``choice`` of more than two categories one column a category:

=====================  =====================================================================
domain                 coordinate u
=====================  =====================================================================
floats                 (s(x) - s(lower)) / (s(upper) - s(lower)), s linear, log or -log(1-x)
integers               the same on [lower - 1/2, upper + 1/2]; decoding rounds
choice, 2 categories   1/4 and 3/4
choice, K > 2          one-hot; decoding takes the largest
ordinal, finrange      (position + 1/2) / K
nearest-neighbour      (s(x) - a) / (b - a); the interval [a, b] reaches half a mean gap
ordinal                beyond the ends; decoding takes the nearest
=====================  =====================================================================

A single possible value has the coordinate 0 (a single category 1). Every point of the cube can be decoded, and
decoding a uniform point is a draw of the space (truncated normal domains excepted: they are encoded linearly).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sthyper._space.domains import Domain
from sthyper._space.samplers import Quantized, as_generator
from sthyper.config_space import check_config_space, config_to_match_string, non_constant_hyperparameter_keys
from sthyper.errors import ConfigSpaceError, closest

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from sthyper._space.samplers import RandomState

__all__ = ["SpaceEncoder", "make_hyperparameter_ranges"]


class SpaceEncoder:
    """Maps configurations to the unit cube of dimension d and back.

    Columns are ordered by name; ``prefix_keys`` come first, ``name_last_pos`` last. torch is imported by the methods
    that return tensors only.

    Args:
        config_space: Configuration space; constants are left out.
        name_last_pos: Hyperparameter whose columns come last (often the resource).
        value_for_last_pos: Value at which that hyperparameter is pinned: random configurations have it, the bounds of
            its columns are its coordinates, and configurations that lack it are encoded with it.
        active_config_space: Sub-ranges for random configurations and bounds; coordinates stay those of the whole
            ranges. Each domain must have the class, value type and scale of the whole one and be a part of it; ordered
            values a contiguous one.
        prefix_keys: Hyperparameters whose columns come first, in this order.

    Raises:
        ConfigSpaceError: If a name is unknown or twice, or an active domain or the pinned value does not fit.
    """

    def __init__(
        self,
        config_space: Mapping[str, Any],
        name_last_pos: str | None = None,
        value_for_last_pos: Any = None,
        active_config_space: Mapping[str, Any] | None = None,
        prefix_keys: Sequence[str] | None = None,
    ) -> None:
        from sthyper._space.columns import make_column

        check_config_space(config_space)
        self.config_space = dict(config_space)
        self.name_last_pos = name_last_pos
        self.prefix_keys = tuple(prefix_keys or ())
        self._names = non_constant_hyperparameter_keys(config_space)
        self._internal_keys = self._order_keys()
        self.active_config_space = self._check_active(active_config_space or {})
        self.value_for_last_pos = self._check_pinned(value_for_last_pos)
        self._columns = [make_column(self.config_space[k]) for k in self._internal_keys]
        self._slices: dict[str, slice] = {}
        start = 0
        for key, column in zip(self._internal_keys, self._columns, strict=True):
            self._slices[key] = slice(start, start + column.width)
            start += column.width
        self._dim = start
        self._bounds = self._make_bounds()

    # ---- construction --------------------------------------------------------------------------------

    def _order_keys(self) -> list[str]:
        for argument, names in (("prefix_keys", self.prefix_keys), ("name_last_pos", (self.name_last_pos,))):
            for name in names:
                if name is not None and name not in self._names:
                    raise ConfigSpaceError(
                        f"{argument}: {name!r} is no domain of the configuration space{closest(name, self._names)}"
                    )
        special = [*self.prefix_keys, *([] if self.name_last_pos is None else [self.name_last_pos])]
        if len(set(special)) < len(special):
            raise ConfigSpaceError(f"prefix_keys and name_last_pos must name different domains, got {special!r}")
        middle = sorted(k for k in self._names if k not in special)
        return [*self.prefix_keys, *middle, *special[len(self.prefix_keys) :]]

    def _check_active(self, active: Mapping[str, Any]) -> dict[str, Domain]:
        result: dict[str, Domain] = {}
        for name, domain in active.items():
            if not isinstance(domain, Domain) and not isinstance(self.config_space.get(name), Domain):
                continue  # a constant stays one
            full = self.config_space.get(name)
            if not isinstance(full, Domain):
                raise ConfigSpaceError(
                    f"active_config_space: {name!r} is no domain of the configuration space{closest(name, self._names)}"
                )
            same = isinstance(domain, Domain) and (
                type(domain) is type(full)
                and domain.value_type is full.value_type
                and domain.scaling == full.scaling
                and _quantum(domain) == _quantum(full)
            )
            if not same:
                raise ConfigSpaceError(
                    f"active_config_space: the domain of {name!r} must have the class, value type and scale of "
                    f"{full!r}, got {domain!r}"
                )
            result[name] = domain
        return result

    def _check_pinned(self, value: Any) -> Any:
        if value is None:
            return None
        if self.name_last_pos is None:
            raise ConfigSpaceError(f"value_for_last_pos={value!r} needs name_last_pos")
        try:
            return self.config_space[self.name_last_pos].coerce(value)
        except ConfigSpaceError as error:
            raise ConfigSpaceError(f"value_for_last_pos: {error}") from None

    def _make_bounds(self) -> list[tuple[float, float]]:
        bounds: list[tuple[float, float]] = []
        for key, column in zip(self._internal_keys, self._columns, strict=True):
            if key == self.name_last_pos and self.value_for_last_pos is not None:
                code = column.encode([self.value_for_last_pos]).reshape(-1).tolist()
                bounds.extend((c, c) for c in code)
                continue
            try:
                bounds.extend(zip(*column.bounds(self.active_config_space.get(key)), strict=True))
            except ConfigSpaceError as error:
                raise ConfigSpaceError(f"active_config_space: {key!r}: {error}") from None
        return bounds

    # ---- description ---------------------------------------------------------------------------------

    @property
    def internal_keys(self) -> list[str]:
        """Names in the order of the columns."""
        return list(self._internal_keys)

    @property
    def config_space_for_sampling(self) -> dict[str, Any]:
        """The configuration space with the active domains in place of the whole ones."""
        return {**self.config_space, **self.active_config_space}

    @property
    def ndarray_size(self) -> int:
        """Dimension d of the cube."""
        return self._dim

    @property
    def slices(self) -> dict[str, slice]:
        """Columns of each hyperparameter."""
        return dict(self._slices)

    @property
    def encoded_ranges(self) -> dict[str, tuple[int, int]]:
        """First column and the one after the last of each hyperparameter."""
        return {k: (s.start, s.stop) for k, s in self._slices.items()}

    @property
    def bounds(self) -> torch.Tensor:
        """Lower and upper bounds of the columns, float64, shape (2, d); see ``active_config_space``."""
        import torch

        return torch.tensor(self._bounds, dtype=torch.float64).reshape(-1, 2).T.contiguous()

    def get_ndarray_bounds(self) -> list[tuple[float, float]]:
        """Return (lower, upper) for each column."""
        return list(self._bounds)

    def is_attribute_fixed(self) -> bool:
        """Whether the last hyperparameter is pinned at a value."""
        return self.name_last_pos is not None and self.value_for_last_pos is not None

    def __len__(self) -> int:
        return len(self._internal_keys)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SpaceEncoder):
            return NotImplemented
        return (
            self._internal_keys == other._internal_keys
            and all(self.config_space[k] == other.config_space[k] for k in self._internal_keys)
            and self.name_last_pos == other.name_last_pos
            and self.value_for_last_pos == other.value_for_last_pos
            and self.active_config_space == other.active_config_space
        )

    def __hash__(self) -> int:
        return hash(tuple(self._internal_keys))

    def __repr__(self) -> str:
        domains = ", ".join(f"{k}: {self.config_space[k]!r}" for k in self._internal_keys)
        return f"SpaceEncoder({{{domains}}}, dim={self._dim})"

    # ---- encoding ------------------------------------------------------------------------------------

    def encode(self, configs: Iterable[Mapping[str, Any]]) -> torch.Tensor:
        """Return the points of n configurations.

        Args:
            configs: Configurations; names that are no domains of the space are ignored.

        Returns:
            float64, shape (n, d), in the unit cube.

        Raises:
            ConfigSpaceError: If a configuration lacks a hyperparameter, or a value lies outside its domain.
        """
        import torch

        return torch.from_numpy(self.to_ndarray_matrix(configs))

    def decode(self, points: torch.Tensor | NDArray[np.float64] | Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """Return the configurations of n points.

        Args:
            points: Shape (n, d); coordinates are clipped to [0, 1].

        Returns:
            Configurations of the non-constant hyperparameters, plain Python values, names in the order of the space.

        Raises:
            ValueError: If the shape is wrong or a coordinate is NaN.
        """
        import numpy as np

        detach = getattr(points, "detach", None)
        array = np.asarray(points if detach is None else detach().cpu().numpy(), dtype=np.float64)
        if array.ndim != 2 or array.shape[1] != self._dim:
            raise ValueError(f"points must have the shape (n, {self._dim}), got {tuple(array.shape)}")
        if np.isnan(array).any():
            raise ValueError("points must not contain NaN")
        by_column = np.ascontiguousarray(np.clip(array, 0.0, 1.0).T)  # (d, n)
        values: dict[str, list[Any]] = {}
        for key, column in zip(self._internal_keys, self._columns, strict=True):
            rows = self._slices[key]
            values[key] = column.decode(by_column[rows.start] if column.width == 1 else by_column[rows].T)
        if not self._names:
            return [{} for _ in range(len(array))]
        names = self._names
        return [dict(zip(names, row, strict=True)) for row in zip(*(values[k] for k in names), strict=True)]

    def snap(self, points: torch.Tensor) -> torch.Tensor:
        """Return the points of the configurations that n points stand for, as ``encode(decode(points))`` does.

        Args:
            points: Shape (n, d); coordinates are clipped to [0, 1]. On any device.

        Returns:
            float64, shape (n, d), on the device of ``points``.
        """
        import numpy as np
        import torch

        array = np.clip(points.detach().cpu().numpy().astype(np.float64), 0.0, 1.0).T  # (d, n)
        result = np.empty_like(array)
        for key, column in zip(self._internal_keys, self._columns, strict=True):
            rows = self._slices[key]
            if column.width == 1:
                result[rows.start] = column.snap(array[rows.start])
            else:
                result[rows] = column.snap(np.ascontiguousarray(array[rows].T)).T
        return torch.from_numpy(np.ascontiguousarray(result.T)).to(points.device)

    def to_ndarray_matrix(self, configs: Iterable[Mapping[str, Any]]) -> NDArray[np.float64]:
        """Return the points of n configurations as an array of shape (n, d); see :meth:`encode`."""
        import numpy as np

        configs = configs if isinstance(configs, list) else list(configs)
        by_column = np.empty((self._dim, len(configs)))  # (d, n)
        for key, column in zip(self._internal_keys, self._columns, strict=True):
            try:
                block = column.encode(self._values(configs, key))
            except ConfigSpaceError as error:
                raise ConfigSpaceError(f"value of {key!r} cannot be encoded: {error}") from None
            rows = self._slices[key]
            by_column[rows] = block.T if column.width > 1 else block
        return np.ascontiguousarray(by_column.T)

    def _values(self, configs: list[Mapping[str, Any]], key: str) -> list[Any]:
        try:
            return [config[key] for config in configs]
        except KeyError:
            pass
        if key == self.name_last_pos and self.value_for_last_pos is not None:
            return [config.get(key, self.value_for_last_pos) for config in configs]
        number, config = next((i, c) for i, c in enumerate(configs) if key not in c)
        raise ConfigSpaceError(f"configuration {number} lacks it, it has {list(config)!r}")

    def to_ndarray(self, config: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return the point of one configuration, shape (d,); see :meth:`encode`."""
        return self.to_ndarray_matrix([config]).reshape(-1)

    def from_ndarray(self, enc_config: torch.Tensor | NDArray[np.float64] | Sequence[float]) -> dict[str, Any]:
        """Return the configuration of one point, shape (d,) or (1, d); see :meth:`decode`."""
        import numpy as np

        detach = getattr(enc_config, "detach", None)
        point = np.asarray(enc_config if detach is None else detach().cpu().numpy(), dtype=np.float64)
        return self.decode(point.reshape(1, -1))[0]

    # ---- random configurations -----------------------------------------------------------------------

    def random_config(self, random_state: RandomState = None) -> dict[str, Any]:
        """Draw a configuration from the active domains; see :meth:`random_configs`."""
        return self.random_configs(random_state, 1)[0]

    def random_configs(self, random_state: RandomState, num_configs: int) -> list[dict[str, Any]]:
        """Draw configurations from the active domains.

        The draws are those of ``num_configs`` calls of :func:`sthyper.config_space.sample_config` on the space; a
        pinned hyperparameter is not drawn.

        Args:
            random_state: A ``numpy.random.Generator`` or ``RandomState``, an int seed, or ``None`` for a fresh
                unseeded generator.
            num_configs: Number of configurations.
        """
        generator = as_generator(random_state)
        pinned = self.name_last_pos if self.is_attribute_fixed() else None
        drawn = [k for k in self._names if k != pinned]
        columns = generator.random((num_configs, len(drawn))).T.tolist()  # one list a name
        values = {}
        for key, us in zip(drawn, columns, strict=True):
            quantile = self.active_config_space.get(key, self.config_space[key]).quantile
            values[key] = [quantile(u) for u in us]
        if pinned is not None:
            values[pinned] = [self.value_for_last_pos] * num_configs
        return [{k: values[k][i] for k in self._names} for i in range(num_configs)]

    def filter_for_last_pos_value(self, configs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the configurations that have the pinned value; all of them if none is pinned."""
        if not self.is_attribute_fixed():
            return list(configs)
        assert self.name_last_pos is not None
        return [c for c in configs if c[self.name_last_pos] == self.value_for_last_pos]

    # ---- other forms ---------------------------------------------------------------------------------

    def _keys(self, keys: Sequence[str] | None, skip_last: bool) -> list[str]:
        names = list(self._internal_keys if keys is None else keys)
        return [k for k in names if k != self.name_last_pos] if skip_last else names

    def config_to_tuple(
        self, config: Mapping[str, Any], keys: Sequence[str] | None = None, skip_last: bool = False
    ) -> tuple[Any, ...]:
        """Return the values of a configuration.

        Args:
            config: The configuration.
            keys: Names to take; :attr:`internal_keys` if ``None``.
            skip_last: Whether to leave out ``name_last_pos``.
        """
        return tuple(config[k] for k in self._keys(keys, skip_last))

    def tuple_to_config(
        self, config_tpl: Sequence[Any], keys: Sequence[str] | None = None, skip_last: bool = False
    ) -> dict[str, Any]:
        """Return the configuration of which :meth:`config_to_tuple` made a tuple.

        Raises:
            ValueError: If the number of values is wrong.
        """
        names = self._keys(keys, skip_last)
        if len(names) != len(config_tpl):
            raise ValueError(f"config_tpl must hold the values of {names!r}, got {config_tpl!r}")
        return dict(zip(names, config_tpl, strict=True))

    def config_to_match_string(
        self, config: Mapping[str, Any], keys: Sequence[str] | None = None, skip_last: bool = False
    ) -> str:
        """Return a text that is equal for configurations that count as the same.

        Args:
            config: The configuration.
            keys: Names to take; :attr:`internal_keys` if ``None``.
            skip_last: Whether to leave out ``name_last_pos``, so that the resource does not matter.
        """
        return config_to_match_string(config, self.config_space, self._keys(keys, skip_last))


def _quantum(domain: Domain) -> float | None:
    return domain.sampler.q if isinstance(domain.sampler, Quantized) else None


def make_hyperparameter_ranges(
    config_space: Mapping[str, Any],
    name_last_pos: str | None = None,
    value_for_last_pos: Any = None,
    active_config_space: Mapping[str, Any] | None = None,
    prefix_keys: Sequence[str] | None = None,
) -> SpaceEncoder:
    """Return the :class:`SpaceEncoder` with these arguments."""
    return SpaceEncoder(config_space, name_last_pos, value_for_last_pos, active_config_space, prefix_keys)
