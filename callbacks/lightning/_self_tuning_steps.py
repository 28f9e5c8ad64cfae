"""The updates that a self-tuning training has beside that of Lightning, with their optimisers and counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from sthyper.callbacks.lightning._own_parameters import mean_over_ranks
from sthyper.callbacks.lightning._passes import SkippedStep, run_step, undisturbed, validating
from sthyper.callbacks.lightning._self_tuning_checks import NAME
from sthyper.callbacks.lightning._validation_data import ValidationStream, mixed, to_device
from sthyper.callbacks.lightning._validation_loss import ValidationLoss, loss_of
from sthyper.selftuning._batches import part_of_batch
from sthyper.selftuning._trainer_pace import Rhythm, rhythm_of
from sthyper.selftuning._trainer_parts import hyper_adam, response_adam
from sthyper.selftuning.perturbation import Perturbation
from sthyper.selftuning.steps import (
    HyperStepResult,
    apply_gradients,
    apply_hypergradients,
    evaluating,
    gradients_of,
    hypergradients,
    perturbed_loss,
)
from sthyper.selftuning.trainer import SelfTunerOptions
from sthyper.selftuning.transform import SelfTuning, frozen_statistics

__all__ = ["Counts", "Updates"]

_PERTURBATION, _PASS, _VALIDATION, _HYPER, _SAMPLE = range(5)  # what a seed is for


@dataclass
class Counts:
    """How far a run is, and what was planned when it began.

    Args:
        batches: Batches that were trained on.
        steps: Steps of the optimiser of the user.
        hyper_steps: Hyper steps.
        responds_from: Step after which responses are updated.
        tuned_from: Step after which hyper steps begin; ``None`` while that is not known.
        planned: Steps of the whole run; 0 if unknown, ``None`` before it was planned.
    """

    batches: int = 0
    steps: int = 0
    hyper_steps: int = 0
    responds_from: int = 0
    tuned_from: int | None = None
    planned: int | None = None


@dataclass
class Updates:
    """Response updates and hyper steps of one ``fit``.

    Args:
        trainer: The Trainer.
        module: What is trained.
        part: What makes it self-tuning.
        options: How to train.
        separate: Whether responses are updated here, and not by the optimiser of the user.
        axis: Axis of the examples.
        val_loss: Name of the logged value that hyper steps minimise.
        seed: Seed of all that is drawn.
        counts: How far the run is.
    """

    trainer: Trainer
    module: LightningModule
    part: SelfTuning
    options: SelfTunerOptions
    separate: bool
    axis: int
    val_loss: str | None
    seed: int
    counts: Counts
    stream: ValidationStream | None = None
    responses: list[nn.Parameter] = field(default_factory=list)
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    _waiting: list[Tensor] | None = None

    def __post_init__(self) -> None:
        h, options = self.part.hyperparameters, self.options
        self.validation_loss = ValidationLoss(self.trainer, self.module, self.val_loss, NAME, "hyper steps")
        if self.separate:
            self.responses = [p for p in self.part.responses.parameters() if p.requires_grad]
            self.optimizers["responses"] = response_adam(self.responses, options.lr_of_responses)
        self.optimizers["hyper"] = hyper_adam(h.tuned(), options.hyper_lr)
        if options.tune_scales:
            self.optimizers["scales"] = hyper_adam([h.raw_scale], self._scale_lr())

    # ---- the plan ------------------------------------------------------------------------------------

    def plan(self) -> None:
        """Choose what depends on the length of the run, once; to be called when the loaders are known."""
        if self.counts.planned is not None:
            return
        total = self.trainer.estimated_stepping_batches
        self.counts.planned = int(total) if math.isfinite(total) else 0
        if self.options.rest and not self.counts.planned:
            raise ValueError("rest needs a run whose length is known: give max_epochs or max_steps")
        if getattr(self.trainer, "fast_dev_run", False) or self.options.warm_up_epochs == 0:
            self.counts.tuned_from = 0
        elif self.options.warm_up_epochs is None and self.counts.planned:
            self.counts.responds_from = int(self._rhythm.responds_at * self.counts.planned)
            self.counts.tuned_from = int(self._rhythm.tunes_at * self.counts.planned)

    @property
    def _rhythm(self) -> Rhythm:
        return rhythm_of(self.options, self.counts.planned or 0)

    def _scale_lr(self) -> float:
        return self.options.hyper_lr if self.options.scale_lr is None else self.options.scale_lr

    def _slow_down(self) -> None:
        """Set learning rates that fall to the end of the run."""
        done = min(self._done(self.counts.steps), 1.0)
        self.part.hyperparameters.set_progress(done)
        part = 1.0 - (1.0 - self.options.hyper_lr_end) * done
        self.optimizers["hyper"].param_groups[0]["lr"] = self.options.hyper_lr * part
        if "scales" in self.optimizers:
            self.optimizers["scales"].param_groups[0]["lr"] = self._scale_lr() * part

    def _done(self, steps: int) -> float:
        """Return what part of the run after the warm-up is done after so many steps; 0 if its length is not known."""
        first = self.counts.tuned_from or 0
        length = (self.counts.planned or 0) - first
        return max(steps - first, 0) / length if length > 0 else 0.0

    def _rests(self, steps: int) -> bool:
        """Whether the hyperparameters rest after so many steps."""
        rest = self.options.rest
        return rest > 0 and self.counts.tuned_from is not None and self._done(steps) >= 1.0 - rest

    def _responds(self, steps: int) -> bool:
        """Whether it is the turn of the responses after so many steps."""
        first = self.counts.responds_from
        return steps >= first and not self._rests(steps) and self._rhythm.responds(steps - first)

    def epoch_starts(self) -> None:
        """See whether the warm-up is over, if it is counted in epochs."""
        warm_up = 1 if self.options.warm_up_epochs is None else self.options.warm_up_epochs
        if self.counts.tuned_from is None and self.trainer.current_epoch >= warm_up:
            self.counts.tuned_from = self.counts.steps

    def due(self) -> bool:
        """Whether a hyper step is to be made now."""
        counts, options = self.counts, self.options
        if counts.tuned_from is None or self._rests(counts.steps - 1):
            return False
        cycles = (counts.steps - counts.tuned_from) // self._rhythm.train_steps
        if getattr(self.trainer, "fast_dev_run", False):
            cycles = max(cycles, 1)
        return counts.hyper_steps < options.hyper_steps * cycles

    # ---- perturbations -------------------------------------------------------------------------------

    def draw(self, size: int, groups: int | None, tracks: bool = False) -> Perturbation:
        """Draw the perturbation of this batch: of its own on each rank, but for what a whole batch shares.

        Args:
            size: Number of examples.
            groups: In how many groups they are cut.
            tracks: Whether running statistics are left alone.
        """
        h = self.part.hyperparameters
        h.reseed(self._seed(_PERTURBATION, self.counts.batches), self._common_seed(_PERTURBATION, self.counts.batches))
        return h.draw(size, groups, tracks=tracks)

    def sampled(self, size: int) -> Perturbation:
        """Draw gates and choices of this batch, with the other hyperparameters at their centre.

        Args:
            size: Number of examples.
        """
        h = self.part.hyperparameters
        h.reseed(self._seed(_SAMPLE, self.counts.batches), self._common_seed(_SAMPLE, self.counts.batches))
        return h.centre(batch_size=size)

    def groups(self) -> int | None:
        """Return in how many groups batches are cut where perturbed examples have weights of their own."""
        return self.part.groups if self.options.groups is None else self.options.groups

    def _seed(self, purpose: int, count: int) -> int:
        return mixed(self.seed, purpose, count, 1 + self.trainer.global_rank)

    def _common_seed(self, purpose: int, count: int) -> int:
        return mixed(self.seed, purpose, count, 0)

    # ---- updates -------------------------------------------------------------------------------------

    def respond(self, batch: Any, batch_idx: int, size: int, linear: bool, stepped: bool) -> None:
        """Do the response update on a batch if it is its turn, or add its gradients to those that wait.

        Args:
            batch: The batch.
            batch_idx: Its number.
            size: Number of examples.
            linear: Whether predictions are linearised.
            stepped: Whether the optimiser of the user has made a step.
        """
        if not self._responds(self.counts.steps):
            return
        part = self.options.part_of_responses
        batch, size = part_of_batch(batch, self.axis, size, part, self.counts.batches)
        gradients = self._response_gradients(batch, batch_idx, size, linear)
        share = 1 / self.trainer.accumulate_grad_batches
        if gradients is not None:
            # The last number says on how many batches there was a loss.
            new = [g * share for g in gradients] + [self._one(share)]
            self._waiting = new if self._waiting is None else [a + b for a, b in zip(self._waiting, new, strict=True)]
        if not stepped:
            return
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            waiting = [torch.zeros_like(p) for p in self.responses] + [self._one(0.0)]
        *mean, weight = mean_over_ranks(self.trainer, waiting)
        if self._scale() != 1.0 and not all(bool(torch.isfinite(g).all()) for g in mean):
            return  # what a gradient scaler does
        if weight > 0:
            apply_gradients([self.optimizers["responses"]], self.responses, mean, self.options.max_norm)

    def _response_gradients(self, batch: Any, batch_idx: int, size: int, linear: bool) -> list[Tensor] | None:
        perturbation = self.draw(size, None if linear else self.groups(), tracks=not linear)
        scale = self._scale()

        def closure() -> Tensor:
            with self.trainer.precision_plugin.train_step_context():
                loss = loss_of(run_step(self.module, "training_step", batch, batch_idx))
            if loss is None:
                raise SkippedStep
            return loss

        seed = self._seed(_PASS, self.counts.batches)
        quiet = undisturbed(self.trainer, self.module, seed)
        with quiet, frozen_statistics(self.module), torch.enable_grad():
            try:
                loss = perturbed_loss(closure, self.part.hyperparameters, perturbation, linear)
            except SkippedStep:
                return None
            gradients = gradients_of(loss * scale, self.responses)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(self.responses, gradients, strict=True)]
        return [g / scale for g in filled] if scale != 1.0 else filled

    def hyper_step(self) -> HyperStepResult:
        """Move the hyperparameters down the gradient of the loss of the next validation batch, of all ranks."""
        assert self.stream is not None
        trainer, module, options, h = self.trainer, self.module, self.options, self.part.hyperparameters
        seed = self._seed(_HYPER, self.counts.hyper_steps)
        scale = self._scale()
        quiet = undisturbed(trainer, module, seed)
        with validating(trainer), quiet as logged, frozen_statistics(module), evaluating(module):
            batch, index = self.stream.next()
            batch = to_device(trainer, module, batch)
            h.reseed(seed, self._common_seed(_HYPER, self.counts.hyper_steps))
            loss, gradients = hypergradients(
                lambda: self.validation_loss(batch, index, logged) * scale,
                h,
                entropy_weight=options.entropy_weight * scale,
                batch_size=size_of(batch, self.axis) if options.tune_scales else None,
                groups=self.groups() if options.tune_scales else None,
                examples=size_of(batch, self.axis) if len(h.discrete) else None,
            )
        loss, *mean = mean_over_ranks(trainer, [loss.to(h.raw.dtype) / scale, *(g / scale for g in gradients)])
        self.counts.hyper_steps += 1
        self._slow_down()
        return apply_hypergradients(
            h,
            loss,
            mean,
            self.optimizers["hyper"],
            self.optimizers.get("scales"),
            bound=options.bound,
            scale_bounds=options.scale_bounds,
        )

    def _scale(self) -> float:
        """Return what losses are multiplied by, so that gradients in 16 bits do not vanish."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _one(self, value: float) -> Tensor:
        return torch.full((1,), value, device=self.responses[0].device, dtype=self.responses[0].dtype)

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the optimisers, and where the validation data is."""
        stream = self.stream
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "stream": None if stream is None else [stream.passes, stream.taken],
            "source": self.validation_loss.source,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the states of the optimisers.

        Raises:
            ValueError: If there were others.
        """
        saved = state["optimizers"]
        if set(saved) != set(self.optimizers):
            raise ValueError(
                f"the checkpoint holds the optimisers {sorted(saved)}, these options make {sorted(self.optimizers)}: "
                "go on with the same update and tune_scales"
            )
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved[name])
        self.validation_loss.source = state["source"]

    def open_stream(self, loader: Any, place: list[int] | None) -> None:
        """Begin to read validation data.

        Args:
            loader: The loader.
            place: Passes and batches that were taken before.
        """
        self.stream = ValidationStream(loader, self._seed(_VALIDATION, 0))
        if place is not None:
            self.stream.passes, self.stream.taken = place

    def close(self) -> None:
        """Give up what belongs to one ``fit``."""
        if self.stream is not None:
            self.stream.close()


def size_of(batch: Any, axis: int) -> int:
    """Return the number of examples of a batch."""
    from lightning.pytorch.utilities.data import extract_batch_size

    from sthyper.selftuning._batches import first_size

    return extract_batch_size(batch) if axis == 0 else first_size(batch, axis)
