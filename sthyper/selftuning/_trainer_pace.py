"""How far a self-tuning run is: its warm-up, and the rest of its hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from sthyper.selftuning._trainer_options import SelfTunerOptions

__all__ = ["Pace", "Progress", "Rhythm", "rhythm_of"]

Progress = Callable[[], float]

_LEAST_TUNED = 1600


@dataclass(frozen=True)
class Rhythm:
    """How often responses that are updated apart are so, and hyper steps made.

    Args:
        responds_at: Part of a run at which responses begin to be updated, if no warm-up is given.
        tunes_at: Part of a run at which hyper steps begin, if no warm-up is given.
        train_steps: Training steps of a cycle.
        response_warm_up: Steps in which responses are updated each time when that begins.
        response_every: Then they are in one of so many steps.
    """

    responds_at: float
    tunes_at: float
    train_steps: int
    response_warm_up: int
    response_every: int

    def responds(self, step: int) -> bool:
        """Return whether the responses are updated in a training step.

        Args:
            step: Its number, from 0 at the first one in which they are.
        """
        return step < self.response_warm_up or (step - self.response_warm_up) % self.response_every == 0


_SHORT = Rhythm(0.0, 0.1, 3, 1000, 2)
_LONG = Rhythm(0.125, 0.25, 4, 500, 4)


def rhythm_of(options: SelfTunerOptions, steps: float) -> Rhythm:
    """Return the rhythm of a run: what the options say, and for the rest that of short or long runs.

    Early in training all regularisation hurts, and what is tuned then is wrong at the end: long runs wait for a quarter
    of their length. And they have time for fewer updates. But hyperparameters need some 500 hyper steps to get where
    they are going; a run is long if at least 1600 training steps would follow.

    Args:
        options: How the run is trained.
        steps: Training steps of the whole run.
    """
    usual = _LONG if (1.0 - _LONG.tunes_at) * steps >= _LEAST_TUNED else _SHORT
    names = ("train_steps", "response_warm_up", "response_every")
    return replace(usual, **{name: value for name in names if (value := getattr(options, name)) is not None})


@dataclass
class _Plan:
    """What a state holds.

    Args:
        epochs: Epochs of the first ``fit``.
        warm_up: Epochs without hyper steps.
        steps: Training steps of the whole run, as far as is known when the warm-up is over.
        responds_from: Training step from which on the responses are updated; ``None`` until then.
        tuned_from: Training step at which the warm-up was over; ``None`` until then.
        part: Progress when this epoch began.
        warm_part: Progress when the warm-up was over.
        resting: Whether hyperparameters rest in this epoch.
    """

    epochs: int | None
    warm_up: int
    steps: float = 0.0
    responds_from: int | None = None
    tuned_from: int | None = None
    part: float = 0.0
    warm_part: float = 0.0
    resting: bool = False


class Pace:
    """Knows what part of a run is over, by epochs or by a progress of any kind.

    Args:
        options: How the run is trained.
    """

    def __init__(self, options: SelfTunerOptions) -> None:
        self.options = options
        self._rest = options.rest
        self._plan = _Plan(None, 1 if options.warm_up_epochs is None else options.warm_up_epochs)
        self._progress: Progress | None = None
        self._length: int | None = None
        self._steps_of_epoch: float | None = None

    @property
    def tuned_from(self) -> int | None:
        """Training step at which the warm-up was over; ``None`` until then."""
        return self._plan.tuned_from

    @property
    def rhythm(self) -> Rhythm:
        """How often responses are updated and hyper steps made."""
        return rhythm_of(self.options, self._plan.steps)

    @property
    def resting(self) -> bool:
        """Whether hyperparameters rest in this epoch."""
        return self._plan.resting

    def responds(self, step: int) -> bool:
        """Return whether a training step is one of those that update the responses, where these are updated apart.

        Args:
            step: Its number, from 0.
        """
        first = self._plan.responds_from
        return first is not None and not self.resting and self.rhythm.responds(step - first)

    def begin_fit(self, epochs: int | None, progress: Progress | None, steps: int | None) -> None:
        """Note the length of a run; what depends on a number of epochs is chosen once.

        Args:
            epochs: Number of epochs in total.
            progress: Returns what part of the run is over.
            steps: Training steps of an epoch, if that is known.
        """
        self._length, self._progress, self._steps_of_epoch = epochs, progress, steps
        if progress is None and self._plan.epochs is None:
            self._plan.epochs = epochs

    def is_over(self) -> bool:
        """Whether the progress is complete."""
        return self._ask() >= 1.0

    def begin_epoch(self, epoch: int, step: int) -> None:
        """See whether responses are to be learned, whether the warm-up is over, and whether hyperparameters rest.

        Args:
            epoch: Number of finished epochs.
            step: Number of training steps.
        """
        plan = self._plan
        plan.part = self._ask()
        by_default = self.options.warm_up_epochs is None
        if plan.tuned_from is None:
            plan.steps = self._estimated_steps(epoch, step)
            if by_default and plan.epochs is not None:
                plan.warm_up = max(1, round(self.rhythm.tunes_at * plan.epochs))
        learn, warm = True, epoch >= plan.warm_up
        if by_default and self._progress is not None:
            # Responses are learned before they are followed.
            learn = plan.part >= self.rhythm.responds_at
            warm = plan.responds_from is not None and plan.part >= self.rhythm.tunes_at
        elif by_default and plan.epochs is not None:
            learn = epoch >= int(self.rhythm.responds_at * plan.epochs)
        if plan.responds_from is None and learn:
            plan.responds_from = step
        if plan.tuned_from is None and warm:
            plan.tuned_from, plan.warm_part = step, plan.part
        done = self._tuned_part(epoch, self._length or plan.epochs)
        plan.resting = self._rest > 0 and done is not None and done >= 1.0 - self._rest

    def begin_step(self, step: int) -> None:
        """See whether responses are to be learned, in runs by progress; there an epoch may be a large part of the run.

        Args:
            step: Number of training steps.
        """
        waiting = self._plan.responds_from is None and self._progress is not None
        if waiting and self._ask() >= self.rhythm.responds_at:
            self._plan.responds_from = step

    def _estimated_steps(self, epoch: int, step: int) -> float:
        if self._progress is not None:
            return step / self._plan.part if self._plan.part else math.inf
        each = step / epoch if epoch else self._steps_of_epoch or 0
        return each * (self._plan.epochs or 0)

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
