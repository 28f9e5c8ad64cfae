"""Why a configuration was suggested."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["SuggestionReason"]


@dataclass(frozen=True)
class SuggestionReason:
    """Why a configuration was suggested.

    Args:
        trial_id: The trial.
        kind: ``"initial"`` (one of ``points_to_evaluate``, or of the random phase), ``"model"`` or ``"random"`` (the
            model could not be used).
        text: Further explanation, for people.
        num_observations: Number of observations that the model saw.
        num_pending: Number of pending evaluations.
        incumbent: What was to be improved on, in units of the metric.
        acquisition: Value of the acquisition function.
        mean: Predicted mean, in units of the metric; the median where targets are transformed.
        std: Half the distance, in units of the metric, of the predictions one deviation above and below it.
        origin: Which part of the search found it: ``"global"``, ``"local"``, ``"gradient"`` or ``"discrete"``.
        seconds: Time that the suggestion took.
        feasibility: Predicted probability that all constraints hold; ``None`` without constraints.
    """

    trial_id: int
    kind: str
    text: str = ""
    num_observations: int = 0
    num_pending: int = 0
    incumbent: float | None = None
    acquisition: float | None = None
    mean: float | None = None
    std: float | None = None
    origin: str | None = None
    seconds: float = field(default=0.0, compare=False)
    feasibility: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != ""}

    def __str__(self) -> str:
        """Return one line for the log."""
        if self.kind != "model":
            return f"{self.kind}{f' ({self.text})' if self.text else ''}"
        parts = [
            f"model of {self.num_observations} observations"
            + (f", {self.num_pending} pending" if self.num_pending else "")
        ]
        if self.incumbent is not None:
            parts.append(f"incumbent {self.incumbent:.6g}")
        if self.mean is not None and self.std is not None:
            parts.append(f"predicted {self.mean:.6g} +- {self.std:.3g}")
        if self.acquisition is not None:
            parts.append(f"acquisition {self.acquisition:.4g}")
        if self.feasibility is not None:
            parts.append(f"feasible with probability {self.feasibility:.3g}")
        if self.origin is not None:
            parts.append(f"found by the {self.origin} search")
        if self.text:
            parts.append(self.text)
        return "; ".join(parts)
