"""The step objects and the trainer of the Delta-STN code, with its signatures, on top of this package's steps."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sthyper.selftuning._batches import BatchStream, check_loader, to_device
from sthyper.selftuning._gradients import (
    apply_gradients,
    check_hyper_optimizers,
    check_optimizers,
    evaluating,
    gradients_of,
    parameters_of,
)
from sthyper.selftuning._hyper_step import HyperStepResult, Notices, apply_hypergradients
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.linearise import linearised
from sthyper.selftuning.perturbation import Perturbation
from sthyper.selftuning.transform import frozen_statistics

__all__ = ["DeltaStnStepOptimizer", "StnStepOptimizer", "StnTrainer"]

logger = logging.getLogger(__name__)

Criterion = Callable[[Any, Any], Tensor]


class _StepOptimizer(ABC):
    """What both step objects share: the hyper step."""

    def __init__(
        self,
        model: nn.Module,
        hyper_opt: Optimizer,
        scale_opt: Optimizer | None,
        criterion: Criterion,
        h_container: Hyperparameters,
        tune_scales: bool,
        entropy_weight: float,
    ) -> None:
        if tune_scales and scale_opt is None:
            raise ValueError("tune_scales=True needs a scale_opt")
        if entropy_weight and not tune_scales:
            raise ValueError(f"entropy_weight={entropy_weight!r} has no effect without tune_scales=True")
        check_hyper_optimizers(h_container, hyper_opt, scale_opt)
        self.model = model
        self.hyper_opt = hyper_opt
        self.scale_opt = scale_opt if tune_scales else None
        self.criterion = criterion
        self.h_container = h_container
        self.tune_scales = tune_scales
        self.entropy_weight = entropy_weight
        self.result: HyperStepResult | None = None

    @abstractmethod
    def optimizers(self) -> list[Optimizer | None]:
        """Return all optimisers; that of the scales may be ``None``."""

    def zero_grad(self) -> None:
        """Set all gradients to ``None``; steps leave none behind themselves."""
        for optimizer in self.optimizers():
            if optimizer is not None:
                optimizer.zero_grad()

    def step(
        self,
        inputs: Any,
        labels: Any,
        perturbed_h: Perturbation | None,
        augmented_inputs: Any = None,
        tune_hyper: bool = False,
    ) -> tuple[Any, Tensor]:
        """Do a step.

        Args:
            inputs: A batch of inputs, with the central strengths of augmentations.
            labels: Its targets.
            perturbed_h: What ``h_container.draw`` returned. Hyper steps that tune scales need ``tracks=True`` there;
                others do not look at it.
            augmented_inputs: The same inputs with the perturbed strengths, for training steps; default is ``inputs``.
            tune_hyper: Whether it is a hyper step.

        Returns:
            The prediction and the loss (0-d, detached).

        Raises:
            ValueError: If a perturbation is missing or does not suit.
        """
        if tune_hyper:
            return self._tune(inputs, labels, perturbed_h)
        if perturbed_h is None:
            raise ValueError("perturbed_h is needed for a training step: draw it with h_container.draw(batch_size)")
        if not self.model.training:
            self.model.train()
        return self._train(inputs, labels, perturbed_h, inputs if augmented_inputs is None else augmented_inputs)

    @abstractmethod
    def _train(self, inputs: Any, labels: Any, perturbed_h: Perturbation, augmented: Any) -> tuple[Any, Tensor]:
        """Do a training step; return the prediction and the loss (0-d, detached)."""

    def _tune(self, inputs: Any, labels: Any, perturbed_h: Perturbation | None) -> tuple[Any, Tensor]:
        h = self.h_container
        wanted = [h.raw]
        current = h.centre(tracks=True)
        if perturbed_h is not None and perturbed_h.tracks:
            current = replace(current, choices=perturbed_h.choices)
        if self.tune_scales:
            if perturbed_h is None or not perturbed_h.tracks:
                raise ValueError("hyper steps that tune scales need perturbed_h of h_container.draw(..., tracks=True)")
            current, wanted = perturbed_h, [h.raw, h.raw_scale]
        wanted += h.discrete.logits()
        with evaluating(self.model), h.use(current):
            prediction = self.model(inputs)
            loss = self.criterion(prediction, labels)
        objective = loss - self.entropy_weight * h.entropy() if self.entropy_weight else loss
        gradients = gradients_of(objective, wanted)
        if gradients[0] is None:
            raise ValueError("the validation loss does not depend on the hyperparameters; transform model by self_tune")
        full = [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, gradients, strict=True)]
        self.result = apply_hypergradients(
            h, loss.detach(), full, self.hyper_opt, self.scale_opt, bound=None, scale_bounds=None
        )
        return prediction, loss.detach()


class StnStepOptimizer(_StepOptimizer):
    """Steps of self-tuning networks (MacKay et al. 2019, arXiv 1903.03088).

    Args:
        model: A self-tuning model.
        model_opt: Holds its weights and responses.
        hyper_opt: Holds ``h_container.raw``, with gates or choices ``h_container.tuned()``.
        scale_opt: Holds ``h_container.raw_scale``; may be ``None`` if scales are not tuned.
        criterion: ``(prediction, labels)`` -> loss (0-d).
        h_container: The hyperparameters.
        tune_scales: Whether hyper steps tune the scales.
        entropy_weight: Weight of the entropy of the perturbations.

    Attributes:
        result: What the last hyper step did.

    Raises:
        ValueError: If an optimiser holds the wrong parameters or is missing, or an argument has no effect.
    """

    def __init__(
        self,
        model: nn.Module,
        model_opt: Optimizer,
        hyper_opt: Optimizer,
        scale_opt: Optimizer | None,
        criterion: Criterion,
        h_container: Hyperparameters,
        tune_scales: bool,
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__(model, hyper_opt, scale_opt, criterion, h_container, tune_scales, entropy_weight)
        check_optimizers(h_container, {"model_opt": model_opt})
        self.model_opt = model_opt

    def optimizers(self) -> list[Optimizer | None]:
        """Return all optimisers; that of the scales may be ``None``."""
        return [self.model_opt, self.hyper_opt, self.scale_opt]

    def _train(self, inputs: Any, labels: Any, perturbed_h: Perturbation, augmented: Any) -> tuple[Any, Tensor]:
        with self.h_container.use(perturbed_h):
            prediction = self.model(augmented)
            loss = self.criterion(prediction, labels)
        _descend(self.model_opt, loss)
        return prediction, loss.detach()


class DeltaStnStepOptimizer(_StepOptimizer):
    """Steps of Delta-STN (Bae & Grosse 2020, arXiv 2010.13514).

    Args:
        model: A self-tuning model of kind ``"delta"``.
        general_opt: Holds its general parameters.
        response_opt: Holds its response parameters.
        hyper_opt: Holds ``h_container.raw``, with gates or choices ``h_container.tuned()``.
        scale_opt: Holds ``h_container.raw_scale``; may be ``None`` if scales are not tuned.
        criterion: ``(prediction, labels)`` -> loss (0-d).
        h_container: The hyperparameters.
        tune_scales: Whether hyper steps tune the scales.
        entropy_weight: Weight of the entropy of the perturbations.
        do_linearize: Whether the response update is at the linearised prediction.

    Attributes:
        result: What the last hyper step did.

    Raises:
        ValueError: If an optimiser holds the wrong parameters or is missing, or an argument has no effect.
    """

    def __init__(
        self,
        model: nn.Module,
        general_opt: Optimizer,
        response_opt: Optimizer,
        hyper_opt: Optimizer,
        scale_opt: Optimizer | None,
        criterion: Criterion,
        h_container: Hyperparameters,
        tune_scales: bool,
        entropy_weight: float = 0.0,
        do_linearize: bool = True,
    ) -> None:
        super().__init__(model, hyper_opt, scale_opt, criterion, h_container, tune_scales, entropy_weight)
        check_optimizers(h_container, {"general_opt": general_opt, "response_opt": response_opt})
        self.general_opt = general_opt
        self.response_opt = response_opt
        self.do_linearize = do_linearize

    def optimizers(self) -> list[Optimizer | None]:
        """Return all optimisers; that of the scales may be ``None``."""
        return [self.general_opt, self.response_opt, self.hyper_opt, self.scale_opt]

    def _train(self, inputs: Any, labels: Any, perturbed_h: Perturbation, augmented: Any) -> tuple[Any, Tensor]:
        """Do both updates; return what the second one predicts and the loss of the first one, before it."""
        h = self.h_container
        with h.use(replace(h.centre(), choices=perturbed_h.choices)):
            loss = self.criterion(self.model(inputs), labels)
        _descend(self.general_opt, loss)
        if self.do_linearize:
            prediction = linearised(lambda: self.model(augmented), h, perturbed_h)
            with h.use(perturbed_h):
                answer = self.criterion(prediction, labels)
        else:
            with h.use(perturbed_h), frozen_statistics(self.model):
                prediction = self.model(augmented)
                answer = self.criterion(prediction, labels)
        _descend(self.response_opt, answer)
        return prediction, loss.detach()


class StnTrainer:
    """The training loop of the Delta-STN code; :class:`~sthyper.selftuning.SelfTuner` is the one to prefer.

    Batches are ``(inputs, labels)``, or ``(inputs, labels, augmented_inputs)`` where augmentations are tuned.

    Args:
        step_optimizer: A step object.
        train_loader: Training batches.
        valid_loader: Validation batches, for hyper steps.
        test_loader: Kept for ``evaluate_fnc``.
        evaluate_fnc: ``(epoch, train_loss=None)`` -> validation loss. Called once before training and after each
            training epoch.
        h_container: The hyperparameters.
        lr_scheduler: One, a list, or ``None``; stepped once an epoch, with the validation loss where it asks for it.
        warmup_epochs: Epochs without hyper steps; they count.
        total_epochs: All epochs.
        device: Where batches go; default is where the model is.
        train_steps: Training steps of one cycle.
        valid_steps: Hyper steps of one cycle.
        log_interval: A line of log for every so many training steps.
        patience: Training ends after so many epochs without a new best validation loss, warm-up not counted; ``None``:
            never.

    Attributes:
        val_losses: Validation losses of all epochs.
        best_val_loss: The lowest one.
        best_val_epoch: Its epoch.
        global_step: Steps of both kinds so far.

    Raises:
        TypeError: If a scheduler is none.
        ValueError: If a number is out of range, or a loader gives no batches.
    """

    def __init__(
        self,
        step_optimizer: StnStepOptimizer | DeltaStnStepOptimizer,
        train_loader: Iterable[Any],
        valid_loader: Iterable[Any],
        test_loader: Iterable[Any] | None,
        evaluate_fnc: Callable[..., float],
        h_container: Hyperparameters,
        lr_scheduler: LRScheduler | list[LRScheduler | None] | None,
        warmup_epochs: int,
        total_epochs: int,
        device: torch.device | str | None = None,
        train_steps: int = 5,
        valid_steps: int = 1,
        log_interval: int = 10,
        patience: int | None = None,
    ) -> None:
        for name, value, smallest in (
            ("warmup_epochs", warmup_epochs, 0),
            ("total_epochs", total_epochs, 1),
            ("train_steps", train_steps, 1),
            ("valid_steps", valid_steps, 0),
            ("log_interval", log_interval, 1),
            ("patience", 1 if patience is None else patience, 1),
        ):
            if value < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {value}")
        check_loader(train_loader, "train_loader", whole_batch=False)
        check_loader(valid_loader, "valid_loader", whole_batch=True)
        schedulers = lr_scheduler if isinstance(lr_scheduler, list) else [lr_scheduler]
        for scheduler in schedulers:
            if scheduler is not None and not isinstance(scheduler, LRScheduler):
                raise TypeError(f"lr_scheduler must hold LRScheduler objects, got {scheduler!r}")
        self.step_optimizer = step_optimizer
        self.train_stream = BatchStream(train_loader, "train_loader")
        self.valid_stream = BatchStream(valid_loader, "valid_loader")
        self.test_loader = test_loader
        self.evaluate_fnc = evaluate_fnc
        self.h_container = h_container
        self.lr_scheduler = [scheduler for scheduler in schedulers if scheduler is not None]
        self.warmup_epochs, self.total_epochs = warmup_epochs, total_epochs
        self.train_steps, self.valid_steps = train_steps, valid_steps
        self.log_interval = log_interval
        self.patience = total_epochs if patience is None else patience
        self.device = h_container.raw.device if device is None else torch.device(device)
        self.notices = Notices()
        self.val_losses: list[float] = []
        self.best_val_loss, self.best_val_epoch = math.inf, 0
        self.global_step = 0

    def train(self) -> None:
        """Train until ``total_epochs`` or the patience is over."""
        self.evaluate_fnc(0)
        steps = 0
        while self.train_stream.passes < self.total_epochs and not self._out_of_patience():
            total, n = 0.0, 0
            warm = self.train_stream.passes >= self.warmup_epochs
            while (batch := self.train_stream.next_or_none()) is not None:
                loss, size = self._train_step(batch)
                total, n = total + loss * size, n + size
                steps += warm
                if warm and steps % self.train_steps == 0:
                    for _ in range(self.valid_steps):
                        self._valid_step(self.valid_stream.next())
            self._end_epoch(total / n)

    def _train_step(self, batch: Any) -> tuple[float, int]:
        parts = to_device(batch, self.device)
        if not isinstance(parts, list | tuple) or len(parts) not in (2, 3):
            raise TypeError("batches of train_loader must be (inputs, labels) or (inputs, labels, augmented_inputs)")
        size = len(parts[1])
        augmented = parts[2] if len(parts) == 3 else None
        _, loss = self.step_optimizer.step(parts[0], parts[1], self.h_container.draw(size), augmented)
        if self.global_step % self.log_interval == 0:
            logger.info("step %d, epoch %d: loss %.3f", self.global_step, self.train_stream.passes, loss)
        self.global_step += 1
        return float(loss), size

    def _valid_step(self, batch: Any) -> None:
        inputs, labels = to_device(batch, self.device)[:2]
        perturbed = self.h_container.draw(len(labels), tracks=True)
        self.step_optimizer.step(inputs, labels, perturbed, tune_hyper=True)
        if self.step_optimizer.result is not None:
            self.notices.hear(self.step_optimizer.result, self.global_step)
        self.global_step += 1

    def _end_epoch(self, train_loss: float) -> None:
        epoch = self.train_stream.passes
        val_loss = float(self.evaluate_fnc(epoch, train_loss=train_loss))
        self.val_losses.append(val_loss)
        if val_loss < self.best_val_loss:
            self.best_val_loss, self.best_val_epoch = val_loss, epoch
        logger.info("epoch %d: validation loss %.4f, best %.4f", epoch, val_loss, self.best_val_loss)
        for scheduler in self.lr_scheduler:
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(val_loss)
            else:
                scheduler.step()

    def _out_of_patience(self) -> bool:
        epoch = self.train_stream.passes
        return epoch - max(self.best_val_epoch, min(epoch, self.warmup_epochs)) >= self.patience


def _descend(optimizer: Optimizer, loss: Tensor) -> None:
    parameters = parameters_of(optimizer)
    apply_gradients([optimizer], parameters, gradients_of(loss, parameters))
