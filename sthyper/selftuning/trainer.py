"""SelfTuner: trains a model and tunes its hyperparameters in one run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.selftuning._batches import (
    BatchStream,
    check_loader,
    number_of_batches,
    pair,
    random_state,
    set_random_state,
    to_device,
)
from sthyper.selftuning._trainer_options import (
    EpochRecord,
    NonmonotonicDecay,
    SelfTunerOptions,
    SelfTuningResult,
    StoppedBy,
)
from sthyper.selftuning._trainer_pace import Pace
from sthyper.selftuning._trainer_parts import (
    Best,
    OptimizerOrFactory,
    Optimizers,
    SchedulerOrFactory,
    Schedulers,
    batch_axis,
    copied,
    self_tuning_of,
)
from sthyper.selftuning._trainer_steps import Loss, TrainerSteps, TrainLoss, Transform
from sthyper.selftuning.controls import Control
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.schedule import Schedule
from sthyper.selftuning.steps import Notices

__all__ = ["EpochRecord", "NonmonotonicDecay", "SelfTuner", "SelfTunerOptions", "SelfTuningResult"]

logger = logging.getLogger(__name__)

_VERSION = 2
_GO_ON = "CONTINUE"


class SelfTuner(TrainerSteps):
    """Trains a model and tunes its hyperparameters in one run.

    Each cycle has training steps under perturbation and then hyper steps on validation batches (MacKay et al. 2019,
    https://arxiv.org/abs/1903.03088, and Bae & Grosse 2020, https://arxiv.org/abs/2010.13514). The end is the model of
    the epoch with the lowest validation loss, with its hyperparameters.

    Example::

        hyperparameters = Hyperparameters({"dropout": uniform(0, 0.9)}, start={"dropout": 0.2})
        model = self_tune(Net(), hyperparameters, dropout={"*": "dropout"})
        tuner = SelfTuner(model, hyperparameters, train_loader, val_loader)
        result = tuner.fit(epochs=50)
        result.values, tuner.evaluate(test_loader), export(model)

    Args:
        model: A self-tuning model; for ``tune=False``, and if there are gates and choices only, any. Called with the
            inputs of a batch.
        hyperparameters: Its hyperparameters.
        train_loader: Gives batches ``(inputs, targets)``; both may be nested tensors.
        val_loader: The same, of data that the weights do not see; never transformed. Hyper steps go round it.
        loss: ``(prediction, targets)`` -> loss, of one number or one for each example, which are averaged.
        options: How to train.
        train_loss: ``(prediction, targets, hyperparameters)`` -> loss for training only, of one number or one for each
            example: label smoothing, penalties with the strengths ``hyperparameters[...]``. Default is ``loss``.
        transform: ``(inputs, targets, hyperparameters)`` -> the same for training only: augmentation with the strengths
            ``hyperparameters[...]``. It is called for each update, so that kind ``"delta"`` sees every batch with the
            central strengths (weights) and with perturbed ones (responses).
        weight_optimizer: An optimiser of the weights, or a function from parameters to one. Default is SGD.
        response_optimizer: The same for the responses. Default is Adam; of kind ``"stn"`` that of the weights has them.
        hyper_optimizer: The same for ``hyperparameters.tuned()``. Default is Adam.
        scale_optimizer: The same for ``hyperparameters.raw_scale``, if scales are tuned. Default is Adam.
        lr_scheduler: A scheduler, a function from the optimiser of the weights to one, or a list of these; stepped once
            an epoch, :class:`~torch.optim.lr_scheduler.ReduceLROnPlateau` with the validation loss.
        metrics: ``(prediction, targets)`` -> number, by name; averaged over the validation data after each epoch.
        control: Sets the hyperparameters, for ``tune=False``: a replay, or another control.
        schedule: Records values, scales, losses and hypergradients of all steps and epochs. Default is a new one.
        reporter: A :class:`sthyper.report.Reporter` or something like it: gets ``epoch``, ``val_loss``, ``train_loss``,
            metrics, and each hyperparameter as ``value/<name>`` (of choices the probability of each option, as
            ``value/<name>=<option>``) after each epoch. An answer other than ``"CONTINUE"`` ends the run.
        callback: Called as ``callback(event, tuner)`` after each ``"train_step"``, ``"hyper_step"`` and ``"epoch"``,
            for checkpoints with :meth:`state_dict` among others.
        device: Where model and batches go. Default is where the model is.

    Attributes:
        schedule: The recorded schedule.
        optimizers: The optimisers: ``weights``, ``responses``, ``hyper``, ``scales``.
        history: Records of all epochs, the first one from before training.
        epoch: Number of finished epochs.
        step: Number of training steps.
        hyper_steps: Number of hyper steps.
        best: Loss and number of the best epoch.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If the model is not self-tuning or with other hyperparameters, a loader gives no batch
            (``val_loader``: less than a whole one), an optimiser holds wrong parameters, or an argument has no effect.
    """

    def __init__(
        self,
        model: nn.Module,
        hyperparameters: Hyperparameters,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any],
        loss: Loss = F.cross_entropy,
        *,
        options: SelfTunerOptions | None = None,
        train_loss: TrainLoss | None = None,
        transform: Transform | None = None,
        weight_optimizer: OptimizerOrFactory | None = None,
        response_optimizer: OptimizerOrFactory | None = None,
        hyper_optimizer: OptimizerOrFactory | None = None,
        scale_optimizer: OptimizerOrFactory | None = None,
        lr_scheduler: SchedulerOrFactory | Iterable[SchedulerOrFactory] | None = None,
        metrics: Mapping[str, Loss] | None = None,
        control: Control | None = None,
        schedule: Schedule | None = None,
        reporter: Callable[..., Any] | None = None,
        callback: Callable[[str, SelfTuner], None] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.options = SelfTunerOptions() if options is None else options
        if not isinstance(self.options, SelfTunerOptions):
            raise TypeError(f"options must be SelfTunerOptions, got {options!r}")
        for name, function in (
            ("loss", loss),
            ("train_loss", train_loss),
            ("transform", transform),
            *(metrics or {}).items(),
        ):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a function, got {function!r}")
        state = self_tuning_of(model, hyperparameters, needed=self.options.tune)
        self._kind = None if state is None else state.kind
        if self._kind == "stn" and self.options.update not in (None, "joint"):
            raise ValueError(
                f"update={self.options.update!r} is for kind 'delta'; a model of kind 'stn' has 'joint' only"
            )
        if self.options.tune and (self._kind != "delta" or not hyperparameters.continuous):
            for name in ("response_lr", "response_part", "response_every", "response_warm_up"):
                if getattr(self.options, name) is not None:
                    raise ValueError(
                        f"{name} has no effect here, leave it out: only models of kind 'delta' with continuous "
                        "hyperparameters have responses that are updated apart"
                    )
        if control is not None and self.options.tune:
            raise ValueError("control sets the hyperparameters, so that it needs tune=False")
        if control is not None and control.hyperparameters is not hyperparameters:
            raise ValueError("control sets other hyperparameters than these")
        check_loader(train_loader, "train_loader", whole_batch=False)
        check_loader(val_loader, "val_loader", whole_batch=True)
        if getattr(val_loader, "persistent_workers", False):
            raise ValueError(
                "val_loader must not have persistent_workers: it is read for hyper steps and as a whole in turn"
            )
        if device is not None:
            model.to(device)
            hyperparameters.to(device)
        self.model, self.hyperparameters, self.loss = model, hyperparameters, loss
        self.train_loss, self.transform, self.metrics = train_loss, transform, dict(metrics or {})
        self.control, self.reporter, self.callback = control, reporter, callback
        self.schedule = Schedule() if schedule is None else schedule
        self.device = hyperparameters.raw.device if device is None else torch.device(device)
        groups = None if state is None else state.groups
        self._groups = groups if self.options.groups is None else self.options.groups
        self._axis = batch_axis(model)
        given = {
            "weight_optimizer": weight_optimizer,
            "response_optimizer": response_optimizer,
            "hyper_optimizer": hyper_optimizer,
            "scale_optimizer": scale_optimizer,
        }
        self.optimizers = Optimizers.build(model, hyperparameters, self._kind, self.options, given)
        own = (("hyper_optimizer", self.optimizers.hyper), ("scale_optimizer", self.optimizers.scales))
        self._own_hyper = [
            (optimizer, float(optimizer.param_groups[0]["lr"]))
            for name, optimizer in own
            if optimizer is not None and given[name] is None
        ]
        self._schedulers = Schedulers(lr_scheduler, self.optimizers)
        self._train = BatchStream(train_loader, "train_loader")
        self._val = BatchStream(val_loader, "val_loader")
        self.notices = Notices()
        self.best = Best()
        self.history: list[EpochRecord] = []
        self.epoch = self.step = self.hyper_steps = 0
        self._pace = Pace(self.options)
        self._losses: list[tuple[Tensor, int]] = []
        self._decision = _GO_ON

    # ---- runs ----------------------------------------------------------------------------------------

    def fit(self, epochs: int | None = None, *, progress: Callable[[], float] | None = None) -> SelfTuningResult:
        """Train until so many epochs are done, those before :meth:`load_state_dict` or an earlier call included.

        An interrupt (Ctrl-C) ends the run in order: what has been trained is evaluated.

        Example:
            Half an hour, whatever that is in epochs::

                start = time.monotonic()
                tuner.fit(progress=lambda: (time.monotonic() - start) / 1800)

        Args:
            epochs: Number of epochs in total, warm-up included. ``None``, with ``progress``, for any.
            progress: Returns the part of the run that is done, in [0, 1]: of a time, a number of steps or anything that
                grows. It is asked before each epoch; at 1 the run ends. Warm-up and learning rates of the
                hyperparameters follow it. Default is the part of ``epochs``.

        Returns:
            Losses and hyperparameters. With ``restore_best`` model and hyperparameters are those of the best epoch.

        Raises:
            FloatingPointError: If training diverges before there was any epoch with a finite validation loss.
            ValueError: If ``epochs`` is not positive, there are neither epochs nor ``progress``, or it returns NaN.
        """
        if epochs is None and progress is None:
            raise ValueError("how long to train? Give epochs or progress")
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        self._pace.begin_fit(epochs, progress, number_of_batches(self._train.loader))
        stopped: StoppedBy = "epochs"
        try:
            self._before_training()
            while epochs is None or self.epoch < epochs:
                if not self._losses and self._pace.is_over():
                    stopped = "progress"
                    break
                self.train_epoch()
                reason = self._reason_to_stop()
                if reason is not None:
                    stopped = reason
                    break
        except KeyboardInterrupt:
            logger.warning("interrupted in epoch %d, step %d", self.epoch + 1, self.step)
            stopped = "interrupt"
            self._offer(self.evaluate(), self.epoch + 1)
        if self.best.epoch == 0:
            raise FloatingPointError(
                "training diverged: no epoch had a finite validation loss; lower the learning rate of the weights"
            )
        final = self.hyperparameters.values()
        if self.options.restore_best:
            self.restore_best()
        return SelfTuningResult(
            best_val_loss=self.best.loss,
            best_epoch=self.best.epoch,
            values=self.best.values,
            final_values=final,
            history=tuple(self.history),
            stopped_by=stopped,
            skipped=self.notices.skipped,
            idle=tuple(sorted(self.notices.idle)),
        )

    def train_epoch(self) -> EpochRecord:
        """Train one epoch, or what is left of it after :meth:`load_state_dict`, and evaluate.

        Raises:
            ValueError: If a loader gives no batches.
        """
        self._before_training()
        if not self.model.training:
            self.model.train()
        if not self._losses:  # or a state was loaded in the middle of an epoch
            self._pace.begin_epoch(self.epoch, self.step)
        self._slow_down()
        if self.control is not None and self.control.by == "epoch":
            self.control.set(self.epoch + 1)
        self._finish_cycle()
        while (batch := self._train.next_or_none()) is not None:
            self._train_step(*pair(to_device(batch, self.device), "train_loader"))
            self._finish_cycle()
        return self._end_epoch()

    def restore_best(self) -> None:
        """Go back to the model, the hyperparameters and the optimisers of the best epoch so far.

        Raises:
            RuntimeError: If there is none, or ``restore_best`` is off in the options.
        """
        if self.best.state is None:
            raise RuntimeError("there is no state of a best epoch: none was trained, or restore_best=False")
        self._load_weights(copied(self.best.state))

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on as if it had not been interrupted; loads with ``weights_only=True``.

        It may be taken at any moment at which ``callback`` is called. What it does not hold: random generators of data
        sets, those of torch, NumPy and Python excepted.
        """
        return {
            "version": _VERSION,
            **self._weights(),
            "schedulers": self._schedulers.state_dict(),
            "train": self._train.state_dict(),
            "val": self._val.state_dict(),
            "counts": [self.epoch, self.step, self.hyper_steps],
            "plan": self._pace.state_dict(),
            "losses": [[float(loss), size] for loss, size in self._losses],
            "history": [record.to_dict() for record in self.history],
            "best": self.best.state_dict(),
            "notices": self.notices.state_dict(),
            "schedule": self.schedule.state_dict(),
            "control": {} if self.control is None else self.control.state_dict(),
            "random": random_state(self._train.loader, self._val.loader),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where another run was; its arguments must have been the same.

        Raises:
            ValueError: If the state is that of other hyperparameters, optimisers or schedulers, or of another version.
        """
        if state["version"] != _VERSION:
            raise ValueError(f"the state is of version {state['version']}, this is version {_VERSION}")
        self._load_weights(copied({name: state[name] for name in ("model", "hyperparameters", "optimizers")}))
        self._schedulers.load_state_dict(state["schedulers"])
        self._train.load_state_dict(state["train"])
        self._val.load_state_dict(state["val"])
        self.epoch, self.step, self.hyper_steps = state["counts"]
        self._pace.load_state_dict(state["plan"])
        self._losses = [(torch.tensor(loss, dtype=torch.float64), size) for loss, size in state["losses"]]
        self.history = [EpochRecord(**record) for record in state["history"]]
        self.best.load_state_dict(state["best"])
        self.notices.load_state_dict(state["notices"])
        self.schedule.load_state_dict(state["schedule"])
        if self.control is not None:
            self.control.load_state_dict(state["control"])
        set_random_state(state["random"], self._train.loader, self._val.loader)

    def _weights(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "hyperparameters": self.hyperparameters.state_dict(),
            "optimizers": self.optimizers.state_dict(),
        }

    def _load_weights(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.hyperparameters.load_state_dict(state["hyperparameters"])
        self.optimizers.load_state_dict(state["optimizers"])

    # ---- epochs --------------------------------------------------------------------------------------

    def _slow_down(self) -> None:
        """Set the learning rate of the hyperparameters for this epoch, if it is ours."""
        done = self._pace.tuned_part(self.epoch)
        if done is None:
            return
        self.hyperparameters.set_progress(done)
        part = 1.0 - (1.0 - self.options.hyper_lr_end) * done
        for optimizer, lr in self._own_hyper:
            optimizer.param_groups[0]["lr"] = lr * part

    def _before_training(self) -> None:
        """Evaluate once, so that what is wrong with the evaluation is seen now."""
        if not self.history:
            self._note(math.nan, self.measure())

    def _end_epoch(self) -> EpochRecord:
        sizes = sum(size for _, size in self._losses)
        train_loss = float(sum(loss.cpu() * size for loss, size in self._losses)) / sizes
        self._losses = []
        measured = self.measure()
        self.epoch += 1
        if self.epoch == 1:
            self._warn_of_unread()
        record = self._note(train_loss, measured)
        self._offer(record.val_loss, self.epoch)
        self._schedulers.step(record.val_loss)
        self._call("epoch")
        if self.reporter is not None:
            values = {f"value/{name}": value for name, value in self.hyperparameters.numbers().items()}
            losses = {"val_loss": record.val_loss, "train_loss": record.train_loss}
            self._decision = str(self.reporter(epoch=self.epoch, **losses, **record.metrics, **values) or _GO_ON)
        return record

    def _note(self, train_loss: float, measured: dict[str, float]) -> EpochRecord:
        record = EpochRecord(
            epoch=self.epoch,
            step=self.step,
            hyper_steps=self.hyper_steps,
            train_loss=train_loss,
            val_loss=measured["loss"],
            metrics={name: value for name, value in measured.items() if name != "loss"},
            values=self.hyperparameters.values(),
            scales=self.hyperparameters.scales(),
            lr=float(self.optimizers.weights.param_groups[0]["lr"]),
        )
        self.history.append(record)
        self.schedule.record(
            self.hyperparameters,
            step=self.step,
            epoch=self.epoch,
            train_loss=train_loss,
            val_loss=record.val_loss,
            kind="epoch",
        )
        logger.info("epoch %d: train_loss %.4g, val_loss %.4g", self.epoch, train_loss, record.val_loss)
        return record

    def _offer(self, val_loss: float, epoch: int) -> None:
        keep = self._weights if self.options.restore_best else None
        self.best.offer(val_loss, epoch, self.hyperparameters.values(), keep)

    def _reason_to_stop(self) -> StoppedBy | None:
        record, options = self.history[-1], self.options
        if not (math.isfinite(record.val_loss) or math.isfinite(record.train_loss)):
            logger.error("epoch %d: training diverged, losses are not finite", record.epoch)
            return "divergence"
        if self._decision != _GO_ON:
            return "report"
        if options.patience is not None and self.epoch - self.best.epoch >= options.patience:
            return "patience"
        losses = [earlier.val_loss for earlier in self.history[1:]]
        if options.decay is not None and self.optimizers.lower(options.decay, losses):
            return "learning rate"
        return None

    def _warn_of_unread(self) -> None:
        unread = [name for name in self.hyperparameters.names if name not in self.hyperparameters.read]
        if unread and self.options.tune:
            logger.warning(
                "hyperparameters %s were used nowhere in the first epoch: neither the model, nor the training loss, "
                "nor the transform asked for hyperparameters[name]; what moves them is noise",
                unread,
            )

    def _call(self, event: str) -> None:
        if self.callback is not None:
            self.callback(event, self)
