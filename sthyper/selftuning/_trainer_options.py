"""Options and records of the self-tuning trainer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sthyper.selftuning.steps import Update, check_update

__all__ = ["EpochRecord", "NonmonotonicDecay", "SelfTunerOptions", "SelfTuningResult"]

_RESPONSE_LR = 0.003
_RESPONSE_PART = 0.25

StoppedBy = Literal["epochs", "progress", "patience", "learning rate", "report", "interrupt", "divergence"]


@dataclass(frozen=True)
class NonmonotonicDecay:
    """Lowers the learning rates of weights and responses when the validation loss is no better than it was.

    That is where it is above the best one of all epochs but the last ``window`` (MacKay et al. 2019, arXiv 1903.03088,
    as in its code).

    Args:
        factor: What learning rates are multiplied by.
        window: Number of last epochs that do not count.
        min_lr: Training ends when the learning rate of the weights is below.

    Raises:
        ValueError: If a number is out of range.
    """

    factor: float = 0.1
    window: int = 60
    min_lr: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must be between 0 and 1, got {self.factor!r}")
        _check_count("window", self.window, 0)
        if not 0 <= self.min_lr < math.inf:
            raise ValueError(f"min_lr must be a finite number >= 0, got {self.min_lr!r}")


@dataclass(frozen=True)
class SelfTunerOptions:
    """How a :class:`SelfTuner` trains.

    Args:
        tune: ``False`` trains the plain network, without perturbations, with hyperparameters that stay.
        update: Update of kind ``"delta"``, see :func:`delta_stn_step`. Default is ``"linearised"``; for kind ``"stn"``
            there is ``"joint"`` only.
        train_steps: Training steps of one cycle. Default is 3, in long runs 4.
        hyper_steps: Hyper steps that follow them. 0 trains under perturbation without tuning, as a control.
        warm_up_epochs: Epochs without hyper steps at the beginning; they count. Default is a tenth of the epochs of the
            first ``fit`` or of its ``progress``, at least one epoch; in long runs, where at least 1600 training steps
            follow then, a quarter: early in training all regularisation hurts, and what is tuned then is wrong at the
            end. In the first half of that quarter responses that are updated apart are left alone, so that training
            costs what it costs for the plain network.
        weight_lr: Learning rate of the default optimiser of the weights, SGD.
        momentum: Its momentum.
        response_lr: Learning rate of the default optimiser of the responses, Adam. Default is .003.
        hyper_lr: Learning rate, at the beginning, of the default optimiser of the hyperparameters, Adam with the
            coefficients .9 and .99.
        hyper_lr_end: Part of it, and of that of the scales, that is left at the end of the first ``fit``, to which both
            fall linearly: first they must get where they are going, then settle. 1 keeps them.
        scale_lr: Learning rate of the default optimiser of the scales, Adam. Default is ``hyper_lr``.
        tune_scales: Whether scales are tuned too.
        entropy_weight: Weight of the entropy of the perturbations, which keeps tuned scales large.
        bound: Unconstrained numbers stay within this distance from the middle; ``None`` for no bound.
        scale_bounds: Smallest and largest tuned scale; ``None`` for none.
        rest: Part of a run, after the warm-up, at whose end the hyperparameters rest: there are neither hyper steps nor
            response updates apart, so that training goes on at the cost of the plain network (where one pass trains
            weights and responses, it goes on as it is, without hyper steps). 0 tunes to the end. Without effect on
            epochs that are not those of a ``fit``.
        response_part: Part of the examples of a batch (at least 32 of them, of up to 64 all) on which the responses are
            updated by ``"linearised"`` and ``"nonlinear"``, others each time. Their gradient is for a few
            hyperparameters, and a quarter of the examples gives as good ones at a quarter of the cost; that is the
            default. Batches whose tensors do not all have their examples on one axis are taken whole.
        response_every: After ``response_warm_up``, the responses are updated in one of so many training steps by
            ``"linearised"`` and ``"nonlinear"``; the others are as cheap as those of the plain network. Default is 2,
            in long runs 4.
        response_warm_up: Training steps in which the responses are updated each time when they begin: they must be
            learned before they can be followed. Default is 1000, in long runs 500.
        groups: In how many groups a batch is cut where perturbed examples have weights of their own. Default is what
            ``self_tune`` chose. The linearised update has a perturbation for each example.
        max_norm: Gradients of each optimiser of weights and responses are scaled down to this norm.
        patience: Training ends after so many epochs without a new best validation loss; ``None``: never.
        decay: Lowering of learning rates.
        restore_best: Whether ``fit`` ends with the model and the hyperparameters of the best epoch.

    Raises:
        ValueError: If a number is out of range, an option unknown, or one has no effect.
    """

    tune: bool = True
    update: Update | None = None
    train_steps: int | None = None
    hyper_steps: int = 1
    warm_up_epochs: int | None = None
    weight_lr: float = 0.01
    momentum: float = 0.9
    response_lr: float | None = None
    hyper_lr: float = 0.03
    hyper_lr_end: float = 0.3
    scale_lr: float | None = None
    tune_scales: bool = False
    entropy_weight: float = 0.0
    bound: float | None = 4.0
    scale_bounds: tuple[float, float] | None = (0.1, 2.0)
    rest: float = 0.0
    response_part: float | None = None
    response_every: int | None = None
    response_warm_up: int | None = None
    groups: int | None = None
    max_norm: float | None = None
    patience: int | None = None
    decay: NonmonotonicDecay | None = None
    restore_best: bool = True

    def __post_init__(self) -> None:
        if self.update is not None:
            check_update(self.update)
        _check_count("hyper_steps", self.hyper_steps, 0)
        for name in ("train_steps", "warm_up_epochs", "patience", "groups", "response_every", "response_warm_up"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name), 0 if "warm_up" in name else 1)
        for name in ("weight_lr", "response_lr", "hyper_lr", "scale_lr", "bound", "max_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if not 0 < self.hyper_lr_end <= 1:
            raise ValueError(f"hyper_lr_end must be larger than 0 and at most 1, got {self.hyper_lr_end!r}")
        if not 0 <= self.rest < 1:
            raise ValueError(f"rest must be at least 0 and below 1, got {self.rest!r}")
        if self.rest and not (self.tune and self.hyper_steps):
            raise ValueError("rest has no effect without hyper steps")
        if self.response_part is not None and not 0 < self.response_part <= 1:
            raise ValueError(f"response_part must be larger than 0 and at most 1, got {self.response_part!r}")
        if self.update == "joint":
            for name in ("response_part", "response_every", "response_warm_up"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} has no effect with update='joint', which has one pass for all")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be from 0 to below 1, got {self.momentum!r}")
        if self.scale_bounds is not None and not 0 < self.scale_bounds[0] <= self.scale_bounds[1]:
            raise ValueError(f"scale_bounds must be positive, the smaller one first, got {self.scale_bounds!r}")
        if not math.isfinite(self.entropy_weight):
            raise ValueError(f"entropy_weight must be a finite number, got {self.entropy_weight!r}")
        if not self.tune_scales and (self.entropy_weight or self.scale_lr is not None):
            name = "entropy_weight" if self.entropy_weight else "scale_lr"
            raise ValueError(f"{name} has no effect without tune_scales=True")
        if self.decay is not None and not isinstance(self.decay, NonmonotonicDecay):
            raise TypeError(f"decay must be a NonmonotonicDecay or None, got {self.decay!r}")

    @property
    def lr_of_responses(self) -> float:
        """Learning rate of the default optimiser of the responses."""
        return _RESPONSE_LR if self.response_lr is None else self.response_lr

    @property
    def part_of_responses(self) -> float:
        """Part of the examples of a batch on which the responses are updated apart."""
        return _RESPONSE_PART if self.response_part is None else self.response_part


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a run.

    Args:
        epoch: Its number, from 1; 0 is the evaluation before training.
        step: Training steps so far.
        hyper_steps: Hyper steps so far.
        train_loss: Mean of the training losses of the epoch, NaN before training.
        val_loss: Validation loss of the plain network at the centre, after the epoch.
        metrics: Metrics of the validation data by name.
        values: Hyperparameters by name, after the epoch.
        scales: Standard deviations of their perturbations.
        lr: Learning rate of the weights during the epoch.
    """

    epoch: int
    step: int
    hyper_steps: int
    train_loss: float
    val_loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    lr: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class SelfTuningResult:
    """What a run came to.

    Args:
        best_val_loss: Lowest validation loss of all epochs.
        best_epoch: Its epoch.
        values: Hyperparameters after that epoch.
        final_values: Hyperparameters after the last epoch.
        history: All epochs.
        stopped_by: What ended the run.
        skipped: Hyper steps that were skipped, since hypergradients were not finite.
        idle: Hyperparameters that were at rest at some time, since perturbing them made no difference.
    """

    best_val_loss: float
    best_epoch: int
    values: dict[str, Any]
    final_values: dict[str, Any]
    history: tuple[EpochRecord, ...]
    stopped_by: StoppedBy
    skipped: int
    idle: tuple[str, ...]


def _check_count(name: str, value: Any, smallest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {value}")
