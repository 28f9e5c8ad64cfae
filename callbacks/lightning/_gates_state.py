"""What a GateTuningCallback knows: to be asked for, saved in checkpoints, sent to other processes, and exported."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sthyper.callbacks.lightning._delivery import packed, register, unpacked
from sthyper.callbacks.lightning._gates_export import plain_copy
from sthyper.callbacks.lightning._gates_options import GateOptions
from sthyper.callbacks.lightning._gates_sites import GateSet, Site, find_sites
from sthyper.callbacks.lightning._gates_steps import NAME, Counts, GateSteps
from sthyper.errors import closest
from sthyper.straight_through.gates import Gate

__all__ = ["GateState"]


class GateState(Callback):
    """The state of a :class:`~sthyper.callbacks.GateTuningCallback`.

    Args:
        options: What is gated, and how it is trained.
    """

    def __init__(self, options: GateOptions) -> None:
        super().__init__()
        self.options = options
        self._id = register(self)
        self._set: GateSet | None = None
        self._delivered = False
        self._forget()
        self._start()

    def _forget(self) -> None:
        """Begin anew, with another module than before."""
        self._counts = Counts()
        self._pending: dict[str, Any] | None = None

    def _start(self) -> None:
        """Make what belongs to one ``fit`` and is not pickled."""
        self._steps: GateSteps | None = None
        self._planned = 1.0

    # ---- what scripts may ask ------------------------------------------------------------------------

    @property
    def gates(self) -> dict[str, Gate]:
        """The gates by path of the module; ``path:kind`` where a module has several.

        Raises:
            RuntimeError: If no module has got gates yet.
        """
        return {name: gate for name, (_, gate) in self._known().named().items()}

    def probabilities(self) -> dict[str, Tensor]:
        """Return the probabilities of being open, by name of the gate (see :attr:`gates`), on the CPU."""
        return {name: gate.probabilities().detach().cpu() for name, gate in self.gates.items()}

    def decisions(self) -> dict[str, Tensor]:
        """Return which choices are on (bool), by name of the gate (see :attr:`gates`), on the CPU."""
        return {name: gate.decisions().cpu() for name, gate in self.gates.items()}

    def expected_size(self, target: str | None = None) -> float:
        """Return the expected number of open gates.

        Args:
            target: Of this target only; default is of all.

        Raises:
            ValueError: If there is no such target.
        """
        gates = self._known()
        if target is not None and target not in self.options.targets:
            known = [*self.options.targets]
            raise ValueError(f"there is no target {target!r}{closest(target, known)}; there are {known}")
        chosen = gates.gates if target is None else gates.of_target(target)
        return sum(float(gate.expected_size().detach()) for gate in chosen)

    @property
    def steps(self) -> int:
        """Steps of the gates so far."""
        return self._counts.gate_steps

    @property
    def skipped(self) -> int:
        """Steps that were left out so far, because a gradient of the loss was not finite."""
        return self._counts.skipped

    def export(self, model: LightningModule, example_input: Any = None) -> LightningModule:
        """Return a plain copy of a module without what is closed.

        Closed channels are cut out, with all that depends on them; where the module cannot be followed, their weights
        are 0. The weights of closed inputs are 0. Closed branches return 0, closed operations what they get. In
        evaluation mode the copy returns what the module with ``evaluation="threshold"`` does, up to rounding.

        Args:
            model: The module that was trained. In the process of a script whose ranks Lightning has forked or spawned
                it is plain, with the trained weights; the gates are known here.
            example_input: Input of ``forward``, or a tuple of inputs, which helps to follow the module; default is its
                ``example_input_array``.

        Returns:
            A module of the same class, which needs nothing of this library.

        Raises:
            RuntimeError: If no module has got gates yet.
            ValueError: If this is another module.
        """
        found = getattr(model, self.options.attribute, None)
        gates = found if isinstance(found, GateSet) else self._known()
        if find_sites(model, self.options.targets) != gates.sites:
            raise ValueError(f"{NAME}: the module is not the one with these gates: {[*gates.named()]}")
        return plain_copy(model, gates, self.options.attribute, example_input)

    def _known(self) -> GateSet:
        if self._set is None:
            raise RuntimeError(f"{NAME} has put gates into no module yet; call trainer.fit first")
        return self._set

    # ---- state ---------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints."""
        return f"sthyper.{NAME}{{'attribute': {self.options.attribute!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in types that load with ``weights_only=True``."""
        return {
            "targets": dict(self.options.targets),
            "counts": asdict(self._counts),
            "steps": self._pending if self._steps is None else self._steps.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; the rest of it is put in place when training starts.

        Raises:
            ValueError: If it is that of other targets, or of these in another order.
        """
        saved, own = state_dict["targets"], self.options.targets
        # In their order: seeds and the state of the optimiser are by number.
        if list(saved.items()) != list(own.items()):
            same = "; it has the same ones in another order, give them in that order" if saved == own else ""
            raise ValueError(f"the checkpoint is that of the targets {saved}, these are {own}{same}")
        self._counts = Counts(**state_dict["counts"])
        self._pending = state_dict["steps"]

    def _parcel(self) -> bytes:
        """Return what the process of the script wants from a rank."""
        gates = self._known()
        sites = [asdict(site) for site in gates.sites]
        return packed({"sites": sites, "gates": gates.state_dict(), "callback": self.state_dict()})

    def _receive(self, parcel: bytes) -> None:
        state = unpacked(parcel)
        self._set = GateSet([Site(**site) for site in state["sites"]], self.options)
        dtype = next(value.dtype for name, value in state["gates"].items() if name.endswith("logits"))
        self._set.to(dtype).load_state_dict(state["gates"])
        self._delivered = True
        self.load_state_dict(state["callback"])

    def __getstate__(self) -> dict[str, Any]:
        own = ("_steps", "_planned", "_pending", "_counts")
        state = {name: value for name, value in self.__dict__.items() if name not in own}
        return state | {"state": packed(self.state_dict())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packet = state.pop("state")
        self.__dict__.update(state)
        if self._set is not None:
            # Spawned ranks would have the memory of these in common.
            for gate in self._set.gates:
                gate.logits.data = gate.logits.data.clone()
        self._start()
        self.load_state_dict(unpacked(packet))
