"""Where gates belong in a module, and the hooks that let what passes there pass through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sthyper.callbacks.lightning._gates_options import GateOptions, Kind, Settings
from sthyper.callbacks.lightning._validation_data import mixed
from sthyper.errors import closest
from sthyper.selftuning._selection import match
from sthyper.straight_through._sampled import weighted
from sthyper.straight_through.gates import Gate

__all__ = ["GateSet", "Site", "attach", "detach", "find_sites", "hooks_of"]


@dataclass(frozen=True)
class Site:
    """A place of a gate.

    Args:
        path: Path of the module.
        kind: What of it is gated.
        target: The pattern that means it.
        size: Number of choices; ``None`` for a single one.
        dim: Axis of the choices, from the end.
    """

    path: str
    kind: Kind
    target: str
    size: int | None = None
    dim: int = -1

    @property
    def key(self) -> str:
        """Name of the gate within those of the module."""
        return f"{self.path.replace('.', '/')}:{self.kind}"


class GateSet(nn.Module):
    """The gates of a module.

    Args:
        sites: Where they are.
        options: How they begin and sample.
    """

    def __init__(self, sites: list[Site], options: GateOptions) -> None:
        super().__init__()
        self.sites = sites
        self.settings: Settings = options.settings
        for site in sites:
            gate = Gate(
                () if site.size is None else site.size,
                options.probability[site.target],
                dim=site.dim,
                estimator=self.settings.gate_estimator,
                temperature=self.settings.schedule,
                evaluation=self.settings.evaluation,
                per_example=self.settings.per_example,
                seed=options.seed,
                name=site.path,
            )
            self.add_module(site.key, gate)

    @property
    def gates(self) -> list[Gate]:
        """The gates, in the order of :attr:`sites`."""
        return [self._modules[site.key] for site in self.sites]  # type: ignore[misc]

    def reseed(self, *numbers: int) -> None:
        """Let all gates draw anew.

        Args:
            numbers: What the samples depend on: whole numbers of at least 0.
        """
        for i, gate in enumerate(self.gates):
            gate.reseed(mixed(*numbers, i))

    def named(self) -> dict[str, tuple[Site, Gate]]:
        """Return sites and gates by path; a module with several kinds has ``path:kind``."""
        paths = [site.path for site in self.sites]
        return {
            site.path if paths.count(site.path) == 1 else f"{site.path}:{site.kind}": (site, gate)
            for site, gate in zip(self.sites, self.gates, strict=True)
        }

    def of_target(self, target: str) -> list[Gate]:
        """Return the gates that a target means."""
        return [gate for site, gate in zip(self.sites, self.gates, strict=True) if site.target == target]


def find_sites(module: nn.Module, targets: Mapping[str, Kind]) -> list[Site]:
    """Return where gates belong.

    Args:
        module: The module.
        targets: Patterns of paths -> kinds. For ``"inputs"`` and ``"channels"`` these are all linear and convolutional
            layers that are meant or lie within; for ``"branch"`` and ``"operation"`` the outermost modules.

    Raises:
        ValueError: If a target means nothing, or what cannot be gated, or two targets mean the same.
    """
    # By all paths of a shared module, each of which a pattern may mean; gates are no layers.
    own = {id(m) for part in module.modules() if isinstance(part, GateSet) for m in part.modules()}
    named = module.named_modules(remove_duplicate=False)
    modules = {path: part for path, part in named if path and id(part) not in own}
    sites: list[Site] = []
    for target, kind in targets.items():
        found = _layers(modules, target, kind) if kind in ("inputs", "channels") else _outermost(modules, target, kind)
        for site in found:
            other = next((s for s in sites if s.kind == kind and modules[s.path] is modules[site.path]), None)
            if other is not None and other.target != target:
                raise ValueError(
                    f"targets {other.target!r} and {target!r} both mean the {kind} of {site.path!r}; keep one of them"
                )
            if other is None:
                sites.append(site)
    return sites


def _layers(modules: Mapping[str, nn.Module], target: str, kind: Kind) -> list[Site]:
    meant = {path: part for path, part in modules.items() if match(target, path)}
    if not meant:
        _raise_unknown(modules, target)
    sites = []
    for path, part in meant.items():
        shape = _shape(part)
        if shape is None:
            continue
        if isinstance(part, nn.modules.lazy.LazyModuleMixin) and part.has_uninitialized_params():
            raise ValueError(
                f"targets: {path!r} ({type(part).__name__}) does not know its size yet; give it, or run a batch first"
            )
        size, dim = shape[0 if kind == "inputs" else 1], shape[2]
        if size < 1:
            raise ValueError(
                f"targets: {path!r} ({type(part).__name__}) has {size} {'inputs' if kind == 'inputs' else 'outputs'}; "
                f"there is nothing to gate, leave it out of {target!r}"
            )
        sites.append(Site(path, kind, target, size, dim))
    if not sites:
        path, part = next(iter(meant.items()))
        layers = [name for name, other in modules.items() if _shape(other) is not None]
        raise ValueError(
            f"targets: {target!r} means {path!r} ({type(part).__name__}), which has no {kind}{closest(path, layers)}; "
            f"linear and convolutional layers have: {layers[:8]}"
        )
    return sites


def _outermost(modules: Mapping[str, nn.Module], target: str, kind: Kind) -> list[Site]:
    paths = [path for path in modules if fnmatchcase(path, target)]
    if not paths:
        _raise_unknown(modules, target)
    return [Site(p, kind, target) for p in paths if not any(p.startswith(f"{other}.") for other in paths)]


def _raise_unknown(modules: Mapping[str, nn.Module], target: str) -> None:
    names = [*modules]
    raise ValueError(f"targets: no module has the name {target!r}{closest(target, names)}; there are {names[:20]}")


def _shape(part: nn.Module) -> tuple[int, int, int] | None:
    """Return inputs, outputs and their axis of a layer that has them."""
    if isinstance(part, nn.Linear):
        return part.in_features, part.out_features, -1
    if isinstance(part, _ConvNd | _ConvTransposeNd):
        return part.in_channels, part.out_channels, -1 - len(part.kernel_size)
    return None


# ---- hooks -------------------------------------------------------------------------------------------------


class _Hook:
    """Lets values pass a gate; an object and no function, so that a copy of the module has a copy of the gate.

    Args:
        gate: The gate.
        site: Where it is.

    Attributes:
        by_name: Whether the module got its first input by name.
    """

    def __init__(self, gate: Gate, site: Site) -> None:
        self.gate = gate
        self.site = site
        self.by_name = False

    def check(self, value: Any, what: str) -> Tensor:
        """Return a value that can be gated, or raise."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"the {what} of {self.site.path!r} must be a floating tensor to be gated as {self.site.kind!r}, got "
                f"{kind}; name a module within, or put one around it"
            )
        samples = self.gate.training or self.gate.evaluation == "sample"
        if samples and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                f"{self.site.path!r} is run again by activation checkpointing, where its gate would draw another "
                "sample; leave gated modules out of torch.utils.checkpoint"
            )
        return value


class GatedInputs(_Hook):
    """Gates the first input of a layer."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the inputs with the first one gated."""
        x = self.gate(self.check(_first(args, kwargs), "input"))
        if args:
            return (x, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): x}


class GatedOutput(_Hook):
    """Gates the channels of a layer's output, or a whole branch."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
        """Return the output, gated."""
        return self.gate(self.check(output, "output"))


class GatedOperation(_Hook):
    """Chooses between what an operation returns and what it got, for each example."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
        """Return ``x + z * (operation(x) - x)``."""
        x, output = _first(args, kwargs), self.check(output, "output")
        if not isinstance(x, Tensor) or x.shape != output.shape or not x.dim():
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"the operation {self.site.path!r} must return the shape that it gets, so that it can be left out; it "
                f"got {shape} and returned {tuple(output.shape)}"
            )
        self.by_name = not args
        z = self.gate(torch.ones_like(output[(slice(None),) + (slice(0, 1),) * (output.dim() - 1)]))
        # Exactly one of both where z is 0 or 1, even if the other is not finite.
        return weighted(output, z) + weighted(x, 1 - z)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def attach(module: nn.Module, gates: GateSet, attribute: str) -> None:
    """Let the values of a module pass through gates, which become its attribute.

    Args:
        module: The module.
        gates: The gates.
        attribute: Name of the attribute.
    """
    setattr(module, attribute, gates)
    for site, gate in zip(gates.sites, gates.gates, strict=True):
        part = module.get_submodule(site.path)
        if site.kind == "inputs":
            part.register_forward_pre_hook(GatedInputs(gate, site), with_kwargs=True)
        else:
            hook = GatedOperation(gate, site) if site.kind == "operation" else GatedOutput(gate, site)
            part.register_forward_hook(hook, with_kwargs=True)


def hooks_of(module: nn.Module) -> Iterator[_Hook]:
    """Yield the hooks of gates in a module."""
    for part in module.modules():
        for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values()):
            if isinstance(hook, _Hook):
                yield hook


def detach(module: nn.Module, attribute: str) -> None:
    """Take gates and their hooks away, if a module has them.

    Args:
        module: The module.
        attribute: Where its gates are.
    """
    found = getattr(module, attribute, None)
    if not isinstance(found, GateSet):
        return
    own = {id(gate) for gate in found.gates}
    for part in module.modules():
        for hooks, flags in (
            (part._forward_pre_hooks, part._forward_pre_hooks_with_kwargs),
            (part._forward_hooks, part._forward_hooks_with_kwargs),
        ):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Hook) and id(hook.gate) in own]:
                del hooks[key]
                flags.pop(key, None)
    delattr(module, attribute)
