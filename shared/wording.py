"""How a number of things is said to a person: "1 patient", "2 patients"."""

from __future__ import annotations


def count(number: int, thing: str) -> str:
    """`thing` is a regular noun in the singular."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
