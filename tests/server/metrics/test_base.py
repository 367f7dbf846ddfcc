"""A metric says where its best value is, and everything that compares two figures goes by that."""

from __future__ import annotations

import pytest

from server.metrics.base import Description, describe, interval
from server.metrics.recall import Recall


@pytest.mark.parametrize(
    ("better", "figure", "expected"),
    [
        ("lower", (3.0, 1.0, 2.0, 5.0), (3.0, 2.0, 5.0)),
        ("higher", (3.0, 1.0, 2.0, 5.0), (-3.0, -5.0, -2.0)),
        ("zero", (-3.0, 1.0, -5.0, -2.0), (3.0, 2.0, 5.0)),
        ("zero", (-3.0, 1.0, -5.0, 2.0), (3.0, 0.0, 5.0)),
        ("floor", (3.0, 4.0, 2.0, 5.0), (1.0, 0.0, 2.0)),
        ("floor", (0.5, 4.0, 0.0, 1.0), (3.5, 3.0, 4.0)),
    ],
)
def test_how_far_a_figure_is_from_the_best_with_its_interval(
    better: str, figure: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    assert Description("m", better).distance(*figure) == expected


def test_figures_are_shown_with_the_metrics_own_digits_and_factor() -> None:
    told = Description("KID", digits=1, factor=1000.0)
    assert (told.title, told.shown(-0.01234)) == ("KID \u00d7 1000", "\u221212.3")
    assert told.interval(0.001, 0.002) == "1.0 to 2.0"
    assert Description("FRD", has_interval=False).interval(1.0, 1.0) == "no interval"


def test_what_was_written_beside_the_figures_counts_then_the_room_then_the_name_alone() -> None:
    written = {"mine": {"name": "mine", "digits": 0}, "later": {"name": "later", "colour": "red"}}
    found = describe(["mine", "recall", "gone", "later"], written)
    assert found["mine"] == Description("mine", digits=0)
    assert found["recall"] == Recall.described()
    assert found["gone"] == Description("gone")
    assert found["later"] == Description("later"), "of another version"


def test_an_interval_of_one_value_is_that_value() -> None:
    assert interval(2.0, [2.0, 2.0]) == (2.0, 2.0)
