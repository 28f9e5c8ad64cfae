"""Models of what an evaluation costs, for expected improvement per unit cost.

A cost model predicts c(x, r) = c0(x) + r c1(x) for a configuration x and a resource level r, from costs at any levels.
"""

from sthyper.surrogates.cost.base import CostModel, CostObservation, CostValue
from sthyper.surrogates.cost.estimator import CostSurrogate, FixedResourceCost
from sthyper.surrogates.cost.linear import (
    BiasOnlyLinearCostModel,
    FixedLayersMLPCostModel,
    LinearCostModel,
    MLPLinearCostModel,
)
from sthyper.surrogates.cost.nasbench import NASBench201LinearCostModel
from sthyper.surrogates.cost.nonlinear import GrowthData, NonLinearCostModel, ScikitLearnCostModel
from sthyper.surrogates.cost.spline import UnivariateSplineCostModel

__all__ = [
    "BiasOnlyLinearCostModel",
    "CostModel",
    "CostObservation",
    "CostSurrogate",
    "CostValue",
    "FixedLayersMLPCostModel",
    "FixedResourceCost",
    "GrowthData",
    "LinearCostModel",
    "MLPLinearCostModel",
    "NASBench201LinearCostModel",
    "NonLinearCostModel",
    "ScikitLearnCostModel",
    "UnivariateSplineCostModel",
]
