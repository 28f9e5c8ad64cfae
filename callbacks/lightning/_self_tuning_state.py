"""What a SelfTuningCallback knows: to be asked for, saved in checkpoints, and sent to other processes."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sthyper.callbacks.lightning._delivery import packed, register, unpacked
from sthyper.callbacks.lightning._self_tuning_checks import self_tuning_part
from sthyper.callbacks.lightning._self_tuning_options import SelfTuneOptions
from sthyper.callbacks.lightning._self_tuning_record import Record
from sthyper.callbacks.lightning._self_tuning_steps import Counts, Updates
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.schedule import Schedule
from sthyper.selftuning.steps import Notices
from sthyper.selftuning.transform import SelfTuning, export, plain_state_dict

__all__ = ["SelfTuningState"]


class SelfTuningState(Callback):
    """The state of a :class:`~sthyper.callbacks.SelfTuningCallback`.

    Args:
        hyperparameters: The hyperparameters.
        transformation: How modules are made self-tuning.
    """

    def __init__(self, hyperparameters: Hyperparameters, transformation: SelfTuneOptions) -> None:
        super().__init__()
        self.hyperparameters = hyperparameters
        self.transformation = transformation
        self._id = register(self)
        self._forget()
        self._start()

    def _forget(self) -> None:
        """Begin anew, with another module than before."""
        self._record = Record(self.hyperparameters)
        self._counts = Counts()
        self._pending: dict[str, Any] | None = None

    def _start(self) -> None:
        """Make what belongs to one ``fit`` and is not pickled."""
        self._updates: Updates | None = None
        self._part: SelfTuning | None = None
        self._pass, self._off = ExitStack(), ExitStack()

    # ---- what scripts may ask ------------------------------------------------------------------------

    def values(self) -> dict[str, Any]:
        """Return the values of the hyperparameters by name, of gates and choices the most probable ones."""
        return self.hyperparameters.values()

    def scales(self) -> dict[str, float]:
        """Return the standard deviations of their perturbations by name, unconstrained."""
        return self.hyperparameters.scales()

    @property
    def schedule(self) -> Schedule:
        """The recorded trajectories of values and scales."""
        return self._record.schedule

    @property
    def notices(self) -> Notices:
        """How many hyper steps were skipped, and which hyperparameters were at rest."""
        return self._record.notices

    @property
    def steps(self) -> int:
        """Steps of the optimiser so far."""
        return self._counts.steps

    @property
    def hyper_steps(self) -> int:
        """Hyper steps so far, skipped ones included."""
        return self._counts.hyper_steps

    def plain_state_dict(self, module: LightningModule) -> dict[str, Tensor]:
        """Return the state of the plain module at the current hyperparameters, without responses.

        Args:
            module: The module that was trained.

        Raises:
            ValueError: If it is not self-tuning.
        """
        return plain_state_dict(module)

    def export(self, module: LightningModule) -> LightningModule:
        """Return a plain copy of the module, with the current rates in its dropout layers.

        Args:
            module: The module that was trained. In the process of a script whose ranks Lightning has forked or spawned
                it is a plain one with the weights of kind ``"delta"``; the rates are set in a copy of that, too.

        Raises:
            ValueError: If it is plain, and of kind ``"stn"``, whose weights need responses.
        """
        if self_tuning_part(module) is None:
            if self.transformation.kind == "stn":
                raise ValueError(
                    "the module is not self-tuning, and weights of kind 'stn' are incomplete without responses; load a "
                    "checkpoint into a module with this callback (trainer.test(..., ckpt_path=...)) first"
                )
            module = copy.deepcopy(module)
            self.transformation.apply(module, copy.deepcopy(self.hyperparameters))
        result = export(module)
        assert isinstance(result, LightningModule)
        return result

    # ---- state ---------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints."""
        return "sthyper.SelfTuningCallback"

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in types that load with ``weights_only=True``."""
        return {
            "names": self.hyperparameters.names,
            "counts": asdict(self._counts),
            "updates": self._pending if self._updates is None else self._updates.state_dict(),
            "record": self._record.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; the rest of it is put in place when training starts.

        Raises:
            ValueError: If it is that of other hyperparameters.
        """
        if list(state_dict["names"]) != self.hyperparameters.names:
            raise ValueError(
                f"the checkpoint is that of hyperparameters {list(state_dict['names'])}, these are "
                f"{self.hyperparameters.names}"
            )
        self._counts = Counts(**state_dict["counts"])
        self._pending = state_dict["updates"]
        self._record.load_state_dict(state_dict["record"])

    def _parcel(self) -> bytes:
        """Return what the process of the script wants from a rank."""
        return packed({"hyperparameters": self.hyperparameters.state_dict(), "callback": self.state_dict()})

    def _receive(self, parcel: bytes) -> None:
        state = unpacked(parcel)
        self.hyperparameters.load_state_dict(state["hyperparameters"])
        self.load_state_dict(state["callback"])

    def __getstate__(self) -> dict[str, Any]:
        own = ("_updates", "_part", "_pass", "_off", "_record", "_pending", "_counts")
        state = {name: value for name, value in self.__dict__.items() if name not in own}
        return state | {"state": packed(self.state_dict())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packet = state.pop("state")
        self.__dict__.update(state)
        # Spawned ranks would have the memory of these in common.
        for parameter in self.hyperparameters.parameters():
            parameter.data = parameter.data.clone()
        self._record = Record(self.hyperparameters)
        self._start()
        self.load_state_dict(unpacked(packet))
