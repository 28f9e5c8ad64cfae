"""What a self-tuning trainer is made of: its optimisers, schedulers, and the best state so far."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils._pytree import tree_map_only

from sthyper.selftuning._gradients import check_hyper_optimizers, check_optimizers, parameters_of
from sthyper.selftuning._trainer_options import NonmonotonicDecay, SelfTunerOptions
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.transform import SelfTuning, general_parameters, response_parameters

__all__ = [
    "Best",
    "OptimizerOrFactory",
    "Optimizers",
    "SchedulerOrFactory",
    "Schedulers",
    "batch_axis",
    "hyper_adam",
    "response_adam",
    "self_tuning_of",
]

OptimizerOrFactory = Optimizer | Callable[[list[nn.Parameter]], Optimizer]
SchedulerOrFactory = LRScheduler | Callable[[Optimizer], LRScheduler]


def self_tuning_of(model: nn.Module, hyperparameters: Hyperparameters, needed: bool) -> SelfTuning | None:
    """Return what makes a model self-tuning.

    Args:
        model: The model.
        hyperparameters: Those that it should respond to.
        needed: Whether it must be self-tuning, if there are others than gates and choices.

    Raises:
        TypeError: If the arguments are something else.
        ValueError: If it is not self-tuning though it must be, or with other hyperparameters.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {model!r}")
    if not isinstance(hyperparameters, Hyperparameters):
        raise TypeError(f"hyperparameters must be a Hyperparameters object, got {hyperparameters!r}")
    found = [module for module in model.modules() if isinstance(module, SelfTuning)]
    if not found:
        if needed and hyperparameters.continuous:
            raise ValueError("model is not self-tuning; transform it with self_tune(model, hyperparameters) first")
        return None
    if any(state.hyperparameters is not hyperparameters for state in found):
        raise ValueError(
            "model was transformed with other hyperparameters than these; give model.selftuning.hyperparameters"
        )
    if any((state.kind, state.groups) != (found[0].kind, found[0].groups) for state in found):
        raise ValueError("parts of model were transformed with different kinds or groups; transform them alike")
    return found[0]


def batch_axis(model: nn.Module) -> int:
    """Return the axis of the examples in the inputs of a model: that which all of its responding layers name."""
    from sthyper.selftuning._layers_base import LINK

    axes = {module.__dict__[LINK].batch_dim for module in model.modules() if LINK in module.__dict__}
    return axes.pop() if len(axes) == 1 else 0


def hyper_adam(parameters: list[nn.Parameter], lr: float) -> Adam:
    """Return the default optimiser of hyperparameters, or of their scales.

    A run has some hundred hyper steps. With the usual memory of a thousand squared gradients the large ones of the
    beginning would hold a hyperparameter where later ones are small: at the ends of its range.
    """
    return Adam(parameters, lr=lr, betas=(0.9, 0.99))


def response_adam(responses: list[nn.Parameter], lr: float) -> Adam:
    """Return the default optimiser of responses.

    There are as many of them as weights, and Adam's own loop takes a third of an AlexNet's step; its fused form a
    twentieth, where a device has it.
    """
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in responses)
    return Adam(responses, lr=lr, fused=fused or None)


@dataclass
class Optimizers:
    """The optimisers of one run.

    Args:
        weights: Of the weights; of kind ``"stn"`` without an own optimiser for them also of the responses.
        responses: Of the responses.
        hyper: Of the hyperparameters.
        scales: Of the scales.
    """

    weights: Optimizer
    responses: Optimizer | None = None
    hyper: Optimizer | None = None
    scales: Optimizer | None = None

    @classmethod
    def build(
        cls,
        model: nn.Module,
        hyperparameters: Hyperparameters,
        kind: str | None,
        options: SelfTunerOptions,
        given: Mapping[str, OptimizerOrFactory | None],
    ) -> Optimizers:
        """Make the optimisers that were not given, and check the others.

        Args:
            model: The model.
            hyperparameters: Its hyperparameters.
            kind: ``"delta"``, ``"stn"``, or ``None`` for a plain model.
            options: Learning rates.
            given: Optimisers or factories by argument.

        Raises:
            TypeError: If one is neither.
            ValueError: If one holds the wrong parameters, or has no effect.
        """
        general = list(model.parameters()) if kind is None else general_parameters(model)
        own = {id(p) for p in hyperparameters.parameters()}
        general = [p for p in general if id(p) not in own]
        responses = [] if kind is None else response_parameters(model)
        # Without responses there is one optimiser, too.
        weights_of_stn = options.tune and given["response_optimizer"] is None and (kind == "stn" or not responses)

        def sgd(parameters: list[nn.Parameter]) -> Optimizer:
            return SGD(parameters, lr=options.weight_lr, momentum=options.momentum)

        weights = _made(given, "weight_optimizer", general + responses if weights_of_stn else general, sgd)
        if not options.tune:
            for argument in ("response_optimizer", "hyper_optimizer", "scale_optimizer"):
                if given[argument] is not None:
                    raise ValueError(f"{argument} has no effect with tune=False")
            check_optimizers(hyperparameters, {"weight_optimizer": weights})
            return cls(weights)
        if not options.tune_scales and given["scale_optimizer"] is not None:
            raise ValueError("scale_optimizer has no effect without tune_scales=True")
        result = cls(weights)
        held = {"weight_optimizer": weights}
        if not weights_of_stn:
            result.responses = _made(
                given, "response_optimizer", responses, partial(response_adam, lr=options.lr_of_responses)
            )
            held["response_optimizer"] = result.responses
        known = {id(p) for p in check_optimizers(hyperparameters, held)}
        missing = [p for p in responses if p.requires_grad and id(p) not in known]
        if missing:
            argument = "weight_optimizer" if weights_of_stn else "response_optimizer"
            raise ValueError(
                f"{argument} lacks {len(missing)} of {len(responses)} response parameters, which would not be trained; "
                "build it with response_parameters(model)" + (" beside the weights" if weights_of_stn else "")
            )
        if not weights_of_stn and {id(p) for p in responses} & {id(p) for p in parameters_of(weights)}:
            raise ValueError(
                "weight_optimizer holds parameters of responses, which have an optimiser of their own; build it with "
                "general_parameters(model)"
            )
        result.hyper = _made(
            given, "hyper_optimizer", hyperparameters.tuned(), partial(hyper_adam, lr=options.hyper_lr)
        )
        if options.tune_scales:
            scale_adam = partial(hyper_adam, lr=options.hyper_lr if options.scale_lr is None else options.scale_lr)
            result.scales = _made(given, "scale_optimizer", [hyperparameters.raw_scale], scale_adam)
        check_hyper_optimizers(hyperparameters, result.hyper, result.scales)
        return result

    def items(self) -> list[tuple[str, Optimizer]]:
        """Return those that there are by name."""
        pairs = [(name, getattr(self, name)) for name in ("weights", "responses", "hyper", "scales")]
        return [(name, optimizer) for name, optimizer in pairs if optimizer is not None]

    def state_dict(self) -> dict[str, Any]:
        """Return their states by name."""
        return {name: optimizer.state_dict() for name, optimizer in self.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore their states.

        Raises:
            ValueError: If the state is that of other optimisers.
        """
        own = [name for name, _ in self.items()]
        if sorted(state) != sorted(own):
            raise ValueError(f"the state is that of optimisers of {sorted(state)}, these are of {sorted(own)}")
        for name, optimizer in self.items():
            optimizer.load_state_dict(state[name])

    def lower(self, decay: NonmonotonicDecay, losses: Sequence[float]) -> bool:
        """Lower learning rates if the last validation loss asks for it; return whether training should end.

        Args:
            decay: How.
            losses: Validation losses of all epochs.
        """
        earlier = losses[: len(losses) - decay.window] if decay.window else losses[:-1]
        if len(losses) > decay.window and earlier and losses[-1] > min(earlier):
            for optimizer in (self.weights, self.responses):
                for group in [] if optimizer is None else optimizer.param_groups:
                    group["lr"] *= decay.factor
        return all(float(group["lr"]) < decay.min_lr for group in self.weights.param_groups)


def _made(
    given: Mapping[str, OptimizerOrFactory | None],
    argument: str,
    parameters: list[nn.Parameter],
    default: Callable[[list[nn.Parameter]], Optimizer],
) -> Optimizer:
    source: Any = default if given[argument] is None else given[argument]
    made = source if isinstance(source, Optimizer) or not callable(source) else source(parameters)
    if not isinstance(made, Optimizer):
        raise TypeError(f"{argument} must be an optimiser, or return one for a list of parameters, got {made!r}")
    return made


class Schedulers:
    """Learning rate schedulers, stepped once an epoch.

    Args:
        given: One, several, or none; a factory gets the optimiser of the weights.
        optimizers: Those of the run.

    Raises:
        TypeError: If one is no scheduler.
        ValueError: If one belongs to another optimiser.
    """

    def __init__(self, given: SchedulerOrFactory | Iterable[SchedulerOrFactory] | None, optimizers: Optimizers) -> None:
        self._all: list[LRScheduler] = []
        if given is None:
            return
        for one in given if isinstance(given, list | tuple) else [given]:
            made: Any = one if isinstance(one, LRScheduler) or not callable(one) else one(optimizers.weights)
            if not isinstance(made, LRScheduler):
                raise TypeError(
                    f"lr_scheduler must be an LRScheduler, a function that returns one, or a list, got {made!r}"
                )
            if all(made.optimizer is not optimizer for _, optimizer in optimizers.items()):
                raise ValueError(
                    f"lr_scheduler: {type(made).__name__} belongs to an optimiser that this run does not use; give the "
                    "same optimiser to both, or a function from the optimiser to a scheduler"
                )
            self._all.append(made)

    def step(self, val_loss: float) -> None:
        """Step all, with the validation loss where they ask for it."""
        with warnings.catch_warnings():
            # After a resume between the last step of an epoch and its end, optimisers have not stepped in this process.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for scheduler in self._all:
                if isinstance(scheduler, ReduceLROnPlateau):
                    scheduler.step(val_loss)
                else:
                    scheduler.step()

    def state_dict(self) -> list[Any]:
        """Return their states."""
        return [scheduler.state_dict() for scheduler in self._all]

    def load_state_dict(self, states: list[Any]) -> None:
        """Restore their states.

        Raises:
            ValueError: If there are others.
        """
        if len(states) != len(self._all):
            raise ValueError(f"the state is that of {len(states)} learning rate schedulers, there are {len(self._all)}")
        for scheduler, state in zip(self._all, states, strict=True):
            scheduler.load_state_dict(state)


@dataclass
class Best:
    """The epoch with the lowest validation loss, and all that it takes to go back there.

    Args:
        loss: Its validation loss.
        epoch: Its number.
        values: Its hyperparameters by name.
        state: Copies of the states of the model, the hyperparameters and the optimisers; ``None`` if not kept.
    """

    loss: float = math.inf
    epoch: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] | None = None

    def offer(
        self, loss: float, epoch: int, values: dict[str, Any], state: Callable[[], dict[str, Any]] | None
    ) -> None:
        """Take over an epoch if it is better.

        Args:
            loss: Its validation loss.
            epoch: Its number.
            values: Its hyperparameters.
            state: Returns the states; ``None`` if they are not kept.
        """
        if loss < self.loss:
            self.loss, self.epoch, self.values = loss, epoch, values
            self.state = None if state is None else copied(state())

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"loss": self.loss, "epoch": self.epoch, "values": self.values, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        self.loss, self.epoch, self.values = float(state["loss"]), int(state["epoch"]), dict(state["values"])
        self.state = copied(state["state"])


def copied(state: Any) -> Any:
    """Return a copy of a state that training does not change."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), state)
