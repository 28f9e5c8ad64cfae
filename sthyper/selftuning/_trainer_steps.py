"""The single steps of a self-tuning trainer, and its evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sthyper.selftuning._batches import BatchStream, first_size, pair, part_of_batch, preserved_random_state, to_device
from sthyper.selftuning._gradients import apply_gradients, evaluating, gradients_of, parameters_of
from sthyper.selftuning._trainer_options import SelfTunerOptions
from sthyper.selftuning._trainer_pace import Pace
from sthyper.selftuning._trainer_parts import Optimizers
from sthyper.selftuning.controls import Control
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.schedule import Schedule
from sthyper.selftuning.steps import (
    Closure,
    Notices,
    PredictionLoss,
    TrainStepResult,
    centre_step,
    delta_stn_step,
    hyper_step,
    stn_step,
)

__all__ = ["Loss", "TrainLoss", "TrainerSteps", "Transform"]

Loss = Callable[[Any, Any], Tensor]
TrainLoss = Callable[[Any, Any, Hyperparameters], Tensor]
Transform = Callable[[Any, Any, Hyperparameters], tuple[Any, Any]]


class TrainerSteps(ABC):
    """What :class:`~sthyper.selftuning.SelfTuner` does with one batch, and how it evaluates; it sets the attributes."""

    options: SelfTunerOptions
    model: nn.Module
    hyperparameters: Hyperparameters
    optimizers: Optimizers
    loss: Loss
    train_loss: TrainLoss | None
    transform: Transform | None
    metrics: dict[str, Loss]
    control: Control | None
    schedule: Schedule
    notices: Notices
    device: torch.device
    epoch: int
    step: int
    hyper_steps: int
    _kind: str | None
    _groups: int | None
    _axis: int
    _val: BatchStream
    _losses: list[tuple[Tensor, int]]
    _pace: Pace

    def evaluate(self, loader: Iterable[Any] | None = None) -> float:
        """Return the mean loss over all examples of a loader, with the hyperparameters at their centre.

        The model is in evaluation mode; random generators are left as they are.

        Args:
            loader: The loader; default is that of the validation data.
        """
        return self.measure(loader)["loss"]

    def measure(self, loader: Iterable[Any] | None = None) -> dict[str, float]:
        """Return the mean loss, as ``"loss"``, and the mean of each metric; see :meth:`evaluate`.

        Args:
            loader: The loader; default is that of the validation data.

        Raises:
            ValueError: If it gives no batches.
        """
        loader = self._val.loader if loader is None else loader
        sums: dict[str, Tensor | float] = {}
        n = 0
        context = self.hyperparameters.centred() if self.options.tune else self.hyperparameters.off()
        with preserved_random_state(loader), evaluating(self.model), torch.no_grad(), context:
            for batch in loader:
                inputs, targets = pair(to_device(batch, self.device), "loader")
                size = first_size(inputs, self._axis)
                prediction = self.model(inputs)
                for name, function in {"loss": self.loss, **self.metrics}.items():
                    value = function(prediction, targets)
                    sums[name] = sums.get(name, 0.0) + torch.as_tensor(value).double().mean() * size
                n += size
        if not n:
            raise ValueError("loader gives no batches")
        return {name: float(total) / n for name, total in sums.items()}

    # ---- steps ---------------------------------------------------------------------------------------

    def _train_step(self, inputs: Any, targets: Any) -> None:
        h, options = self.hyperparameters, self.options
        self._pace.begin_step(self.step)

        def predict(inputs: Any = inputs, targets: Any = targets) -> tuple[Any, Any]:
            x, y = (inputs, targets) if self.transform is None else self.transform(inputs, targets, h)
            return self.model(x), y

        def criterion(predicted: tuple[Any, Any]) -> Tensor:
            if self.train_loss is None:
                return _mean(self.loss(*predicted))
            return _mean(self.train_loss(*predicted, h))

        closure = PredictionLoss(predict, criterion)
        size = first_size(inputs, self._axis)
        weights, responses = self.optimizers.weights, self.optimizers.responses
        if not options.tune:
            result = self._plain_step(closure)
        elif self._kind == "stn" or responses is None:
            both = [weights] if responses is None else [weights, responses]
            result = stn_step(closure, h, both, size, self._groups, max_norm=options.max_norm)
        else:
            update = options.update or "linearised"
            if update != "joint" and not self._pace.responds(self.step):
                result = centre_step(closure, h, weights, size, max_norm=options.max_norm)
            else:
                respond: Closure | None = None
                length: int | None = None
                if update != "joint":
                    part = options.part_of_responses
                    some, length = part_of_batch((inputs, targets), self._axis, size, part, self.step)
                    respond = PredictionLoss(partial(predict, *some), criterion)
                result = delta_stn_step(
                    closure,
                    h,
                    weights,
                    responses,
                    size,
                    update,
                    None if update == "linearised" else self._groups,
                    max_norm=options.max_norm,
                    response_closure=respond,
                    response_size=length,
                )
        self._losses.append((result.loss.double(), size))
        self.step += 1
        self.schedule.record(h, step=self.step, epoch=self.epoch + 1, train_loss=result.loss)
        self._call("train_step")

    def _plain_step(self, closure: PredictionLoss) -> TrainStepResult:
        if self.control is not None and self.control.by == "step":
            self.control.set(self.step)
        parameters = parameters_of(self.optimizers.weights)
        with self.hyperparameters.off():
            loss = closure()
        apply_gradients([self.optimizers.weights], parameters, gradients_of(loss, parameters), self.options.max_norm)
        return TrainStepResult(loss.detach())

    def _finish_cycle(self) -> None:
        """Do the hyper steps that are due."""
        tuned_from = self._pace.tuned_from
        if tuned_from is None or self._pace.resting or not self.options.tune:
            return
        due = self.options.hyper_steps * ((self.step - tuned_from) // self._pace.rhythm.train_steps)
        while self.hyper_steps < due:
            self._hyper_step(*pair(to_device(self._val.next(), self.device), "val_loader"))

    def _hyper_step(self, inputs: Any, targets: Any) -> None:
        options = self.options
        assert self.optimizers.hyper is not None
        with evaluating(self.model):
            result = hyper_step(
                lambda: _mean(self.loss(self.model(inputs), targets)),
                self.hyperparameters,
                self.optimizers.hyper,
                self.optimizers.scales,
                entropy_weight=options.entropy_weight,
                bound=options.bound,
                scale_bounds=options.scale_bounds,
                batch_size=first_size(inputs, self._axis),
                groups=self._groups,
            )
        self.hyper_steps += 1
        self.notices.hear(result, self.step)
        self.schedule.record(
            self.hyperparameters,
            step=self.step,
            epoch=self.epoch + 1,
            val_loss=result.loss,
            hypergradients=result.gradients,
        )
        self._call("hyper_step")

    @abstractmethod
    def _call(self, event: str) -> None: ...


def _mean(loss: Tensor) -> Tensor:
    return loss.mean() if loss.dim() else loss
