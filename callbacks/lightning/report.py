"""TuneReportCallback: makes a Lightning training script a trial that can be stopped, paused and resumed."""

from __future__ import annotations

import math
import multiprocessing
import os
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from sthyper.callbacks.lightning import _checks, _trainer
from sthyper.callbacks.lightning._checkpoints import Keep
from sthyper.callbacks.lightning._decision import CONTINUE, note_decision, noted_decision
from sthyper.callbacks.lightning._metrics import MetricReader, name_metrics
from sthyper.callbacks.lightning._ranks import (
    end_process,
    is_forked_rank,
    on_rank_exit,
    on_rank_zero,
    reason_of,
    was_ended,
)
from sthyper.callbacks.lightning._saving import TrialCheckpoints
from sthyper.constants import ENV_VERBOSE
from sthyper.report import Reporter, TrialExit

__all__ = ["TuneReportCallback"]

_LIGHTNING_FOLDER = "lightning"


class TuneReportCallback(Callback):
    """Reports metrics to the tuner after each epoch, and stops, pauses and resumes the training as the tuner decides.

    Add it to the ``Trainer`` of a training script, and the script is a trial::

        config = Reporter().config or {"lr": 1e-3, "epochs": 10}          # the latter when run by hand
        trainer = Trainer(max_epochs=config["epochs"], callbacks=[TuneReportCallback({"accuracy": "val/acc"})])
        trainer.fit(Model(config["lr"]), datamodule=data)
        trainer.test(datamodule=data)                                     # only trials that were not stopped get here

    *Stop and pause.* Each report is answered. On STOP or PAUSE training ends in order, at this epoch, on all ranks
    (``trainer.should_stop``), and ``fit`` returns. The next use of a Trainer with this callback in the process ends the
    process (:class:`sthyper.report.TrialExit`); scripts that want to know sooner read :attr:`decision`.
    ``min_epochs`` and ``min_steps`` of the Trainer delay the end and are warned of.

    *Checkpoints.* Before each report a checkpoint is saved in the trial's folder. A resumed trial is restored from it
    by itself: model, optimisers, schedulers, loops, callbacks and random generators (of ``random``, NumPy, torch, and
    of the loaders and their samplers). Where training itself is deterministic it ends with the weights of a run
    without a pause, bit for bit. Other generators belong into the state of the module; workers that persist over epochs
    and draw numbers start anew. After a checkpoint in the middle of an epoch (``on="validation_end"`` with
    ``val_check_interval``) the loader runs through the batches seen before, unless it has a ``state_dict``; gradients
    that wait for ``accumulate_grad_batches`` are lost there. Use one ``fit`` a script.

    *Several processes.* Under DDP (``ddp``, ``ddp_fork``, ``ddp_spawn``), FSDP, DeepSpeed and ``ModelParallelStrategy``
    rank 0 reports, all ranks end at the same step, save and restore together. Log the metrics with ``sync_dist=True``;
    one that differs between the ranks is reported as their mean, and warned of. Where Lightning forks or spawns the
    ranks, the script hears the decision from them when ``fit`` returns.

    *Files and console.* In a trial, files that would go to the working directory go to ``lightning/`` in the trial's
    folder (``default_root_dir``, TensorBoard and CSV logs, ``ModelCheckpoint`` without ``dirpath``), the configuration
    is written to all loggers, and there is no progress bar and no model summary unless ``STHYPER_VERBOSE=1``.

    Run by hand, outside an experiment, the script trains as usual; reports are printed.

    Args:
        metrics: What to report: the name of a metric that was logged with ``self.log``, a list of names, or a
            dictionary of reported name -> logged name (``{"accuracy": "val/acc"}``). The scheduler's metric must be
            among the reported names.
        on: When: ``"train_epoch_end"``, or ``"validation_end"`` for several validations an epoch.
        every_n_epochs: Report every n-th epoch (with ``"validation_end"``: validation) and the last one. The rung
            levels of the scheduler must be among them.
        resource_attr: Name under which the resource is reported: the epochs done, or with ``"validation_end"`` the
            validation runs so far (sanity check excluded, earlier runs of the trial included).
        checkpoint: Whether to save checkpoints. Without them a resumed trial trains again from the start.
        keep: Which checkpoints stay: ``"best+last"`` (best by the scheduler's metric), ``"last"`` or ``"all"``.
        missing: When a metric was not logged: ``"error"``, or ``"skip"`` the report of this epoch.

    Raises:
        TypeError: If ``metrics`` or a flag is of a wrong type.
        ValueError: If an argument is not one of the allowed values.
    """

    def __init__(
        self,
        metrics: str | list[str] | dict[str, str],
        on: Literal["train_epoch_end", "validation_end"] = "train_epoch_end",
        every_n_epochs: int = 1,
        resource_attr: str = "epoch",
        checkpoint: bool = True,
        keep: Keep = "best+last",
        missing: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__()
        _checks.check_choice("on", on, ("train_epoch_end", "validation_end"))
        _checks.check_choice("keep", keep, ("best+last", "last", "all"))
        _checks.check_choice("missing", missing, ("error", "skip"))
        if isinstance(every_n_epochs, bool) or not isinstance(every_n_epochs, int):
            raise TypeError(f"every_n_epochs must be an int, got {every_n_epochs!r}")
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        sources = name_metrics(metrics)
        if not isinstance(resource_attr, str) or not resource_attr:
            raise TypeError(f"resource_attr must be a name, got {resource_attr!r}")
        if resource_attr in sources:
            raise ValueError(f"resource_attr={resource_attr!r} is the name of a metric, too; rename one of them")
        self.on = on
        self.every_n_epochs = every_n_epochs
        self.resource_attr = resource_attr
        self.checkpoint = checkpoint
        self.keep: Keep = keep
        self.missing = missing
        self._reader = MetricReader(sources, missing)
        self._decision = CONTINUE
        self._resource = 0
        self._validations = 0
        self._best: dict[str, Any] | None = None
        self._had_fit = False
        self._start()

    def _start(self) -> None:
        """Make what belongs to this process and is not pickled."""
        self._reporter = Reporter(on_stop="return")
        self._checkpoints = TrialCheckpoints(self.keep, self.resource_attr, self.on == "train_epoch_end")
        self._last: _RunsLast | None = None

    # ---- what scripts may ask ------------------------------------------------------------------------

    @property
    def metrics(self) -> dict[str, str]:
        """Reported name -> logged name."""
        return dict(self._reader.sources)

    @property
    def decision(self) -> str:
        """The last answer of the tuner: ``"CONTINUE"``, ``"STOP"`` or ``"PAUSE"``."""
        # Where Lightning forks or spawns the ranks, this process has not heard it.
        return self._decision if self._decision != CONTINUE else noted_decision(self._reporter)

    # ---- state ---------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints."""
        return f"sthyper.TuneReportCallback{{'on': {self.on!r}, 'resource_attr': {self.resource_attr!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in types that load with ``weights_only=True``."""
        return {
            "trial_id": self._reporter.trial_id,
            "resource": self._resource,
            "validations": self._validations,
            "best": self._best,
            "metrics": self._reader.state_dict(),
            **self._checkpoints.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; the rest of it is put in place when training starts."""
        self._resource = state_dict["resource"]
        self._validations = state_dict["validations"]
        # The best of another trial, whose checkpoint this one was started from, is not this one's.
        self._best = state_dict["best"] if state_dict["trial_id"] == self._reporter.trial_id else None
        self._reader.load_state_dict(state_dict["metrics"])
        self._checkpoints.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_reporter", "_checkpoints", "_last", "_log", "log_dict")
        return {k: v for k, v in self.__dict__.items() if k not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    # ---- life of a Trainer entry point ---------------------------------------------------------------

    @property
    def log(self) -> Any:
        """The module's ``log``, which Lightning gives to every callback."""
        return self._log

    @log.setter
    def log(self, function: Any) -> None:
        self._log = function
        # Lightning does this at the start of each entry point and before the loggers open their files; there is no hook
        # as early.
        trainer = getattr(getattr(function, "__self__", None), "_trainer", None)
        if isinstance(trainer, Trainer):
            self._move_in(trainer)

    def _move_in(self, trainer: Trainer) -> None:
        if self._reporter.connected and self._reporter.trial_dir is not None:
            _trainer.move_to_trial(trainer, Path(self._reporter.trial_dir) / _LIGHTNING_FOLDER)
            if self._reporter.run > 0:
                _trainer.overwrite_cli_config(trainer)
            if os.environ.get(ENV_VERBOSE) != "1":
                _trainer.silence(trainer)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare a ``fit``; end the process if the trial was stopped or paused before.

        Raises:
            TypeError: If the Trainer is of the package ``pytorch_lightning``.
            TrialExit: If an earlier ``fit`` was stopped or paused.
            ValueError: If the scheduler's metric or resource would not be reported, or under a strategy that is not
                supported.
        """
        _checks.check_trainer(trainer)
        if (decision := self.decision) != CONTINUE:
            end_process(trainer, decision)
        if is_forked_rank(trainer):
            on_rank_exit(trainer, lambda: self._rank_exits(trainer))
        if (
            stage != TrainerFn.FITTING
            or not self._is_training(trainer)
            or _trainer.is_search_for_lr_or_batch_size(trainer)
        ):
            return
        _checks.check_strategy(trainer, self.checkpoint)
        self._reporter.send_rank(trainer.global_rank, trainer.world_size)
        self._move_in(trainer)
        objective = self._reporter.objective
        _checks.check_objective(objective, self._reader.sources, self.resource_attr)
        _checks.warn_of_minimum(trainer, objective, self.every_n_epochs)
        self._last = _RunsLast(self)
        _trainer.add_callback(trainer, self._last)
        folder = self._reporter.checkpoint_dir if self.checkpoint else None
        if folder is not None:
            self._checkpoints.open(trainer, folder, self._reporter.trial_id, restore=not self._had_fit)
        self._had_fit = True
        config = self._reporter.config
        if config:
            for logger in trainer.loggers:
                logger.log_hyperparams(config)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a ``fit`` whose model is restored."""
        if self._is_training(trainer):
            self._checkpoints.fit_starts(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the rest of a restored state in place."""
        if self._is_training(trainer):
            self._checkpoints.training_starts(trainer, pl_module, self._resource)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch."""
        self._reader.epoch_starts()
        self._checkpoints.epoch_starts(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Go on training."""
        self._checkpoints.batch_starts()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what was logged before the validation."""
        if self._is_training(trainer):
            self._reader.validation_starts(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the validation."""
        if self._is_training(trainer):
            self._validations += 1
            self._reader.validation_ends(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the tuner that this trial fails, whatever its exit code will be."""
        self._release(trainer)
        if not was_ended(exception):
            self._reporter.bye(False, reason_of(trainer, exception))
        elif not isinstance(exception, TrialExit) and not is_forked_rank(trainer):
            # The ranks of this process were ended.
            raise TrialExit(self.decision) from None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the Trainer as it was."""
        self._release(trainer)
        if self._decision != CONTINUE and is_forked_rank(trainer):
            _trainer.allow_no_more_ranks(trainer, self._decision)
        if multiprocessing.parent_process() is not None:
            self._reporter.close()  # a rank that multiprocessing forked ends without exit handlers

    def _rank_exits(self, trainer: Trainer) -> None:
        """Tell a rank whose Python code has failed from one that was killed; to be called when its process exits.

        Lightning has no hook for it: exceptions of ranks that it has forked or spawned are handled in the process that
        waits for them.
        """
        if self._last is not None:
            self._reporter.bye(False, "killed" if trainer.received_sigterm else None)

    def _release(self, trainer: Trainer) -> None:
        self._checkpoints.close()
        if self._last is not None:
            _trainer.remove_callbacks(trainer, lambda callback: callback is self._last)
            self._last = None

    # ---- reports -------------------------------------------------------------------------------------

    def _is_training(self, trainer: Trainer) -> bool:
        fast_dev_run = getattr(trainer, "fast_dev_run", False)
        return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not fast_dev_run

    def _before_epoch(self, trainer: Trainer) -> None:
        """All other callbacks have seen the start of the epoch."""
        if self._is_training(trainer):
            self._checkpoints.epoch_started(trainer)

    def _after_epoch(self, trainer: Trainer) -> None:
        """All other callbacks have seen the end of the epoch."""
        if self.on == "train_epoch_end" and self._is_training(trainer):
            self._report(trainer, trainer.current_epoch + 1, is_last=_is_last_epoch(trainer))

    def _after_validation(self, trainer: Trainer) -> None:
        """All other callbacks have seen the end of the validation."""
        if self.on == "validation_end" and self._is_training(trainer):
            self._report(trainer, self._validations, is_last=_is_last_epoch(trainer) and trainer.is_last_batch)

    def _report(self, trainer: Trainer, resource: int, is_last: bool) -> None:
        # Lightning may repeat the end of the epoch that a checkpoint was saved in.
        if self._decision != CONTINUE or resource <= self._resource:
            return
        if resource % self.every_n_epochs and not is_last:
            return
        values = self._reader.read(trainer)
        if values is None:
            return
        self._resource = resource
        improved = self._update_best(values, resource)
        self._checkpoints.save(trainer, resource, improved)
        try:
            self._decision = on_rank_zero(trainer, lambda: self._ask(resource, values))
        except TrialExit as end:
            end_process(trainer, end.decision)
        self._checkpoints.report_answered(trainer)
        if self._decision != CONTINUE:
            trainer.should_stop = True

    def _ask(self, resource: int, values: dict[str, float]) -> str:
        """Report, on rank 0, and return the decision; leave a note of it for other processes of the trial."""
        try:
            decision = self._reporter(**{self.resource_attr: resource}, **values)
        except TrialExit as end:  # the tuner is gone
            note_decision(self._reporter, end.decision)
            raise
        if decision != CONTINUE:
            note_decision(self._reporter, decision)
        return decision

    def _update_best(self, values: dict[str, float], resource: int) -> bool:
        """Return whether the scheduler's metric is better than ever before in this trial."""
        objective = self._reporter.objective
        if objective is None:
            return False
        value = values[objective["metric"]]
        if not math.isfinite(value):
            return False
        old = None if self._best is None else self._best["value"]
        if old is not None and not (value > old if objective["mode"] == "max" else value < old):
            return False
        self._best = {"value": value, "resource": resource}
        return True


class _RunsLast(Checkpoint):
    """Comes after all other callbacks, those that watch a metric (EarlyStopping, ModelCheckpoint) included.

    Lightning calls these after the module's own ``on_train_epoch_end``, and tells them by their class. What they
    changed at the end of this epoch is in the checkpoint, and what the module logged there can be reported.
    """

    def __init__(self, owner: TuneReportCallback) -> None:
        self._owner = owner

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._owner._after_epoch(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._owner._before_epoch(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._owner._after_validation(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._owner._checkpoints.see_content(checkpoint)


def _is_last_epoch(trainer: Trainer) -> bool:
    steps_done = 0 <= trainer.max_steps <= trainer.global_step
    return trainer.current_epoch + 1 == trainer.max_epochs or steps_done or trainer.should_stop
