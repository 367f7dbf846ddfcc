"""Every error a user can meet.

FedsynthError                 the base: one line for the user, exit code 1
├── ConfigError               a setting is unknown, missing or out of range          (exit code 2)
├── DataError                 input cannot be read or used; never quotes patient data
├── MessageError              an arriving message has wrong names, shapes, dtypes or values
├── WeightsError              a weights file is missing, altered or does not fit the network
├── PrivacyError              a privacy condition cannot be met (calibration, noise-to-signal, seeds)
│   ├── BudgetExceeded        the work would pass the hospital's cap; nothing was computed
│   ├── LedgerError           the ledger is damaged, locked or belongs to another cohort
│   └── PolicyError           the hospital's own policy does not permit it: code, settings, sizes
├── SignatureError            a signature does not match, or a signing key cannot be used
├── FederationError           the federation could not run or a site failed
└── ReleaseRefused            the release gate said no                               (exit code 3)

A message says what, which value, and how to mend it. It never contains a value read from patient data.
"""

from __future__ import annotations


class FedsynthError(Exception):
    """Base of all errors that are shown to a user as one line."""

    exit_code = 1


def in_words(error: Exception) -> str:
    """An error in words for people: ours as it is; of any other the kind alone, because its text may quote patient data."""
    return str(error) if isinstance(error, FedsynthError) else f"a fault of the program ({type(error).__name__})"


class ConfigError(FedsynthError):
    """A setting is unknown, missing or out of range."""

    exit_code = 2


class DataError(FedsynthError):
    """Input cannot be read or used. The message never quotes a value from the data."""


class MessageError(FedsynthError):
    """A message that arrived has wrong names, shapes, dtypes or values."""


class WeightsError(FedsynthError):
    """A weights file is missing, altered, or does not fit the network."""


class PrivacyError(FedsynthError):
    """A privacy condition cannot be met."""


class BudgetExceeded(PrivacyError):
    """The requested work would pass the hospital's cap. Nothing was computed."""


class LedgerError(PrivacyError):
    """The ledger is damaged, held by another writer, or belongs to another cohort."""


class SignatureError(FedsynthError):
    """A signature does not match, or a signing key cannot be used."""


class PolicyError(PrivacyError):
    """The hospital's own policy does not permit what was asked, or what was about to leave.

    word      what a refusal says of it, a key of `refusals.WORDS`: the text of an error itself never travels
    setting   the key of the experiment that is not permitted, "" for none
    """

    def __init__(self, text: str, *, word: str = "policy", setting: str = "") -> None:
        super().__init__(text)
        self.word, self.setting = word, setting


class FederationError(FedsynthError):
    """The federation could not run, or a required site failed."""


class ReleaseRefused(FedsynthError):
    """The release gate said no."""

    exit_code = 3
