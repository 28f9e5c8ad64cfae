"""A self-tuning run, or a plain one with fixed hyperparameters, as the objective of a search around it."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sthyper.constants import ST_CHECKPOINTS_DIRNAME, ST_CONFIG_FILENAME
from sthyper.errors import closest
from sthyper.report import Reporter
from sthyper.selftuning.controls import set_values
from sthyper.selftuning.trainer import SelfTuner
from sthyper.selftuning.transform import plain_state_dict
from sthyper.utils import pytorch_load_save_functions

__all__ = ["SelfTuningObjective", "self_tuning_objective"]

logger = logging.getLogger(__name__)

MakeRun = Callable[[dict[str, Any]], SelfTuner]

_MODEL = "model.pt"
_SCHEDULE = "schedule"


@dataclass(frozen=True)
class SelfTuningObjective:
    """A function of a configuration that trains one :class:`SelfTuner`; see :func:`self_tuning_objective`.

    Args:
        make_run: Makes the run of a configuration.
        epochs: Number of epochs, or the key of the configuration that holds it.
        resource_attr: Name under which the epoch is reported.
        values: Whether values and scales are reported.
        checkpoints: Whether to save checkpoints.

    Raises:
        TypeError: If ``make_run`` is no function, or ``epochs`` neither a number nor a key.
        ValueError: If ``epochs`` is not positive, or ``resource_attr`` is the name of a loss.
    """

    make_run: MakeRun
    epochs: str | int = "epochs"
    resource_attr: str = "epoch"
    values: bool = True
    checkpoints: bool = True

    def __post_init__(self) -> None:
        if not callable(self.make_run):
            raise TypeError(f"make_run must be a function from a configuration to a SelfTuner, got {self.make_run!r}")
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, str | int):
            raise TypeError(f"epochs must be a number of epochs, or a key of the configuration, got {self.epochs!r}")
        if isinstance(self.epochs, int) and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if not isinstance(self.resource_attr, str) or not self.resource_attr:
            raise TypeError(f"resource_attr must be a name, got {self.resource_attr!r}")
        if self.resource_attr in ("val_loss", "train_loss"):
            raise ValueError(f"resource_attr={self.resource_attr!r} is the name of a loss")

    @property
    def __name__(self) -> str:
        """Name of the experiment, if it gets none: that of ``make_run``."""
        return str(getattr(self.make_run, "__name__", "self-tuning"))

    def __call__(self, config: dict[str, Any]) -> None:
        """Train with a configuration; reports are the result.

        Args:
            config: The configuration.

        Raises:
            TypeError: If ``make_run`` returns something else than a :class:`SelfTuner`.
            ValueError: If the configuration lacks the number of epochs, or has values of hyperparameters that are
                outside of their bounds or that a control sets.
        """
        epochs = self._epochs_of(config)
        run = self._made(config)
        reporter = Reporter(on_stop="return")
        folder = reporter.checkpoint_dir if self.checkpoints else None
        load, save = pytorch_load_save_functions({"run": run})
        if folder is not None:
            load(folder)
        user_callback = run.callback

        def after(event: str, tuner: SelfTuner) -> None:
            if user_callback is not None:
                user_callback(event, tuner)
            # First the checkpoint, then the report: a trial that is killed between them does one epoch again.
            if event == "epoch" and folder is not None:
                save(folder, tuner.epoch)

        def report(**metrics: Any) -> str:
            if reporter.trial_dir is not None:
                run.schedule.to_csv(Path(reporter.trial_dir) / f"{_SCHEDULE}.csv")
            return reporter(**self._metrics(run, metrics))

        run.callback, run.reporter = after, report
        try:
            stopped_by = run.fit(epochs).stopped_by
        except FloatingPointError as error:
            if not run.history or math.isfinite(run.history[-1].val_loss):
                raise
            # What was reported says enough to the search, which goes on without this configuration.
            logger.warning("%s", error)
            return
        finally:
            if reporter.trial_dir is not None:
                run.schedule.to_json(Path(reporter.trial_dir) / f"{_SCHEDULE}.json")
        if folder is not None:
            _save_model(run, Path(folder) / _MODEL)
        if stopped_by == "interrupt":
            raise KeyboardInterrupt

    def restore(self, trial_dir: str | Path) -> SelfTuner:
        """Return the run of a trial, with the model and the hyperparameters of its best epoch so far.

        Example::

            run = objective.restore(result.best_checkpoint.parent.parent)
            network = export(run.model)

        Args:
            trial_dir: The trial's folder, which holds its configuration and its checkpoints.

        Raises:
            FileNotFoundError: If there is no such trial, or it has no checkpoint that can be loaded.
        """
        folder = Path(trial_dir)
        run = self._made(json.loads((folder / ST_CONFIG_FILENAME).read_text(encoding="utf-8")))
        load, _ = pytorch_load_save_functions({"run": run})
        if not load(str(folder / ST_CHECKPOINTS_DIRNAME)):
            raise FileNotFoundError(f"{folder} has no checkpoint of a self-tuning run that can be loaded")
        if run.options.restore_best:
            run.restore_best()
        return run

    def _epochs_of(self, config: Mapping[str, Any]) -> int:
        if isinstance(self.epochs, int):
            return self.epochs
        if self.epochs not in config:
            raise ValueError(
                f"the configuration lacks the number of epochs, {self.epochs!r}{closest(self.epochs, config)}; it has "
                f"{list(config)}; add it to the space as a constant, or name another key by epochs="
            )
        epochs = config[self.epochs]
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"{self.epochs} must be a whole number of at least 1, got {epochs!r}")
        return epochs

    def _made(self, config: dict[str, Any]) -> SelfTuner:
        run = self.make_run(dict(config))
        if not isinstance(run, SelfTuner):
            raise TypeError(f"make_run must return a SelfTuner, got {run!r}")
        if run.reporter is not None:
            raise ValueError("make_run must leave reporter out: the objective reports")
        continuous = run.hyperparameters.continuous
        given = {
            name: float(config[name]) if name in continuous else config[name]
            for name in run.hyperparameters.names
            if name in config
        }
        if given and run.control is not None:
            raise ValueError(f"the configuration has values of {list(given)}, and so has the control of the run")
        set_values(run.hyperparameters, given)
        return run

    def _metrics(self, run: SelfTuner, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is reported: losses and metrics of the run, values and scales."""
        record = run.history[-1]
        result: dict[str, Any] = {self.resource_attr: record.epoch}
        result |= {"val_loss": record.val_loss, "train_loss": record.train_loss, **record.metrics}
        if self.values:
            result |= {name: value for name, value in metrics.items() if name.startswith("value/")}
            if run.options.tune:
                result |= {f"scale/{name}": value for name, value in record.scales.items()}
        return result


def self_tuning_objective(
    make_run: MakeRun,
    *,
    epochs: str | int = "epochs",
    resource_attr: str = "epoch",
    values: bool = True,
    checkpoints: bool = True,
) -> SelfTuningObjective:
    """Make a self-tuning run, or a plain run with fixed values, an objective for :func:`sthyper.tune` and the Tuner.

    Each trial is one run. A search around it chooses what cannot be tuned inside: learning rates, the architecture,
    the entropy weight, scales to begin with::

        def make_run(config):
            h = Hyperparameters({"dropout": uniform(0, 0.9)}, scale=config["scale"])
            model = self_tune(Net(config["width"]), h, dropout={"*": "dropout"})
            options = SelfTunerOptions(weight_lr=config["lr"])
            return SelfTuner(model, h, train_loader, val_loader, options=options)

        space = {"lr": loguniform(1e-3, 1e-1), "width": randint(16, 64), "scale": uniform(0.5, 1.5), "epochs": 27}
        result = tune(self_tuning_objective(make_run), space, metric="val_loss")

    With ``SelfTunerOptions(tune=False)`` the trial is a plain run, so that a search over ``dropout`` itself is a
    rival of the self-tuning run.

    *Hyperparameters in the configuration.* A key that is the name of a hyperparameter sets its value: where it starts,
    or with ``tune=False`` what it is all along.

    *Reports*, once an epoch: ``epoch``, ``val_loss``, ``train_loss``, the metrics of the run, and as ``value/<name>``
    and ``scale/<name>`` the values and scales. Losses that are not finite end the run, not the experiment.

    *Files.* In the trial's folder ``schedule.csv`` (by epoch) and ``schedule.json`` (all rows). Among its checkpoints
    one of the whole run, from which a paused or killed trial goes on, and, once it has ended, ``model.pt`` with the
    best model, for :meth:`sthyper.experiment.ExperimentResult.load_best`, as plain network and as self-tuning one.

    Args:
        make_run: Makes the run of a configuration, without ``reporter``. Data belong in here, not in its globals: see
            docs/functions.md.
        epochs: Number of epochs, or the key of the configuration that holds it.
        resource_attr: Name under which the epoch is reported.
        values: Whether values and scales are reported.
        checkpoints: Whether to save checkpoints. Without them a resumed trial trains again from the start.

    Raises:
        TypeError: If ``make_run`` is no function, or ``epochs`` neither a number nor a key.
        ValueError: If ``epochs`` is not positive, or ``resource_attr`` is the name of a loss.
    """
    return SelfTuningObjective(make_run, epochs, resource_attr, values, checkpoints)


def _save_model(run: SelfTuner, path: Path) -> None:
    """Write the model, as a whole or not at all: the plain network, and the self-tuning one if it is."""
    is_plain = not hasattr(run.model, "selftuning")
    content: dict[str, Any] = {
        "plain": run.model.state_dict() if is_plain else plain_state_dict(run.model),
        "epoch": run.best.epoch,
        "val_loss": run.best.loss,
        "values": run.hyperparameters.values(),
    }
    if not is_plain:
        content["self_tuning"] = run.model.state_dict()
    temporary = path.with_name(f"{path.name}.tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)
