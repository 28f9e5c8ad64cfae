"""How the probabilities of gates are trained: beside the weights, or on validation batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Adam
from torch.utils.hooks import RemovableHandle

from sthyper.callbacks.lightning._gates_options import GateOptions
from sthyper.callbacks.lightning._gates_sites import GateSet
from sthyper.callbacks.lightning._own_parameters import mean_over_ranks
from sthyper.callbacks.lightning._passes import undisturbed, validating
from sthyper.callbacks.lightning._validation_data import ValidationStream, mixed, to_device
from sthyper.callbacks.lightning._validation_loss import ValidationLoss
from sthyper.selftuning.steps import apply_gradients, evaluating
from sthyper.straight_through.gates import Gate
from sthyper.straight_through.penalties import penalty

__all__ = ["NAME", "Counts", "GateSteps", "reseed_evaluation"]

NAME = "GateTuningCallback"
_TRAINING, _VALIDATION, _DATA, _WORLD, _EVALUATION = range(5)  # what a seed is for


@dataclass
class Counts:
    """How far a run is.

    Args:
        batches: Batches that were trained on.
        steps: Steps of the optimiser of the user while gates are trained.
        gate_steps: Steps of the gates.
        skipped: Steps that were left out, because a gradient was not finite.
        begun: ``steps`` when this ``fit`` began, before it was interrupted.
    """

    batches: int = 0
    steps: int = 0
    gate_steps: int = 0
    skipped: int = 0
    begun: int = 0


class GateSteps:
    """The steps of gates within one ``fit``.

    Args:
        trainer: The Trainer.
        module: What is trained.
        gates: Its gates.
        options: How to train them.
        counts: How far the run is.
        loss: What validation steps minimise; ``None`` to learn from the training loss.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        gates: GateSet,
        options: GateOptions,
        counts: Counts,
        loss: ValidationLoss | None,
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.gates = gates
        self.options = options
        self.counts = counts
        self.loss = loss
        self.stream: ValidationStream | None = None
        self.val_loss: Tensor | None = None
        self.used: set[int] = set()
        self.logits = [gate.logits for gate in gates.gates]
        self.optimizer = Adam(self.logits, lr=options.lr)
        self._waiting: list[Tensor | None] = [None] * len(self.logits)
        self._in_batch = False
        self._warm_up = ExitStack()
        self._handles: list[RemovableHandle] = []

    # ---- life ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to catch gradients; to be called when the module is on its device."""
        logits: Any
        for i, logits in enumerate(self.logits):
            if self.loss is None:
                self._handles.append(logits.register_post_accumulate_grad_hook(self._catcher(i)))
            else:
                logits.requires_grad_(False)  # but within the steps on validation data

    def close(self) -> None:
        """Give up what belongs to one ``fit``."""
        for handle in self._handles:
            handle.remove()
        for logits in self.logits:
            logits.requires_grad_(True)
        self._handles = []
        self._warm_up.close()
        if self.stream is not None:
            self.stream.close()

    @property
    def trains(self) -> bool:
        """Whether the warm-up is over."""
        over = self.trainer.current_epoch >= self.options.warm_up_epochs
        return over or bool(getattr(self.trainer, "fast_dev_run", False))

    def epoch_starts(self) -> None:
        """Open the gates in the warm-up, and let them go after it."""
        self._begin_window()  # of an epoch that the user has cut short there may be a part of one
        self._warm_up.close()
        if not self.trains:
            for gate in self.gates.gates:
                self._warm_up.enter_context(gate.frozen())

    def batch_starts(self, planned: float) -> None:
        """Let the samples of a batch depend on the seed and its number, and the temperature on the progress.

        Args:
            planned: Steps of this ``fit``.
        """
        self._in_batch = True
        self._reseed(_TRAINING, self.counts.batches)
        if self.options.settings.temperature_end is not None:
            progress = min((self.counts.steps - self.counts.begun) / planned, 1.0)
            for gate in self.gates.gates:
                gate.set_progress(progress)

    def _reseed(self, purpose: int, count: int) -> None:
        self.gates.reseed(*sample_seed(self.trainer, self.options, purpose, count))

    # ---- training loss -------------------------------------------------------------------------------

    def _catcher(self, i: int) -> Any:
        def catch(logits: Tensor) -> None:
            # Nothing stays in .grad: what the user clips, sets to zero or steps with has no part in it.
            gradient, logits.grad = logits.grad, None
            # Some of others than training batches: of validation steps, or of callbacks in between.
            if gradient is None or not self._in_batch:
                return
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            if scaler is not None:
                gradient = gradient / scaler.scale(torch.ones_like(gradient))
            waiting = self._waiting[i]
            self._waiting[i] = gradient if waiting is None else waiting + gradient

        return catch

    def _begin_window(self) -> None:
        """Begin to accumulate gradients anew."""
        self._waiting = [None] * len(self.logits)

    def batch_ends(self, stepped: bool) -> bool:
        """Make the steps that are due after a batch.

        Args:
            stepped: Whether the optimiser of the user has made a step.

        Returns:
            Whether there was one.
        """
        counts, self._in_batch = self.counts, False
        counts.batches += 1
        if not stepped or not self.trains:
            return False
        counts.steps += 1
        if self.loss is None:
            waiting = self._waiting
            self._begin_window()
            return self._step(waiting)
        return counts.steps % self.options.every_n_steps == 0 and self._validation_step(self.loss)

    # ---- validation loss -----------------------------------------------------------------------------

    def open_stream(self, loader: Any, place: list[int] | None) -> None:
        """Begin to read validation data.

        Args:
            loader: The loader.
            place: Passes and batches that were taken before.
        """
        rank = 1 + self.trainer.global_rank
        self.stream = ValidationStream(loader, mixed(self.options.seed, _DATA, rank))
        if place is not None:
            self.stream.passes, self.stream.taken = place

    def _validation_step(self, loss: ValidationLoss) -> bool:
        assert self.stream is not None
        trainer, module = self.trainer, self.module
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        number = self.counts.steps
        world = mixed(self.options.seed, _WORLD, number, 1 + trainer.global_rank)
        with validating(trainer), undisturbed(trainer, module, world) as logged, evaluating(module), self._sampling():
            batch, index = self.stream.next()
            batch = to_device(trainer, module, batch)
            loss.settle(batch, index, logged)
            self._reseed(_VALIDATION, number)
            value = loss(batch, index, logged)
            if not value.requires_grad:
                raise ValueError(
                    f"{NAME}: no gate has a part in the loss of a validation batch ({loss.source}); name targets that "
                    "it uses, or say val_step='training_step'"
                )
            found = torch.autograd.grad(value * scale, self.logits, allow_unused=True)
        self.val_loss = mean_over_ranks(trainer, [value.detach().float()])[0]
        return self._step([None if g is None else g / scale for g in found])

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """Let gates sample, and gated operations work, in a module that is being evaluated."""
        parts = [self.module.get_submodule(site.path) for site in self.gates.sites if site.kind == "operation"]
        switched = [m for part in [self.gates, *parts] for m in part.modules() if not m.training]
        for part in switched:
            part.training = True
        try:
            with self._differentiable():
                yield
        finally:
            for part in switched:
                part.training = False

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        before = [logits.requires_grad for logits in self.logits]
        for logits in self.logits:
            logits.requires_grad_(True)
        try:
            with torch.enable_grad():
                yield
        finally:
            for logits, requires_grad in zip(self.logits, before, strict=True):
                logits.requires_grad_(requires_grad)

    # ---- steps ---------------------------------------------------------------------------------------

    def cost(self) -> Tensor:
        """Return what sizes and undecided gates cost (0-d, with gradients)."""
        options = self.options
        total = torch.zeros_like(self.logits[0].sum())
        for target in options.targets:
            gates = self.gates.of_target(target)
            size = torch.stack([gate.expected_size() for gate in gates]).sum()
            total = total + options.penalty[target] * (size - allowed(gates, options.target_size[target])).clamp(min=0)
            total = total + penalty(gates, entropy=options.entropy_weight[target])
        return total

    def _step(self, gradients: list[Tensor | None]) -> bool:
        """Move the logits along gradients of the loss, which all ranks bring, and of the cost."""
        known = [torch.zeros_like(p) if g is None else g for p, g in zip(self.logits, gradients, strict=True)]
        flags = torch.tensor([float(g is not None) for g in gradients]).to(self.logits[0])
        *mean, flags = mean_over_ranks(self.trainer, [*known, flags])
        # What had no part in the loss of any rank stays where it is.
        used = {i for i, flag in enumerate(flags.tolist()) if flag > 0}
        if not used:
            return False
        if not all(bool(torch.isfinite(gradient).all()) for gradient in mean):
            self.counts.skipped += 1
            if getattr(self.trainer.precision_plugin, "scaler", None) is None and self.counts.skipped == 1:
                rank_zero_warn(f"{NAME}: a gradient of the loss was not finite; such steps are skipped and counted")
            return False
        self.used |= used
        with self._differentiable():
            costs = torch.autograd.grad(self.cost(), self.logits, allow_unused=True)
        total = [
            None if i not in used else g if c is None else g + c
            for i, (g, c) in enumerate(zip(mean, costs, strict=True))
        ]
        apply_gradients([self.optimizer], self.logits, total, self.options.max_norm)
        self.counts.gate_steps += 1
        return True

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimiser, and where the validation data is."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "stream": None if self.stream is None else [self.stream.passes, self.stream.taken],
            "source": None if self.loss is None else self.loss.source,
            "used": sorted(self.used),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of the optimiser."""
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr  # a further fit may have another one
        if self.loss is not None:
            self.loss.source = state["source"]
        self.used = set(state["used"])


def sample_seed(trainer: Trainer, options: GateOptions, *numbers: int) -> tuple[int, ...]:
    """Return what samples of this rank depend on."""
    return options.seed, *numbers, 0 if options.same_samples else 1 + trainer.global_rank


def reseed_evaluation(trainer: Trainer, gates: GateSet, options: GateOptions, batch: int, loader: int) -> None:
    """Let samples in evaluation, if there are any, depend on seed and batch only.

    Args:
        trainer: The Trainer.
        gates: The gates of the module.
        options: Their options.
        batch: Number of the batch.
        loader: Number of the loader.
    """
    if options.settings.evaluation == "sample":
        gates.reseed(*sample_seed(trainer, options, _EVALUATION, batch, loader))


def allowed(gates: list[Gate], size: int | float | None) -> float:
    """Return how many gates cost nothing."""
    n = sum(gate.logits.numel() for gate in gates)
    return 0.0 if size is None else size * n if isinstance(size, float) else float(size)
