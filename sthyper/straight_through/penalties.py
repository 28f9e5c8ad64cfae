"""What open gates and undecided choices cost in a loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sthyper.straight_through.choices import Choice
from sthyper.straight_through.gates import Gate

__all__ = ["check_costs", "check_weight", "penalty"]


def penalty(
    gates: nn.Module | Iterable[Gate | Choice], l0: float = 0.0, entropy: float = 0.0, *, per_gate: bool = False
) -> Tensor:
    """Return what gates and choices cost: a term to add to a loss.

    Args:
        gates: Gates and choices, or a module that holds some.
        l0: Cost of an open gate, and of a unit of the ``costs`` of choices: it is multiplied by the expected number
            (L0 norm). Choices without costs are free, if there is something else that is not.
        entropy: Cost of a nat of entropy, which drives probabilities to 0 and 1.
        per_gate: Whether both are divided by the number of gates and choices, so that weights suit models of any size.

    Returns:
        The cost (0-d), with gradients to the logits.

    Raises:
        TypeError: If ``gates`` holds something else.
        ValueError: If a weight is below 0 or not finite, there is no gate, or ``l0`` is given and there are choices
            without costs only.

    Source: C. Louizos, M. Welling, D. P. Kingma, 2018 (arXiv 1712.01312), equation 4.
    """
    check_weight("l0", l0)
    check_weight("entropy", entropy)
    found = list(gates.modules()) if isinstance(gates, nn.Module) else list(gates)
    if isinstance(gates, nn.Module):
        found = [module for module in found if isinstance(module, Gate | Choice)]
    parts: list[Gate | Choice] = []
    for gate in found:
        if not isinstance(gate, Gate | Choice):
            raise TypeError(f"gates must be Gate or Choice modules; there is {type(gate).__name__}")
        parts.append(gate)
    if not parts:
        raise ValueError("gates must be at least one; there is none: a penalty would have no effect")
    check_costs(parts, l0, entropy)
    total = torch.zeros((), dtype=parts[0].logits.dtype, device=parts[0].logits.device)
    for part in parts:
        if l0 and _has_size(part):
            total = total + l0 * part.expected_size().to(total)
        if entropy:
            total = total + entropy * part.entropy().to(total)
    n = sum(part.logits.numel() if isinstance(part, Gate) else 1 for part in parts)
    return total / n if per_gate else total


def check_costs(parts: Iterable[Gate | Choice], l0: float, entropy: float) -> None:
    """Raise for weights of a penalty that have no effect on these gates and choices."""
    parts = list(parts)
    if l0 and not any(_has_size(part) for part in parts):
        raise ValueError(
            f"l0={l0!r} has no effect: it is the cost of open gates and of choices with costs, and there is none; "
            "leave it out, or give Choice(costs=[...])"
        )
    if entropy and not parts:
        raise ValueError(f"entropy={entropy!r} has no effect: there is neither gate nor choice; leave it out")


def _has_size(part: Gate | Choice) -> bool:
    return isinstance(part, Gate) or part.costs is not None


def check_weight(argument: str, weight: float) -> None:
    """Raise unless a weight of a penalty is a finite number of at least 0."""
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise TypeError(f"{argument} must be a number; it is {weight!r}")
    if not 0 <= weight < float("inf"):
        raise ValueError(
            f"{argument} must be at least 0 and finite; it is {weight!r}: a penalty below 0 would reward open or "
            "undecided gates"
        )
