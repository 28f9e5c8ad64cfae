"""Checks that several conformance suites make."""

from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sthyper.config_space import Domain

__all__ = ["check_config", "check_plain", "copies_of_state", "global_generators_untouched"]


def check_config(config: Any, config_space: Mapping[str, Any], max_resource_attr: str | None = None) -> None:
    """Fail unless ``config`` holds exactly the names of the space, with values of its domains."""
    assert type(config) is dict, f"a configuration must be a dict, got {config!r}"
    missing = [name for name in config_space if name not in config]
    assert not missing, f"the configuration {config} lacks {', '.join(missing)}"
    extra = [name for name in config if name not in config_space]
    assert not extra, f"the configuration {config} has {', '.join(extra)}, which the space does not have"
    for name, value in config.items():
        domain = config_space[name]
        if isinstance(domain, Domain):
            assert type(value) is domain.value_type, f"{name}={value!r} must be of type {domain.value_type.__name__}"
            assert domain.is_valid(value), f"{name}={value!r} is not in {domain}"
        elif name == max_resource_attr:
            assert type(value) is int, f"{name}={value!r} must be an int"
            assert 1 <= value <= domain, f"{name}={value!r} must lie between 1 and {domain}"
        else:
            assert value == domain, f"{name}={value!r} must be the constant {domain!r}"


def check_plain(value: Any, where: str = "state_dict()") -> bool:
    """Fail unless a state consists of plain containers and tensors; return whether it has tensors."""
    if value is None or type(value) in (bool, int, float, str):
        return False
    if type(value) is dict:
        for key in value:
            assert type(key) is str, f"{where}: keys must be strings, got {key!r}"
        return any([check_plain(item, f"{where}[{key!r}]") for key, item in value.items()])
    if type(value) is list:
        return any([check_plain(item, f"{where}[{i}]") for i, item in enumerate(value)])
    torch = sys.modules.get("torch")
    is_tensor = torch is not None and type(value) is torch.Tensor
    assert is_tensor, (
        f"{where} must be of plain containers, numbers, strings and tensors, got {value!r} of type "
        f"{type(value).__module__}.{type(value).__qualname__}"
    )
    return True


def copies_of_state(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the state as it comes back from the files that an experiment keeps, with the name of the format."""
    import torch

    has_tensors = check_plain(state)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    yield "torch", torch.load(file, weights_only=True)
    if not has_tensors:
        yield "json", json.loads(json.dumps(state))


@contextmanager
def global_generators_untouched() -> Iterator[None]:
    """Fail if the block draws from, or seeds, the global generators of random, numpy or torch."""
    before = _global_generators()
    yield
    for name, state in _global_generators().items():
        assert before.get(name, state) == state, f"the global generator of {name} was used; use a generator of your own"


def _global_generators() -> dict[str, Any]:
    states: dict[str, Any] = {"random": random.getstate()}
    if (numpy := sys.modules.get("numpy")) is not None:
        state = numpy.random.get_state(legacy=False)["state"]
        states["numpy"] = (state["pos"], state["key"].tolist())
    if (torch := sys.modules.get("torch")) is not None:
        states["torch"] = torch.get_rng_state().tolist()
    return states
