"""SelfTuningCallback: tunes hyperparameters of a Lightning module by gradient while it is trained."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from sthyper.callbacks.lightning import _own_parameters as ranks
from sthyper.callbacks.lightning import _self_tuning_checks as checks
from sthyper.callbacks.lightning._delivery import deliver_to_main_process
from sthyper.callbacks.lightning._self_tuning_options import SelfTuneOptions, make_hyperparameters
from sthyper.callbacks.lightning._self_tuning_state import SelfTuningState
from sthyper.callbacks.lightning._self_tuning_steps import Updates, size_of
from sthyper.callbacks.lightning._trainer import is_search_for_lr_or_batch_size
from sthyper.callbacks.lightning._validation_data import find_loader
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.steps import Update
from sthyper.selftuning.trainer import SelfTunerOptions
from sthyper.selftuning.transform import SelfTuning

__all__ = ["SelfTuningCallback"]

_DEFAULTS = SelfTunerOptions()


class SelfTuningCallback(SelfTuningState):
    """Tunes hyperparameters of an ordinary :class:`LightningModule` by gradient, within its one training run.

    Layers get best responses to perturbed hyperparameters, and hyper steps on validation batches move these down the
    gradient of the validation loss (MacKay et al. 2019, arXiv 1903.03088; Bae & Grosse 2020, arXiv 2010.13514)::

        from sthyper.config_space import uniform

        tuning = SelfTuningCallback({"rate": uniform(0, 0.9)}, dropout={"*": "rate"})
        Trainer(max_epochs=30, callbacks=[tuning]).fit(model, train_loader, val_loader)
        tuning.values()                       # {"rate": 0.31}
        tuning.schedule.plot("rates.png")
        tuning.export(model)                  # the plain model

    *What is tuned.* Rates of dropout layers by ``dropout=``, and whatever ``training_step`` does with a strength
    ``self.selftuning.hyperparameters["name"]``: 0-d at the centre, one value for each example in a perturbed pass.
    Augmentation that depends on hyperparameters belongs into ``training_step``, too.

    *What is called.* ``training_step`` trains the weights, as always. With ``kind="delta"`` it is called once more for
    each batch to train the responses, along a perturbation: unseen by loggers, metrics, running statistics, buffers,
    attributes of the module and global random generators, so that weights, metrics and random numbers are those of a
    training without it. Its loss must go through loss functions of :mod:`torch.nn.functional`, or call
    :func:`sthyper.selftuning.linearise.collapse`; otherwise take ``update="nonlinear"`` or ``"joint"``. With
    ``"joint"`` and with ``kind="stn"`` the one call is perturbed, and the optimiser of the module trains the responses.
    Hyper steps call ``validation_step`` in evaluation mode, equally unseen. Sanity check, validation, test and
    prediction run at the centre.

    *Several processes.* A single device, and DDP: hypergradients and response gradients are averaged, hyperparameters
    are the same on all ranks, bit for bit. Other strategies are refused. Where Lightning forks or spawns the ranks, the
    script has :meth:`values`, :meth:`scales` and :attr:`schedule` after ``fit``, and the weights; the trained responses
    are in checkpoints.

    *Gates and choices.* Finite domains (``choice``, ``ordinal``, ``finrange`` ...) are sampled, for each example of a
    batch of its own, and hyper steps move their probabilities by straight-through gradients. The module reads them
    wherever it also validates: ``self.selftuning.hyperparameters.mix("activation", [x.relu(), x.tanh()])``, or
    :class:`~sthyper.selftuning.OneOf`. In validation the most probable option counts. Logged are probabilities, as
    ``value/<name>=<option>``.

    *Checkpoints* hold everything, and training that is resumed (``ckpt_path``, or a trial of
    :class:`~sthyper.callbacks.TuneReportCallback`) goes on exactly. Responses are in the module's ``state_dict`` under
    ``selftuning``: without the callback, load with ``strict=False``. Gradients that wait for
    ``accumulate_grad_batches`` are lost there.

    *Logged*, to all loggers at ``log_every_n_steps``: ``selftuning/value/<name>``, ``scale/<name>``,
    ``hypergradient/<name>`` (absolute values), ``val_loss`` and ``skipped``; all of it is in
    ``trainer.callback_metrics``, to be watched or reported.

    Args:
        hyperparameters: :class:`~sthyper.selftuning.Hyperparameters`, or a configuration space: domains by name. In
            configuration files a domain is ``{lower: 0.0, upper: 0.9, log: false, start: 0.1}``, or as
            :func:`sthyper.config_space.to_dict` writes it.
        val_dataloader: Data for hyper steps. Default is the first validation loader of the Trainer. It is gone round
            without touching the Trainer's own validation.
        kind: ``"delta"`` or ``"stn"``, see :func:`sthyper.selftuning.transform.self_tune`.
        response: ``"auto"``, ``"full"`` or ``"lowrank"``.
        update: How responses of kind ``"delta"`` are trained: ``"linearised"`` (default), ``"nonlinear"``, ``"joint"``.
        rank: Rank of responses of form ``"lowrank"``.
        groups: In how many groups batches are cut where perturbed examples have weights of their own.
        include: Patterns of paths of layers that respond, default all.
        exclude: Patterns of paths of layers that do not.
        dropout: Which dropout layers take their rate from which hyperparameter: patterns of paths -> names;
            ``"auto"`` for those whose path is a name, ``None`` for no layer.
        batch_dim: Axis of the examples in the inputs of layers, for all or by patterns of paths.
        start: Values to begin with, for a configuration space.
        scale: Standard deviations of the perturbations (unconstrained), for a configuration space.
        shared: Names that whole batches share, for a configuration space.
        tune: ``False`` trains the plain network with hyperparameters that stay.
        train_steps: Optimiser steps between hyper steps. Default is 3, in long runs 4.
        hyper_steps: Hyper steps that follow them; 0 trains under perturbation only.
        warm_up_epochs: Epochs before the first hyper step. Default is a tenth of the run; in long ones, where at least
            1600 optimiser steps follow then, a quarter, in whose first half there are no additional calls of
            ``training_step``.
        rest: Part of the run, after the warm-up, at whose end the hyperparameters rest: there are neither hyper steps
            nor additional calls of ``training_step``; where one pass trains weights and responses it goes on as it is.
            0 tunes to the end.
        response_lr: Learning rate of the responses (Adam). Default is .003.
        response_part: Part of the examples of a batch (at least 32 of them, of up to 64 all) that the additional call
            of ``training_step`` gets, others each time. Default is a quarter. Batches whose tensors do not all have
            their examples on one axis are taken whole.
        response_every: After ``response_warm_up``, the additional call is made in one of so many optimiser steps (on
            all their batches). Default is 2, in long runs 4.
        response_warm_up: Optimiser steps in which it is made each time when it begins. Default is 1000, in
            long runs 500.
        hyper_lr: Learning rate of the hyperparameters (Adam with the coefficients .9 and .99), at the beginning.
        hyper_lr_end: Part of it, and of that of the scales, that is left at the end of the run, to which they fall.
        tune_scales: Whether scales are tuned too.
        scale_lr: Their learning rate (Adam). Default is that of the hyperparameters.
        entropy_weight: Weight of the entropy that keeps tuned scales large.
        bound: Unconstrained numbers stay within this distance from the middle of their range; ``None`` for no bound.
        scale_bounds: Smallest and largest tuned scale; ``None`` for none.
        max_norm: Response gradients are scaled down to this norm. (The Trainer's clipping sees the user's gradients.)
        val_loss: Name of the value logged in ``validation_step`` that hyper steps minimise. Default is what
            ``validation_step`` returns; if it returns none, the loss of ``training_step`` in evaluation mode.
        seed: Seed of perturbations, responses and the random world of the additional passes.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If one is out of range, unknown or without effect.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters | dict[str, Any],
        val_dataloader: Any = None,
        kind: Literal["delta", "stn"] = "delta",
        response: Literal["auto", "full", "lowrank"] = "auto",
        *,
        update: Update | None = None,
        rank: int = 8,
        groups: int | None = None,
        include: str | list[str] | None = None,
        exclude: str | list[str] | None = None,
        dropout: dict[str, str] | Literal["auto"] | None = "auto",
        batch_dim: int | dict[str, int] = 0,
        start: dict[str, Any] | None = None,
        scale: float | dict[str, float] = 1.0,
        shared: list[str] | None = None,
        tune: bool = True,
        train_steps: int | None = None,
        hyper_steps: int = _DEFAULTS.hyper_steps,
        warm_up_epochs: int | None = None,
        rest: float = 0.0,
        response_lr: float | None = None,
        response_part: float | None = None,
        response_every: int | None = None,
        response_warm_up: int | None = None,
        hyper_lr: float = _DEFAULTS.hyper_lr,
        hyper_lr_end: float = _DEFAULTS.hyper_lr_end,
        tune_scales: bool = False,
        scale_lr: float | None = None,
        entropy_weight: float = 0.0,
        bound: float | None = _DEFAULTS.bound,
        scale_bounds: tuple[float, float] | None = _DEFAULTS.scale_bounds,
        max_norm: float | None = None,
        val_loss: str | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
        transformation = SelfTuneOptions(kind, response, rank, groups, include, exclude or (), dropout, batch_dim, seed)
        super().__init__(make_hyperparameters(hyperparameters, start, scale, shared, seed), transformation)
        self.val_dataloader = val_dataloader
        self.options = SelfTunerOptions(
            tune=tune,
            update=update,
            train_steps=train_steps,
            hyper_steps=hyper_steps,
            warm_up_epochs=warm_up_epochs,
            rest=rest,
            response_lr=response_lr,
            response_part=response_part,
            response_every=response_every,
            response_warm_up=response_warm_up,
            hyper_lr=hyper_lr,
            hyper_lr_end=hyper_lr_end,
            scale_lr=scale_lr,
            tune_scales=tune_scales,
            entropy_weight=entropy_weight,
            bound=bound,
            scale_bounds=None if scale_bounds is None else (scale_bounds[0], scale_bounds[1]),
            groups=groups,
            max_norm=max_norm,
        )
        if kind == "stn" and update not in (None, "joint"):
            raise ValueError(f"update={update!r} is for kind='delta'; kind='stn' has 'joint' only")
        # Without continuous hyperparameters there are no responses to train.
        joint = kind == "stn" or not self.hyperparameters.continuous
        if update not in (None, "joint") and not self.hyperparameters.continuous:
            raise ValueError(f"update={update!r} has no effect on gates and choices, which layers do not respond to")
        self._update: Update = "joint" if joint else update or "linearised"
        if not self._separate:
            for name, value in (
                ("response_lr", response_lr),
                ("response_part", response_part),
                ("response_every", response_every),
                ("response_warm_up", response_warm_up),
                ("max_norm", max_norm),
            ):
                if value is not None:
                    raise ValueError(
                        f"{name} has no effect with kind={kind!r} and update={self._update!r}: the optimiser of "
                        "configure_optimizers trains the responses, with the Trainer's gradient_clip_val"
                    )
        self.val_loss = val_loss
        self.seed = seed

    @property
    def _separate(self) -> bool:
        """Whether the callback trains the responses."""
        return self._update != "joint"

    @property
    def _needs_data(self) -> bool:
        return self.options.tune and self.options.hyper_steps > 0

    # ---- life of a Trainer entry point ---------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the module self-tuning.

        A module that has a ``setup`` or ``configure_model`` hook is transformed after these.

        Raises:
            TypeError: If the Trainer is of the package ``pytorch_lightning``.
            ValueError: If strategy, precision, module or data do not suit, see the class.
        """
        checks.check_trainer(trainer)
        if stage == TrainerFn.FITTING:
            checks.check_fit(trainer, pl_module, self.val_dataloader is not None or not self._needs_data)
        self._off.close()
        if not self.options.tune:
            self._off.enter_context(self.hyperparameters.off())
        if not checks.makes_layers_late(pl_module):
            self._transform(trainer, pl_module)
            return
        configure_model = pl_module.configure_model

        def configure_and_transform() -> None:
            vars(pl_module).pop("configure_model", None)
            configure_model()
            self._transform(trainer, pl_module)

        # Called by Lightning once after all setup hooks, and before it restores a checkpoint.
        vars(pl_module)["configure_model"] = configure_and_transform

    def _transform(self, trainer: Trainer, module: LightningModule) -> None:
        checks.check_module(trainer, module)
        found = checks.self_tuning_part(module)
        if found is None:
            self.transformation.apply(module, self.hyperparameters)
            part: SelfTuning = module.selftuning  # type: ignore[assignment]
        else:
            part = found[1]
            self.transformation.check(part, self.hyperparameters)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if self._part is not None and self._part is not part:
            self._forget()
        self._part = part
        ranks.keep_out_of_reducer(trainer, module, self._own_parameters(part))

    def _own_parameters(self, part: SelfTuning) -> list[nn.Parameter]:
        """Return what neither the optimiser nor DDP's reducer of the user may hold."""
        whole = self._separate or not self.options.tune
        return list(part.parameters() if whole else part.hyperparameters.parameters())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the response parameters."""
        if is_search_for_lr_or_batch_size(trainer):
            return
        part = self._part
        assert part is not None
        checks.check_optimizers(trainer.optimizers)
        ranks.take_out_of_optimizers(trainer.optimizers, self._own_parameters(part))
        if self.options.tune and not self._separate:
            ranks.add_to_optimizer(trainer.optimizers[0], part.responses.parameters())
        ranks.copy_from_rank_zero(trainer, part.parameters())
        if not self.options.tune:
            return
        axis = self.transformation.axis(pl_module)
        self._updates = Updates(
            trainer, pl_module, part, self.options, self._separate, axis, self.val_loss, self.seed, self._counts
        )
        if self._pending is not None:
            self._updates.load_state_dict(self._pending)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the validation data, and plan the run.

        Raises:
            ValueError: If there is none, or less than a batch.
        """
        updates = self._updates
        if updates is not None:
            pending, self._pending = self._pending, None
            updates.plan()
            if self._needs_data:
                loader = find_loader(trainer, self.val_dataloader, checks.NAME, "hyper steps")
                updates.open_stream(loader, (pending or {}).get("stream"))
        self._record.begins(trainer, self._counts.steps)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch."""
        if self._updates is not None:
            self._updates.epoch_starts()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Sample gates and choices, and perturb the batch if weights and responses are trained together."""
        self._pass.close()
        updates = self._updates
        if updates is not None and (not self._separate or len(self.hyperparameters.discrete)):
            size = size_of(batch, updates.axis)
            perturbation = updates.sampled(size) if self._separate else updates.draw(size, updates.groups())
            self._pass.enter_context(self.hyperparameters.use(perturbation))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Train the responses, and tune."""
        self._pass.close()
        counts, updates = self._counts, self._updates
        stepped = not trainer.fit_loop._should_accumulate()
        self._record.add_loss(trainer, outputs)
        if updates is not None and self._separate:
            updates.respond(batch, batch_idx, size_of(batch, updates.axis), self._update == "linearised", stepped)
        counts.batches += 1
        if not stepped:
            return
        counts.steps += 1
        while updates is not None and updates.due():
            self._record.hear(trainer, updates.hyper_step(), counts.steps)
        self._record.log(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate at the centre."""
        self._pass.close()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum the epoch up."""
        self._pass.close()
        self._record.epoch_ends(trainer, self._counts.steps)
        if self._updates is not None and trainer.is_global_zero:
            self._record.name_unused()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if nothing was tuned."""
        if self._needs_data and not self._counts.hyper_steps:
            rank_zero_warn(
                f"SelfTuningCallback made no hyper step in {self._counts.steps} training steps: nothing was tuned. "
                "Train longer, or lower warm_up_epochs and train_steps"
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
        self._pass.close()
        self._off.close()
        vars(module).pop("configure_model", None)
        if self._updates is not None:
            self._updates.close()
            # A further fit of this module goes on from here.
            self._pending = self._updates.state_dict()
            self._updates = None
