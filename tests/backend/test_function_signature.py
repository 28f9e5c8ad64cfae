"""How a tuned function wants its configuration."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from sthyper.backend import PythonBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import uniform
from sthyper.errors import ConfigSpaceError
from sthyper.stopping_criterion import StoppingCriterion
from sthyper.tuner import Tuner

SPACE = {"lr": uniform(0, 1), "width": 3}


def by_keyword(function: Any, space: Any = SPACE) -> bool:
    return PythonBackend(function, space)._tuned.by_keyword


class Trainer:
    def __call__(self, lr: float, width: int) -> float:
        return lr * width

    def whole(self, config: dict) -> float:
        return config["lr"]


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


@pytest.mark.parametrize(
    ("function", "keywords"),
    [
        (lambda config: 0, False),
        (lambda c, /: 0, False),
        (lambda config, verbose=False: 0, False),
        (lambda config=None: 0, False),
        (lambda *args: 0, False),
        (lambda config, **options: 0, False),
        (lambda lr, width: 0, True),
        (lambda *, lr, width: 0, True),
        (lambda lr, width, epochs=3: 0, True),
        (lambda lr, **rest: 0, True),
        (lambda **config: 0, True),
        (lambda *args, **config: 0, True),
        (functools.partial(lambda data, config: 0, [1]), False),
        (functools.partial(lambda data, lr, width: 0, data=[1]), True),
        (Trainer(), True),
        (Trainer().whole, False),
        (decorated(lambda lr, width: 0), True),
        (decorated(lambda config: 0), False),
    ],
)
def test_dictionary_or_keywords(function: Any, keywords: bool) -> None:
    assert by_keyword(function) is keywords


def test_a_single_parameter_may_be_a_key() -> None:
    assert by_keyword(lambda lr: 0, {"lr": uniform(0, 1)})
    assert by_keyword(lambda config: 0, {"config": uniform(0, 1)})
    assert not by_keyword(lambda config: 0, {"lr": uniform(0, 1)})


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda learning_rate, width: 0, "needs 'learning_rate', which config_space"),
        (lambda lr, widht: 0, r"needs 'widht'.*did you mean 'width'"),
        (lambda lr: 0, r"config_space has 'width', which .* does not accept: its parameters are \['lr'\]"),
        (lambda lr, widths=3: 0, r"has 'width'.*did you mean 'widths'"),
        (lambda config, reporter: 0, "needs 'config'"),
        (lambda: 0, "has 'lr', which"),
        (lambda lr, width, /: 0, "cannot be given by name"),
        (lambda widht: 0, r"'widht' is not in config_space.*did you mean 'width'"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(function: Any, words: str) -> None:
    with pytest.raises(ConfigSpaceError, match=words):
        PythonBackend(function, SPACE)


def test_a_number_cannot_be_the_configuration() -> None:
    def train(rate: float) -> float:
        return rate

    with pytest.raises(ConfigSpaceError, match="'rate' is not in config_space"):
        PythonBackend(train, SPACE)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (3, "got 3"),
        ("train.py", "got 'train.py'"),
        (Trainer, "got the class Trainer"),
    ],
)
def test_what_is_no_function(function: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        PythonBackend(function, SPACE)


def test_functions_that_do_not_run_when_they_are_called() -> None:
    def generator(config):
        yield 1

    async def coroutine(config):
        return 1

    with pytest.raises(TypeError, match="generator is a generator function"):
        PythonBackend(generator, SPACE)
    with pytest.raises(TypeError, match="coroutine is a coroutine function"):
        PythonBackend(functools.partial(coroutine), SPACE)
    with pytest.raises(TypeError, match="config_space must be a dictionary, got None"):
        PythonBackend(Trainer(), None)  # type: ignore[arg-type]


def test_the_scheduler_must_have_the_same_space() -> None:
    backend = PythonBackend(lambda config: 0, SPACE)
    with pytest.raises(ConfigSpaceError, match=r"PythonBackend has \['lr', 'width'\].*scheduler \['lr'\]"):
        Tuner(
            backend,
            RandomSearch({"lr": uniform(0, 1)}, metric="loss"),
            StoppingCriterion(max_num_trials_started=1),
            n_workers=1,
        )
