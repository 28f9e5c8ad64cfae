"""The Gaussian process of Bayesian optimisation, ready for use elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sthyper.errors import closest
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.searchers.bayesopt.transfer import ActiveTask

if TYPE_CHECKING:
    from sthyper.surrogates.gp import GaussianProcess

__all__ = ["create_gaussian_process_estimator"]


def create_gaussian_process_estimator(
    config_space: Mapping[str, Any],
    *,
    random_seed: int = 0,
    search_options: Mapping[str, Any] | BayesOptOptions | None = None,
) -> GaussianProcess:
    """Return the Gaussian process with which ``searcher="bayesopt"`` would model a metric.

    It is fitted to encoded configurations and targets of which low ones are good; several of them serve several
    metrics::

        surrogate = create_gaussian_process_estimator(config_space, random_seed=1)
        model = surrogate.fit(SpaceEncoder(config_space).encode(configs), torch.tensor(losses, dtype=torch.float64))
        mean = surrogate.transform.inverse(model.posterior(points.unsqueeze(-2)).mean)

    Args:
        config_space: Configuration space.
        random_seed: Non-negative seed of restarts and subsets.
        search_options: Options of :class:`BayesOptOptions`; those of the model have an effect.

    Raises:
        ConfigSpaceError: If the space cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If an option is unknown or out of range, or asks for another model.
    """
    from sthyper.encoding import SpaceEncoder
    from sthyper.searchers.bayesopt.suggest import make_gaussian_process

    if isinstance(random_seed, bool) or not isinstance(random_seed, int):
        raise TypeError(f"random_seed must be a non-negative int, got {random_seed!r}")
    if random_seed < 0:
        raise ValueError(f"random_seed must be a non-negative int, got {random_seed!r}")
    options = _options(search_options)
    if options.surrogate is not None:
        raise ValueError("search_options: surrogate is another model than the Gaussian process that is asked for")
    task = ActiveTask.of_options(options, config_space)
    encoder = SpaceEncoder(config_space) if task is None else task.encoder()
    return make_gaussian_process(encoder, options, random_seed)


def _options(given: Mapping[str, Any] | BayesOptOptions | None) -> BayesOptOptions:
    if isinstance(given, BayesOptOptions):
        return given
    if given is None:
        return BayesOptOptions()
    if not isinstance(given, Mapping):
        raise TypeError(f"search_options must be a dict, got {given!r}")
    known = [field.name for field in fields(BayesOptOptions)]
    for name in given:
        if name not in known:
            raise ValueError(f"search_options: unknown option {name!r}{closest(name, known)}; known are {known}")
    return BayesOptOptions(**given)
