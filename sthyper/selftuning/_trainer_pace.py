"""How far a self-tuning run is: its warm-up, and the rest of its hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from sthyper.selftuning._trainer_options import SelfTunerOptions

__all__ = ["Pace", "Progress"]

Progress = Callable[[], float]

_TENTH = 10


@dataclass
class _Plan:
    """What a state holds.

    Args:
        epochs: Epochs of the first ``fit``.
        warm_up: Epochs without hyper steps.
        tuned_from: Training step at which they were over; ``None`` until then.
        part: Progress when this epoch began.
        warm_part: Progress when the warm-up was over.
        resting: Whether hyperparameters rest in this epoch.
    """

    epochs: int | None
    warm_up: int
    tuned_from: int | None = None
    part: float = 0.0
    warm_part: float = 0.0
    resting: bool = False


class Pace:
    """Knows what part of a run is over, by epochs or by a progress of any kind.

    Args:
        options: How the run is trained.
        continuous: Whether there are continuous hyperparameters.
    """

    def __init__(self, options: SelfTunerOptions, continuous: bool) -> None:
        self.options = options
        self._rest = options.part_at_rest(continuous)
        self._plan = _Plan(None, 1 if options.warm_up_epochs is None else options.warm_up_epochs)
        self._progress: Progress | None = None
        self._length: int | None = None

    @property
    def tuned_from(self) -> int | None:
        """Training step at which the warm-up was over; ``None`` until then."""
        return self._plan.tuned_from

    @property
    def resting(self) -> bool:
        """Whether hyperparameters rest in this epoch."""
        return self._plan.resting

    def begin_fit(self, epochs: int | None, progress: Progress | None) -> None:
        """Note the length of a run; what depends on a number of epochs is chosen once.

        Args:
            epochs: Number of epochs in total.
            progress: Returns what part of the run is over.
        """
        self._length, self._progress = epochs, progress
        plan = self._plan
        if epochs is None or progress is not None or plan.epochs is not None:
            return
        plan.epochs = epochs
        if self.options.warm_up_epochs is None:
            plan.warm_up = max(1, round(epochs / _TENTH))

    def is_over(self) -> bool:
        """Whether the progress is complete."""
        return self._ask() >= 1.0

    def begin_epoch(self, epoch: int, step: int) -> None:
        """See whether the warm-up is over, and whether hyperparameters rest.

        Args:
            epoch: Number of finished epochs.
            step: Number of training steps.
        """
        plan = self._plan
        plan.part = self._ask()
        warm = epoch >= plan.warm_up
        if self._progress is not None and self.options.warm_up_epochs is None:
            warm = epoch >= 1 and plan.part * _TENTH >= 1.0
        if plan.tuned_from is None and warm:
            plan.tuned_from, plan.warm_part = step, plan.part
        done = self._tuned_part(epoch, self._length or plan.epochs)
        late = done is not None and done >= 1.0 - self._rest
        plan.resting = self._rest > 0 and late and step >= self.options.least_tuned

    def tuned_part(self, epoch: int) -> float | None:
        """Return what part, at most 1, of what follows the warm-up is over; ``None`` if the length is not known.

        Args:
            epoch: Number of finished epochs.
        """
        done = self._tuned_part(epoch, self._plan.epochs)
        return None if done is None else min(done, 1.0)

    def _tuned_part(self, epoch: int, length: int | None) -> float | None:
        plan = self._plan
        if self._progress is not None:
            if plan.tuned_from is None or plan.warm_part >= 1.0:
                return 0.0
            return max(plan.part - plan.warm_part, 0.0) / (1.0 - plan.warm_part)
        if plan.epochs is None or length is None:
            return None
        return max(epoch - plan.warm_up, 0) / max(length - plan.warm_up, 1)

    def _ask(self) -> float:
        if self._progress is None:
            return 0.0
        part = float(self._progress())
        if math.isnan(part):
            raise ValueError("progress must return the part of the run that is done, a number in [0, 1], got nan")
        return min(max(part, 0.0), 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the plan."""
        return {f.name: getattr(self._plan, f.name) for f in fields(_Plan)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._plan = _Plan(**state)
