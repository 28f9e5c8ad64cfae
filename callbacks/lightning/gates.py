"""GateTuningCallback: decides by gradient which inputs, channels, branches and operations of a module stay."""

from __future__ import annotations

import math
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn

from sthyper.callbacks.lightning import _gates_checks as checks
from sthyper.callbacks.lightning import _gates_options as options
from sthyper.callbacks.lightning import _own_parameters as ranks
from sthyper.callbacks.lightning._checks import check_choice
from sthyper.callbacks.lightning._delivery import deliver_to_main_process
from sthyper.callbacks.lightning._gates_record import log, publish
from sthyper.callbacks.lightning._gates_sites import GateSet, attach, find_sites
from sthyper.callbacks.lightning._gates_state import GateState
from sthyper.callbacks.lightning._gates_steps import NAME, GateSteps, reseed_evaluation
from sthyper.callbacks.lightning._self_tuning_checks import check_optimizers, check_trainer, makes_layers_late
from sthyper.callbacks.lightning._trainer import is_search_for_lr_or_batch_size
from sthyper.callbacks.lightning._validation_data import find_loader
from sthyper.callbacks.lightning._validation_loss import Source, ValidationLoss

__all__ = ["GateTuningCallback"]

_DEFAULT_PROBABILITY = 0.8


class GateTuningCallback(GateState):
    """Puts gates into an ordinary :class:`LightningModule` and trains which of them are open, within its training.

    A gate is an on/off choice that is sampled in training, with a probability that is trained through the sample
    (:class:`~sthyper.straight_through.Gate`)::

        tuning = GateTuningCallback({"features": "inputs", "encoder.*": "channels"}, penalty=1e-3)
        Trainer(max_epochs=30, callbacks=[tuning]).fit(model, train_loader, val_loader)
        tuning.probabilities()["features"]    # tensor([0.99, 0.02, ...])
        plain = tuning.export(model)          # smaller, and without gates

    *What is gated* is named by patterns of paths (:mod:`fnmatch`) with the kind of gate: ``"inputs"`` are the features
    or channels that linear and convolutional layers read, ``"channels"`` those that they return (both also of all such
    layers within a module that is named, the last one included); ``"branch"`` is the whole output of a module, such as
    the residual part of a block; ``"operation"`` is whether a module, such as an augmentation, is applied to an
    example at all: ``x + z * (operation(x) - x)``. Gates act by hooks; class and parameters of the module stay, and the
    logits are in its ``state_dict`` under ``gates``: without the callback load checkpoints with ``strict=False``.

    *How it is trained.* Without ``val_dataloader`` the backward pass of the training loss, also one of manual
    optimization, trains the logits, too. With it the weights are trained under samples that are given, and steps on
    validation batches train the logits: unseen by loggers, metrics, running statistics and global random generators,
    with the module in evaluation mode, but for the gates and gated operations. Operations that make training harder,
    such as augmentation, need this: those stay that do little harm to the validation loss (Lim et al. 2019, arXiv
    1905.00397). The optimiser of the logits (Adam) is the callback's; that of ``configure_optimizers`` does not see
    them, neither does the Trainer's clipping. ``accumulate_grad_batches`` and mixed precision work as for weights.

    *Evaluation.* Sanity check, validation, test and prediction run with what is more likely than not, unless
    ``evaluation`` says otherwise, and with open gates during the warm-up.

    *Several processes.* A single device, and DDP: gradients are averaged, logits are the same on all ranks, bit for
    bit. Other strategies are refused. Where Lightning forks or spawns the ranks, the script has the probabilities after
    ``fit``, and can export. *Checkpoints* hold everything, and training that is resumed goes on exactly.

    *Logged*, to all loggers at ``log_every_n_steps``: ``gates/<target>/probability`` (mean), ``expected_size`` and
    ``open`` (above one half) of each target, where ``*`` and the like are ``_``; of all ``gates/expected_size``,
    ``gates/open``, ``gates/cost`` and ``gates/skipped``; ``gates/val_loss``. All of it is in
    ``trainer.callback_metrics``, to be watched, or reported to an outer search by
    :class:`~sthyper.callbacks.TuneReportCallback`.

    Args:
        targets: Pattern of paths -> ``"inputs"``, ``"channels"``, ``"branch"`` or ``"operation"``.
        penalty: Added to the loss for each gate that is expected to be open; for all, or by target.
        val_dataloader: Data to train the logits on: a loader, or ``"val"`` for the first validation loader of the
            Trainer, which is gone round apart from its validation. Default is to train them on training batches.
        estimator: How gradients pass a sample: ``"identity"``, ``"probs"``, ``"gumbel"`` or ``"hard_concrete"``.
        probability: Probability of being open at the beginning; for all, or by target.
        lr: Learning rate of the logits (Adam).
        entropy_weight: Added to the loss for each nat of entropy, which drives probabilities to 0 and 1; for all, or
            by target.
        target_size: Gates that cost nothing, so that the penalty ends at this size: a number (``int``) or a share of
            the target (``float``); for all that have a penalty, or by target.
        warm_up_epochs: Epochs of a ``fit`` that begin with open gates.
        every_n_steps: Training steps for each step on validation data.
        evaluation: What passes in evaluation mode: ``"threshold"`` (on above one half), ``"sample"`` or ``"expected"``.
        per_example: Whether each example, the first axis, is sampled for itself; else the batch shares a sample.
        temperature: Of ``"gumbel"`` and ``"hard_concrete"``. Default is 2/3.
        temperature_end: Temperature to which it falls exponentially until the end of the run; default is no change.
        max_norm: Gradients of the logits are scaled down to this norm.
        val_loss: Name of the value logged in ``validation_step`` that is minimised on validation data. Default is what
            ``validation_step`` returns; if it returns none, the loss of ``training_step``.
        val_step: Which step is called with validation batches, if not the one that this finds.
        rank_samples: Under DDP, ``"own"`` samples on each rank, or the ``"same"`` for the examples of all.
        attribute: Attribute of the module that holds the gates, and the beginning of logged names; of its own for each
            of several callbacks.
        seed: Seed of the samples.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If one is out of range, unknown or without effect.
    """

    def __init__(
        self,
        targets: dict[str, options.Kind],
        penalty: float | dict[str, float] = 0.0,
        val_dataloader: Any = None,
        estimator: options.Estimator = "identity",
        probability: float | dict[str, float] = _DEFAULT_PROBABILITY,
        lr: float = 0.05,
        *,
        entropy_weight: float | dict[str, float] = 0.0,
        target_size: int | float | dict[str, int | float] | None = None,
        warm_up_epochs: int = 0,
        every_n_steps: int = 1,
        evaluation: options.Evaluation = "threshold",
        per_example: bool = True,
        temperature: float | None = None,
        temperature_end: float | None = None,
        max_norm: float | None = None,
        val_loss: str | None = None,
        val_step: Source | None = None,
        rank_samples: Literal["own", "same"] = "own",
        attribute: str = "gates",
        seed: int = 0,
    ) -> None:
        named = options.check_targets(targets)
        check_choice("rank_samples", rank_samples, ("own", "same"))
        if val_step is not None:
            check_choice("val_step", val_step, ("training_step", "validation_step"))
        if val_dataloader is None:
            for name, value, default in (("every_n_steps", every_n_steps, 1), ("val_loss", val_loss, None)):
                if value != default:
                    raise ValueError(f"{name} has no effect without val_dataloader; give it, 'val' for the Trainer's")
            if val_step is not None:
                raise ValueError("val_step has no effect without val_dataloader; give it, 'val' for the Trainer's")
        elif isinstance(val_dataloader, str) and val_dataloader != "val":
            raise ValueError(f"val_dataloader must be a loader, or 'val' for the Trainer's, got {val_dataloader!r}")
        if val_loss is not None and val_step == "training_step":
            raise ValueError("val_loss is what validation_step logs; it has no effect with val_step='training_step'")
        per_target = options.per_target
        penalties = per_target("penalty", penalty, named, 0.0, options.check_cost)
        sizes: dict[str, int | float | None] = per_target(
            "target_size",
            target_size,
            named,
            None,
            options.check_size,
        )
        if not isinstance(target_size, dict) and any(penalties.values()):
            sizes = {target: size if penalties[target] else None for target, size in sizes.items()}
        super().__init__(
            options.GateOptions(
                targets=named,
                settings=options.Settings(estimator, temperature, temperature_end, evaluation, per_example),
                penalty=penalties,
                entropy_weight=per_target("entropy_weight", entropy_weight, named, 0.0, options.check_cost),
                target_size=sizes,
                probability=per_target(
                    "probability", probability, named, _DEFAULT_PROBABILITY, options.check_probability
                ),
                lr=lr,
                max_norm=max_norm,
                warm_up_epochs=warm_up_epochs,
                every_n_steps=every_n_steps,
                same_samples=rank_samples == "same",
                seed=seed,
                attribute=attribute,
            )
        )
        self.val_dataloader = val_dataloader
        self.val_loss = val_loss
        self.val_step: Source | None = val_step

    # ---- life of a Trainer entry point ---------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put gates into the module.

        A module that has a ``setup`` or ``configure_model`` hook gets them after these.

        Raises:
            TypeError: If the Trainer is of the package ``pytorch_lightning``.
            ValueError: If strategy, precision, module, targets or data do not suit, see the class.
        """
        check_trainer(trainer, NAME)
        if stage == TrainerFn.FITTING:
            checks.check_fit(trainer, pl_module, self.val_dataloader)
        if not makes_layers_late(pl_module):
            self._gate(trainer, pl_module)
            return
        configure_model = pl_module.configure_model

        def configure_and_gate() -> None:
            vars(pl_module).pop("configure_model", None)
            configure_model()
            self._gate(trainer, pl_module)

        # Called by Lightning once after all setup hooks, and before it restores a checkpoint.
        vars(pl_module)["configure_model"] = configure_and_gate

    def _gate(self, trainer: Trainer, module: LightningModule) -> None:
        sites = find_sites(module, self.options.targets)
        checks.check_sites(trainer, module, sites, self.options)
        found = getattr(module, self.options.attribute, None)
        if isinstance(found, GateSet):
            checks.check_gates(found, sites, self.options)
            gates = found
        else:
            if self._delivered and self._set is not None and self._set.sites == sites:
                gates = self._set  # what ranks have trained that this process has forked or spawned
            else:
                gates = GateSet(sites, self.options)
            attach(module, gates, self.options.attribute)
        if trainer.state.fn == TrainerFn.FITTING and self._set is not None and self._set is not gates:
            self._forget()
        if trainer.state.fn == TrainerFn.FITTING or self._set is None:
            self._set, self._delivered = gates, False
        ranks.keep_out_of_reducer(trainer, module, gates.parameters())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the logits over from the optimisers of the user."""
        if is_search_for_lr_or_batch_size(trainer):
            return
        gates = self._known()
        check_optimizers(trainer.optimizers, NAME)
        ranks.take_out_of_optimizers(trainer.optimizers, gates.parameters())
        ranks.copy_from_rank_zero(trainer, gates.parameters())
        loss = None
        if self.val_dataloader is not None:
            loss = ValidationLoss(trainer, pl_module, self.val_loss, NAME, "gate steps", self.val_step)
        self._steps = GateSteps(trainer, pl_module, gates, self.options, self._counts, loss)
        if self._pending is not None:
            self._steps.load_state_dict(self._pending)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the validation data, and begin.

        Raises:
            ValueError: If there is none, or less than a batch.
        """
        steps = self._steps
        if steps is None:
            return
        pending, self._pending = self._pending, None
        if trainer.global_step == 0:
            self._counts.begun = self._counts.steps
        self._plan(trainer)
        if self.val_dataloader is not None:
            own = None if isinstance(self.val_dataloader, str) else self.val_dataloader
            loader = find_loader(trainer, own, NAME, "gate steps")
            steps.open_stream(loader, (pending or {}).get("stream"))
        steps.start()
        publish(trainer, steps)

    def _plan(self, trainer: Trainer) -> None:
        planned = float(trainer.estimated_stepping_batches)
        if self.options.settings.temperature_end is not None and not math.isfinite(planned):
            raise ValueError("temperature_end needs a run whose length is known: give max_epochs or max_steps")
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            planned *= 1 - min(self.options.warm_up_epochs / trainer.max_epochs, 1)
        self._planned = max(planned, 1.0)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch, with open gates in the warm-up."""
        if self._steps is not None:
            self._steps.epoch_starts()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the samples of this batch follow from the seed."""
        if self._steps is not None:
            self._steps.batch_starts(self._planned)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Train the logits."""
        if self._steps is not None:
            if self._steps.batch_ends(not trainer.fit_loop._should_accumulate()):
                publish(trainer, self._steps)
            log(trainer, self._steps)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Let samples in evaluation follow from the seed."""
        self._evaluates(trainer, pl_module, batch_idx, dataloader_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Let samples in evaluation follow from the seed."""
        self._evaluates(trainer, pl_module, batch_idx, dataloader_idx)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Let samples in evaluation follow from the seed."""
        self._evaluates(trainer, pl_module, batch_idx, dataloader_idx)

    def _evaluates(self, trainer: Trainer, module: LightningModule, batch_idx: int, dataloader_idx: int) -> None:
        gates = getattr(module, self.options.attribute)
        reseed_evaluation(trainer, gates, self.options, batch_idx, dataloader_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the numbers of the epoch."""
        if self._steps is not None:
            publish(trainer, self._steps)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if gates were not trained."""
        steps = self._steps
        if steps is None:
            return
        if not self._counts.gate_steps:
            rank_zero_warn(
                f"{NAME} made no step in {self._counts.batches} training batches: no gate was trained. Train longer, "
                "or lower warm_up_epochs and every_n_steps; and see that the loss depends on the targets"
            )
        elif unused := [name for i, name in enumerate(self._known().named()) if i not in steps.used]:
            rank_zero_warn(
                f"{NAME}: the gates of {unused} have no part in the loss and stayed as they were; their modules are "
                "not called, or not by their forward"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release what a ``fit`` holds."""
        self._release(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release what a ``fit`` holds."""
        if stage == TrainerFn.FITTING:
            deliver_to_main_process(trainer, self._id, self)
        self._release(pl_module)

    def _release(self, module: LightningModule) -> None:
        vars(module).pop("configure_model", None)
        if self._steps is not None:
            self._steps.close()
            # A further fit of this module goes on from here.
            self._pending = self._steps.state_dict()
            self._steps = None
