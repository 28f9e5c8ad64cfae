"""Acquisition functions as BoTorch modules, and their optimisation over configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sthyper._lazy import lazy_names

if TYPE_CHECKING:
    from sthyper.acquisition.base import (
        MeanStdAcquisition,
        log_expected_improvement,
        log_normal_cdf,
        per_batch,
    )
    from sthyper.acquisition.constrained import (
        ConstrainedAcquisition,
        ModelledConstraint,
        log_feasibility,
    )
    from sthyper.acquisition.cost import (
        ExpectedImprovementPerCost,
    )
    from sthyper.acquisition.ei import (
        ExpectedImprovement,
        LogExpectedImprovement,
        ProbabilityOfImprovement,
    )
    from sthyper.acquisition.fantasies import (
        FantasisedModel,
        can_fantasise,
    )
    from sthyper.acquisition.lcb import (
        LowerConfidenceBound,
    )
    from sthyper.acquisition.monte_carlo import (
        JointExpectedImprovement,
        NoisyExpectedImprovement,
        SampledNoisyExpectedImprovement,
        seeded_sampler,
    )
    from sthyper.acquisition.optimize import (
        Candidate,
        OptimizerOptions,
        optimize_acquisition,
        rank_candidates,
    )
    from sthyper.acquisition.space import (
        MixedSpace,
    )
    from sthyper.acquisition.thompson import (
        IndependentThompsonSampling,
        ThompsonSampling,
    )

__all__ = [
    "Candidate",
    "ConstrainedAcquisition",
    "ExpectedImprovement",
    "ExpectedImprovementPerCost",
    "FantasisedModel",
    "IndependentThompsonSampling",
    "JointExpectedImprovement",
    "LogExpectedImprovement",
    "LowerConfidenceBound",
    "MeanStdAcquisition",
    "MixedSpace",
    "ModelledConstraint",
    "NoisyExpectedImprovement",
    "OptimizerOptions",
    "ProbabilityOfImprovement",
    "SampledNoisyExpectedImprovement",
    "ThompsonSampling",
    "can_fantasise",
    "log_expected_improvement",
    "log_feasibility",
    "log_normal_cdf",
    "optimize_acquisition",
    "per_batch",
    "rank_candidates",
    "seeded_sampler",
]

# Imported on first use: they bring torch.
_HOMES = {
    "Candidate": "optimize",
    "ConstrainedAcquisition": "constrained",
    "ExpectedImprovement": "ei",
    "ExpectedImprovementPerCost": "cost",
    "FantasisedModel": "fantasies",
    "IndependentThompsonSampling": "thompson",
    "JointExpectedImprovement": "monte_carlo",
    "LogExpectedImprovement": "ei",
    "LowerConfidenceBound": "lcb",
    "MeanStdAcquisition": "base",
    "MixedSpace": "space",
    "ModelledConstraint": "constrained",
    "NoisyExpectedImprovement": "monte_carlo",
    "OptimizerOptions": "optimize",
    "ProbabilityOfImprovement": "ei",
    "SampledNoisyExpectedImprovement": "monte_carlo",
    "ThompsonSampling": "thompson",
    "can_fantasise": "fantasies",
    "log_expected_improvement": "base",
    "log_feasibility": "constrained",
    "log_normal_cdf": "base",
    "optimize_acquisition": "optimize",
    "per_batch": "base",
    "rank_candidates": "optimize",
    "seeded_sampler": "monte_carlo",
}

__getattr__, __dir__ = lazy_names(globals(), _HOMES)
