"""What people read of an error."""

from __future__ import annotations

import pytest

from shared.errors import FederationError, LedgerError, in_words
from shared.wording import count


@pytest.mark.parametrize("error", [FederationError("nobody came"), LedgerError("nobody came")])
def test_our_own_errors_are_told_without_the_name_of_their_class(error: Exception) -> None:
    assert in_words(error) == "nobody came"


def test_an_error_of_a_library_is_told_without_its_text_which_may_quote_a_patient() -> None:
    assert in_words(ValueError("Invalid value for VR DA: 'JANE SMITH'")) == "a fault of the program (ValueError)"


def test_one_thing_is_one() -> None:
    assert [count(n, "patient") for n in (0, 1, 2)] == ["0 patients", "1 patient", "2 patients"]
