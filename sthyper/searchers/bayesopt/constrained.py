"""Options of constrained Bayesian optimisation with one mandatory constraint."""

from __future__ import annotations

from dataclasses import dataclass

from sthyper.searchers.bayesopt.constraints import OutcomeConstraint
from sthyper.searchers.bayesopt.options import BayesOptOptions

__all__ = ["ConstrainedBayesOptOptions"]


@dataclass(frozen=True)
class ConstrainedBayesOptOptions(BayesOptOptions):
    """``search_options`` of ``searcher="bayesopt_constrained"``: those of ``"bayesopt"``, and the constraint.

    Args:
        constraint_attr: Name of the metric whose values up to 0 are feasible; mandatory. Every report must have it.
            ``outcome_constraints`` may add further constraints.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If ``constraint_attr`` is missing, or another option is out of range.
    """

    constraint_attr: str | None = None

    def __post_init__(self) -> None:
        name = self.constraint_attr
        if name is None:
            raise ValueError(
                "constraint_attr is missing: search_options={'constraint_attr': ...} must name the reported metric "
                "whose values up to 0 are feasible"
            )
        if not isinstance(name, str) or not name:
            raise TypeError(f"constraint_attr must be the name of a reported metric, got {name!r}")
        super().__post_init__()

    @property
    def constraints(self) -> tuple[OutcomeConstraint, ...]:
        """The constraints on reported metrics."""
        assert self.constraint_attr is not None
        own = OutcomeConstraint(self.constraint_attr, "<=", 0.0)
        return (own, *(other for other in super().constraints if other != own))

    @property
    def required_metrics(self) -> tuple[str, ...]:
        """Metrics that every report must have, beside the one that is optimised."""
        assert self.constraint_attr is not None
        return (self.constraint_attr,)
