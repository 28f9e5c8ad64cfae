"""Models of observed targets: Gaussian processes and others, with BoTorch posteriors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sthyper._lazy import lazy_names

if TYPE_CHECKING:
    from sthyper.surrogates.base import (
        Surrogate,
    )
    from sthyper.surrogates.bayesian_gp import (
        BayesianGaussianProcess,
    )
    from sthyper.surrogates.classifier import (
        ProbitClassifier,
        ProbitModel,
    )
    from sthyper.surrogates.cost import (
        BiasOnlyLinearCostModel,
        CostModel,
        CostObservation,
        CostSurrogate,
        CostValue,
        FixedLayersMLPCostModel,
        FixedResourceCost,
        GrowthData,
        LinearCostModel,
        MLPLinearCostModel,
        NASBench201LinearCostModel,
        NonLinearCostModel,
        ScikitLearnCostModel,
        UnivariateSplineCostModel,
    )
    from sthyper.surrogates.custom import (
        BoTorchSurrogate,
        CallableSurrogate,
        as_surrogate,
    )
    from sthyper.surrogates.data_cap import (
        cap_size,
    )
    from sthyper.surrogates.gp import (
        GaussianProcess,
        GPOptions,
    )
    from sthyper.surrogates.gp_model import (
        GPModel,
    )
    from sthyper.surrogates.inputs import (
        InputStructure,
    )
    from sthyper.surrogates.kernels import (
        KernelForm,
        RadialKernel,
    )
    from sthyper.surrogates.likelihood import (
        NegativeLogLikelihood,
    )
    from sthyper.surrogates.parameters import (
        PRESETS,
        ParameterLayout,
        ParameterSpec,
        Preset,
    )
    from sthyper.surrogates.priors import (
        Gamma,
        Horseshoe,
        LogNormal,
        Normal,
        Prior,
        Reciprocal,
        Uniform,
    )
    from sthyper.surrogates.refit import (
        AlwaysSkip,
        NeverSkip,
        RefitRule,
        SkipNoMaxResource,
        SkipPeriodically,
    )
    from sthyper.surrogates.sklearn import (
        SKLearnModel,
        SKLearnSurrogate,
    )
    from sthyper.surrogates.sklearn_estimators import (
        RegressorEstimator,
        SKLearnEstimator,
        SKLearnPredictor,
    )
    from sthyper.surrogates.slice_sampling import (
        SliceException,
        SliceSampler,
    )
    from sthyper.surrogates.transforms import (
        BoxCox,
        HalfLog,
        Identity,
        Standardize,
        TailLog,
        TargetTransform,
        target_transform,
    )
    from sthyper.surrogates.warping import (
        kumaraswamy,
    )

__all__ = [
    "PRESETS",
    "AlwaysSkip",
    "BayesianGaussianProcess",
    "BiasOnlyLinearCostModel",
    "BoTorchSurrogate",
    "BoxCox",
    "CallableSurrogate",
    "CostModel",
    "CostObservation",
    "CostSurrogate",
    "CostValue",
    "FixedLayersMLPCostModel",
    "FixedResourceCost",
    "GPModel",
    "GPOptions",
    "Gamma",
    "GaussianProcess",
    "GrowthData",
    "HalfLog",
    "Horseshoe",
    "Identity",
    "InputStructure",
    "KernelForm",
    "LinearCostModel",
    "LogNormal",
    "MLPLinearCostModel",
    "NASBench201LinearCostModel",
    "NegativeLogLikelihood",
    "NeverSkip",
    "NonLinearCostModel",
    "Normal",
    "ParameterLayout",
    "ParameterSpec",
    "Preset",
    "Prior",
    "ProbitClassifier",
    "ProbitModel",
    "RadialKernel",
    "Reciprocal",
    "RefitRule",
    "RegressorEstimator",
    "SKLearnEstimator",
    "SKLearnModel",
    "SKLearnPredictor",
    "SKLearnSurrogate",
    "ScikitLearnCostModel",
    "SkipNoMaxResource",
    "SkipPeriodically",
    "SliceException",
    "SliceSampler",
    "Standardize",
    "Surrogate",
    "TailLog",
    "TargetTransform",
    "Uniform",
    "UnivariateSplineCostModel",
    "as_surrogate",
    "cap_size",
    "kumaraswamy",
    "target_transform",
]

# Imported on first use: they bring torch.
_HOMES = {
    "PRESETS": "parameters",
    "AlwaysSkip": "refit",
    "BayesianGaussianProcess": "bayesian_gp",
    "BiasOnlyLinearCostModel": "cost",
    "BoTorchSurrogate": "custom",
    "BoxCox": "transforms",
    "CallableSurrogate": "custom",
    "CostModel": "cost",
    "CostObservation": "cost",
    "CostSurrogate": "cost",
    "CostValue": "cost",
    "FixedLayersMLPCostModel": "cost",
    "FixedResourceCost": "cost",
    "GPModel": "gp_model",
    "GPOptions": "gp",
    "Gamma": "priors",
    "GaussianProcess": "gp",
    "GrowthData": "cost",
    "HalfLog": "transforms",
    "Horseshoe": "priors",
    "Identity": "transforms",
    "InputStructure": "inputs",
    "KernelForm": "kernels",
    "LinearCostModel": "cost",
    "LogNormal": "priors",
    "MLPLinearCostModel": "cost",
    "NASBench201LinearCostModel": "cost",
    "NegativeLogLikelihood": "likelihood",
    "NeverSkip": "refit",
    "NonLinearCostModel": "cost",
    "Normal": "priors",
    "ParameterLayout": "parameters",
    "ParameterSpec": "parameters",
    "Preset": "parameters",
    "Prior": "priors",
    "ProbitClassifier": "classifier",
    "ProbitModel": "classifier",
    "RadialKernel": "kernels",
    "Reciprocal": "priors",
    "RefitRule": "refit",
    "RegressorEstimator": "sklearn_estimators",
    "SKLearnEstimator": "sklearn_estimators",
    "SKLearnModel": "sklearn",
    "SKLearnPredictor": "sklearn_estimators",
    "SKLearnSurrogate": "sklearn",
    "ScikitLearnCostModel": "cost",
    "SkipNoMaxResource": "refit",
    "SkipPeriodically": "refit",
    "SliceException": "slice_sampling",
    "SliceSampler": "slice_sampling",
    "Standardize": "transforms",
    "Surrogate": "base",
    "TailLog": "transforms",
    "TargetTransform": "transforms",
    "Uniform": "priors",
    "UnivariateSplineCostModel": "cost",
    "as_surrogate": "custom",
    "cap_size": "data_cap",
    "kumaraswamy": "warping",
    "target_transform": "transforms",
}

__getattr__, __dir__ = lazy_names(globals(), _HOMES)
