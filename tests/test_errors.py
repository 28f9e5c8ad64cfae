"""Messages name the closest valid name."""

from __future__ import annotations

import pytest

from sthyper.errors import closest


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ahsa", " (did you mean 'ASHA'?)"),
        ("randomsearch", " (did you mean 'RandomSearch'?)"),
        ("VAL/ACC", " (did you mean 'val/acc'?)"),
        ("tpe", ""),
        (7, ""),
    ],
)
def test_the_closest_name_keeps_its_case(name: object, hint: str) -> None:
    assert closest(name, ["ASHA", "RandomSearch", "val/acc"]) == hint
