"""What users of a model-based searcher ask it and tell it, beside an experiment's own course."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sthyper.errors import closest
from sthyper.searchers.base import BaseSearcher
from sthyper.searchers.bayesopt.constraints import OutcomeConstraint, known_feasibility
from sthyper.searchers.bayesopt.data import Observations, TrialData
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.searchers.bayesopt.past import PastEvaluations, read_evaluations

if TYPE_CHECKING:
    from torch import Tensor

    from sthyper.searchers.bayesopt.suggest import ModelSuggester, SurrogateData

__all__ = ["KnowledgeOfTrials"]


class KnowledgeOfTrials(BaseSearcher):
    """Past experiments, and the best configuration; a part of :class:`BayesianOptimizationSearcher`."""

    options: BayesOptOptions
    _observations: Observations
    _past: PastEvaluations
    _constraints: tuple[OutcomeConstraint, ...]
    _resource_attr: str | None
    _max_resource: int | None
    _points: dict[int, Tensor | None]
    _fitted_size: int
    _num_init_random: int
    _data: Callable[[int | None], SurrogateData]
    _is_active: Callable[[dict[str, Any]], bool]
    _make_suggester: Callable[[], ModelSuggester]

    @property
    @abstractmethod
    def suggester(self) -> ModelSuggester:
        """Fits the model and searches."""

    # ---- the past ------------------------------------------------------------------------------------

    def fit_on(self, trials: Any, fill: Mapping[str, Any] | None = None) -> int:
        """Learn from experiments in the past; configurations that are known from there are not suggested again.

        In an experiment with a tuner use its ``warm_start``, which the record of the experiment keeps.

        Args:
            trials: An experiment (:func:`sthyper.load_experiment`); a data frame such as its ``results``; or pairs of a
                configuration and the value of the metric, or a dict of metrics, or a list of such reports. Of an
                experiment count what :attr:`~sthyper.Tuner` ``warm_start`` would count: with a resource all reports,
                otherwise the last one of each completed trial.
            fill: Values of hyperparameters that configurations lack, such as the task of an experiment for transfer
                learning.

        Returns:
            The number of configurations; others, which lie outside the space, are passed over with a warning.

        Raises:
            ConfigSpaceError: If ``fill`` cannot be used, or a pair's configuration lacks a hyperparameter.
            TypeError: If an argument has the wrong type.
            ValueError: If an experiment does not have the metric, or with the other mode.
        """
        found = read_evaluations(trials, self.config_space, self.metric, self.mode, fill)
        self._past.add(found)
        return len(found)

    def _read_past(self) -> None:
        for trial_id, config, result in self._past.results(self.metric, self._resource_attr, self._max_resource):
            self.on_trial_result(trial_id, config, result, True)

    # ---- the best ------------------------------------------------------------------------------------

    def best_config(self, by: str = "observed") -> dict[str, Any] | None:
        """Return the best configuration that was evaluated, ``None`` if there is none; see :meth:`best_trial`."""
        found = self.best_trial(by)
        return None if found is None else dict(self._observations.trials[found].config)

    def best_trial(self, by: str = "observed", past: bool = True) -> int | None:
        """Return the trial with the best configuration that was evaluated, ``None`` if there is none.

        With a resource it is the best one at the level of which the model is. Trials that are known to break a
        constraint come after all others.

        Args:
            by: ``"observed"``: with the best value; ``"model"``: with the best mean of the model, which a lucky value
                of a noisy metric does not fool.
            past: Whether evaluations count that are none of this experiment's; they have negative ids.

        Raises:
            ValueError: If ``by`` is unknown, or the model cannot be used.
        """
        if by not in ("observed", "model"):
            raise ValueError(f"by must be 'observed' or 'model', got {by!r}{closest(by, ('observed', 'model'))}")
        self._read_past()
        level = self._observations.level(max(self._num_init_random, 1))
        if level is None:
            return None
        size = self._fitted_size
        data = self._data(level)
        self._fitted_size = size
        known = [each for each in self._observations.at_level(level) if self._points[each[0]] is not None]
        values = [value for _, _, value in known]
        if by == "model" and known:
            values = self._means(data)
        best = [
            (self._breaks(trial, level), value, position)
            for position, (value, (trial_id, trial, _)) in enumerate(zip(values, known, strict=True))
            if self._is_active(trial.config) and (past or trial_id >= 0)
        ]
        return known[min(best)[2]][0] if best else None

    def _breaks(self, trial: TrialData, level: int) -> bool:
        """Whether a trial is known to break a constraint."""
        return bool(self._constraints) and known_feasibility(trial, self._constraints, level) == 0.0

    def _means(self, data: SurrogateData) -> list[float]:
        """Return the model's predictions at the observations; suggestions are as if nobody had asked."""
        from sthyper.searchers.bayesopt.suggest import predict

        suggester = self._copied_suggester()
        means: list[float] = predict(suggester.fit(data), suggester.surrogate, data.X)[0].tolist()
        return means

    def _copied_suggester(self) -> ModelSuggester:
        """Return a copy of what fits the model; a new one with its state if it cannot be copied."""
        suggester = self.suggester.copied()
        if suggester is None:
            suggester = self._make_suggester()
            suggester.load_state_dict(self.suggester.state_dict())
        return suggester
