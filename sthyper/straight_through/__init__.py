"""Discrete choices that are tuned by gradient: straight-through estimators, gates, masked layers, pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sthyper.straight_through.bias import (
        ESTIMATORS,
        PROBLEMS,
        BiasProblem,
        EstimatorBias,
        Surrogate,
        estimator_bias,
        exact_gradient,
    )
    from sthyper.straight_through.choices import (
        Choice,
        ChoiceEstimator,
    )
    from sthyper.straight_through.family import (
        st_argmax,
        st_ceil,
        st_floor,
        st_one_hot,
        st_round,
        st_sign,
        st_top_k,
        straight_through,
    )
    from sthyper.straight_through.gates import (
        Gate,
        GateEstimator,
        reinforce_gates,
    )
    from sthyper.straight_through.mask_aggregation import (
        AggregationMethod,
        MaskAggregator,
        load_probabilities,
        sample_masks,
        sigmoid_inverse,
    )
    from sthyper.straight_through.masked_layers import (
        MaskedBatchNorm1d,
        MaskedBatchNorm2d,
        MaskedBatchNorm3d,
        MaskedConv1d,
        MaskedConv2d,
        MaskedConv3d,
        MaskedConvTranspose1d,
        MaskedConvTranspose2d,
        MaskedConvTranspose3d,
        MaskedLayer,
        MaskedLayerNorm,
        MaskedLinear,
        convert_to_masked_model,
        export_masked,
    )
    from sthyper.straight_through.masks import (
        MaskMode,
        MaskOptions,
        ScoreMask,
        is_masked_module,
        kept_share,
        mask_module,
        named_masks,
        set_evaluation,
    )
    from sthyper.straight_through.order import (
        decode_and_pseudo_sort_results,
        ordered_sum,
        pseudo_sort_scoring_function,
        select_zeroeth_element,
    )
    from sthyper.straight_through.penalties import (
        penalty,
    )
    from sthyper.straight_through.pruning import (
        Folded,
        PrunedModel,
        prune,
    )
    from sthyper.straight_through.relaxed import (
        gumbel_softmax,
        hard_concrete,
        hard_concrete_estimate,
        hard_concrete_l0,
        hard_concrete_mean,
    )
    from sthyper.straight_through.sampler import (
        BernoulliEstimator,
        BernoulliIdentity,
        BernoulliSample,
        bernoulli_sample,
    )
    from sthyper.straight_through.schedules import (
        ConstantTemperature,
        CosineTemperature,
        ExponentialTemperature,
        LinearTemperature,
        TemperatureSchedule,
        temperature_schedule,
    )
    from sthyper.straight_through.unbiased import (
        Baseline,
        MovingBaseline,
        arm,
        bernoulli_log_prob,
        reinforce,
    )

__all__ = [
    "ESTIMATORS",
    "PROBLEMS",
    "AggregationMethod",
    "Baseline",
    "BernoulliEstimator",
    "BernoulliIdentity",
    "BernoulliSample",
    "BiasProblem",
    "Choice",
    "ChoiceEstimator",
    "ConstantTemperature",
    "CosineTemperature",
    "EstimatorBias",
    "ExponentialTemperature",
    "Folded",
    "Gate",
    "GateEstimator",
    "LinearTemperature",
    "MaskAggregator",
    "MaskMode",
    "MaskOptions",
    "MaskedBatchNorm1d",
    "MaskedBatchNorm2d",
    "MaskedBatchNorm3d",
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedConv3d",
    "MaskedConvTranspose1d",
    "MaskedConvTranspose2d",
    "MaskedConvTranspose3d",
    "MaskedLayer",
    "MaskedLayerNorm",
    "MaskedLinear",
    "MovingBaseline",
    "PrunedModel",
    "ScoreMask",
    "Surrogate",
    "TemperatureSchedule",
    "arm",
    "bernoulli_log_prob",
    "bernoulli_sample",
    "convert_to_masked_model",
    "decode_and_pseudo_sort_results",
    "estimator_bias",
    "exact_gradient",
    "export_masked",
    "gumbel_softmax",
    "hard_concrete",
    "hard_concrete_estimate",
    "hard_concrete_l0",
    "hard_concrete_mean",
    "is_masked_module",
    "kept_share",
    "load_probabilities",
    "mask_module",
    "named_masks",
    "ordered_sum",
    "penalty",
    "prune",
    "pseudo_sort_scoring_function",
    "reinforce",
    "reinforce_gates",
    "sample_masks",
    "select_zeroeth_element",
    "set_evaluation",
    "sigmoid_inverse",
    "st_argmax",
    "st_ceil",
    "st_floor",
    "st_one_hot",
    "st_round",
    "st_sign",
    "st_top_k",
    "straight_through",
    "temperature_schedule",
]

# Imported on first use: they bring torch.
_HOMES = {
    "ESTIMATORS": "bias",
    "PROBLEMS": "bias",
    "AggregationMethod": "mask_aggregation",
    "Baseline": "unbiased",
    "BernoulliEstimator": "sampler",
    "BernoulliIdentity": "sampler",
    "BernoulliSample": "sampler",
    "BiasProblem": "bias",
    "Choice": "choices",
    "ChoiceEstimator": "choices",
    "ConstantTemperature": "schedules",
    "CosineTemperature": "schedules",
    "EstimatorBias": "bias",
    "ExponentialTemperature": "schedules",
    "Folded": "pruning",
    "Gate": "gates",
    "GateEstimator": "gates",
    "LinearTemperature": "schedules",
    "MaskAggregator": "mask_aggregation",
    "MaskMode": "masks",
    "MaskOptions": "masks",
    "MaskedBatchNorm1d": "masked_layers",
    "MaskedBatchNorm2d": "masked_layers",
    "MaskedBatchNorm3d": "masked_layers",
    "MaskedConv1d": "masked_layers",
    "MaskedConv2d": "masked_layers",
    "MaskedConv3d": "masked_layers",
    "MaskedConvTranspose1d": "masked_layers",
    "MaskedConvTranspose2d": "masked_layers",
    "MaskedConvTranspose3d": "masked_layers",
    "MaskedLayer": "masked_layers",
    "MaskedLayerNorm": "masked_layers",
    "MaskedLinear": "masked_layers",
    "MovingBaseline": "unbiased",
    "PrunedModel": "pruning",
    "ScoreMask": "masks",
    "Surrogate": "bias",
    "TemperatureSchedule": "schedules",
    "arm": "unbiased",
    "bernoulli_log_prob": "unbiased",
    "bernoulli_sample": "sampler",
    "convert_to_masked_model": "masked_layers",
    "decode_and_pseudo_sort_results": "order",
    "estimator_bias": "bias",
    "exact_gradient": "bias",
    "export_masked": "masked_layers",
    "gumbel_softmax": "relaxed",
    "hard_concrete": "relaxed",
    "hard_concrete_estimate": "relaxed",
    "hard_concrete_l0": "relaxed",
    "hard_concrete_mean": "relaxed",
    "is_masked_module": "masks",
    "kept_share": "masks",
    "load_probabilities": "mask_aggregation",
    "mask_module": "masks",
    "named_masks": "masks",
    "ordered_sum": "order",
    "penalty": "penalties",
    "prune": "pruning",
    "pseudo_sort_scoring_function": "order",
    "reinforce": "unbiased",
    "reinforce_gates": "gates",
    "sample_masks": "mask_aggregation",
    "select_zeroeth_element": "order",
    "set_evaluation": "masks",
    "sigmoid_inverse": "mask_aggregation",
    "st_argmax": "family",
    "st_ceil": "family",
    "st_floor": "family",
    "st_one_hot": "family",
    "st_round": "family",
    "st_sign": "family",
    "st_top_k": "family",
    "straight_through": "family",
    "temperature_schedule": "schedules",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
