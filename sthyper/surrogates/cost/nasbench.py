"""Cost model for the cells of NAS-Bench-201."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from sthyper.errors import closest
from sthyper.surrogates.cost.linear import LinearCostModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NASBench201LinearCostModel"]

_NUM_EDGES = 6


class NASBench201LinearCostModel(LinearCostModel):
    """Cost of training a NAS-Bench-201 network, from the operations of its cell.

    The cell is node1 = x0(node0), node2 = x1(node0) + x2(node1), node3 = x3(node0) + x4(node1) + x5(node2). An
    operation on a node that nothing reaches counts as ``NONE``.

    c0 is constant. The features of c1 are 1; the number of average poolings; the cost of the convolutions, one of
    3x3 for nine of 1x1 (or, with ``conv_separate_features``, the numbers of both); and with ``count_sum`` the number
    of point-wise sums. They are scaled to be about 1 on average over random cells.

    Args:
        config_keys: Names of x0, ..., x5 in a configuration.
        map_config_values: Maps their values to :class:`NASBench201LinearCostModel.Op`.
        conv_separate_features: See above.
        count_sum: See above.
        alphas: See :class:`LinearCostModel`.

    Raises:
        ValueError: If there are not six different names, an operation is unknown, or a configuration lacks a name
            or has a value that is not mapped.

    References:
        Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", ICLR 2020
    """

    class Op(IntEnum):
        """Operations of an edge."""

        SKIP_CONNECT = 0
        NONE = 1
        NOR_CONV_1x1 = 2
        NOR_CONV_3x3 = 3
        AVG_POOL_3x3 = 4

    def __init__(
        self,
        config_keys: Sequence[str],
        map_config_values: Mapping[Any, int],
        conv_separate_features: bool,
        count_sum: bool,
        alphas: Sequence[float] | None = None,
    ) -> None:
        super().__init__(alphas)
        if isinstance(config_keys, str) or len(config_keys) != _NUM_EDGES or len(set(config_keys)) != _NUM_EDGES:
            raise ValueError(f"config_keys must hold the {_NUM_EDGES} different names of x0, ..., x5: {config_keys!r}")
        self.config_keys = tuple(config_keys)
        self.map_config_values = {}
        for value, operation in map_config_values.items():
            try:
                self.map_config_values[value] = self.Op(operation)
            except ValueError:
                raise ValueError(
                    f"map_config_values[{value!r}] must be one of {[int(op) for op in self.Op]}, got {operation!r}"
                ) from None
        self.conv_separate_features = bool(conv_separate_features)
        self.count_sum = bool(count_sum)

    def feature_matrices(self, configs: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        Op = self.Op
        x = np.array([self._operations(c) for c in configs], dtype=np.int64).reshape(-1, _NUM_EDGES)
        x[x[:, 0] == Op.NONE, 2] = Op.NONE
        x[x[:, 0] == Op.NONE, 4] = Op.NONE
        x[(x[:, 1] == Op.NONE) & (x[:, 2] == Op.NONE), 5] = Op.NONE
        num_avg, num_1x1, num_3x3 = (
            (x == op).sum(axis=1).astype(np.float64) for op in (Op.AVG_POOL_3x3, Op.NOR_CONV_1x1, Op.NOR_CONV_3x3)
        )
        ones = np.ones(len(x))
        # Each operation has the probability 1/5 on each of six edges.
        columns = [ones, num_avg * 5 / 6]
        if self.conv_separate_features:
            columns += [num_1x1 * 5 / 6, num_3x3 * 5 / 6]
        else:
            columns += [(num_1x1 + 9 * num_3x3) / 12]
        if self.count_sum:
            used = x != Op.NONE
            num_sums = sum(np.maximum(used[:, into].sum(axis=1) - 1, 0) for into in ([1, 2], [3, 4, 5]))
            columns += [num_sums * 25 / 76]
        return ones[:, None], np.stack(columns, axis=1)

    def _operations(self, config: Mapping[str, Any]) -> list[int]:
        operations = []
        for key in self.config_keys:
            if key not in config:
                raise ValueError(f"config_keys: there is no {key!r} among {sorted(config)!r}{closest(key, config)}")
            value = config[key]
            if value not in self.map_config_values:
                raise ValueError(
                    f"map_config_values has no {value!r}, the value of {key!r}{closest(value, self.map_config_values)}"
                )
            operations.append(int(self.map_config_values[value]))
        return operations
