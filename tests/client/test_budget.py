"""What a hospital's file says about its ledger holds: one ledger for one key, a delta by policy, and no count in what travels."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from client import budget, dataset
from client.deidentification import pseudonym
from privacy import accounting, filters
from privacy.accounting import Event
from privacy.ledger import checked_records
from shared.config.experiment import Experiment
from shared.config.loading import validate
from shared.config.site import Site
from shared.errors import BudgetExceeded, ConfigError, DataError, LedgerError

COUNT = itertools.count()


def work(place: Path, records: Path | None = None, *, tagged: bool = True) -> Path:
    """A work folder as an ingest leaves it."""
    (place / "cohort").mkdir(parents=True)
    key = pseudonym.load_or_make((records or place) / dataset.KEY_FILE)
    if tagged:
        (place / "cohort" / dataset.COHORT_FILE).write_text(dataset.cohort_id(key))
    return place


def site(**words: Any) -> Site:
    return Site(name="north", data=Path("/data"), **words)


def charge(settings: Site, folder: Path, *people: str, noise: float = 20.0, delta: float = 1e-5) -> float:
    """One round of one step for a cohort of these people, and what is told of it."""
    for path in (folder / "cohort").glob("*.npz"):
        path.unlink()
    for name in people:
        (folder / "cohort" / f"{name}.npz").touch()
    facts = dataset.register(settings, folder, image_size=64, classes=())
    name = f"t{next(COUNT)}"  # each a run of its own
    tree = {"name": name, "privacy": {"delta": delta}, "training": {"rounds": 1, "steps": 1}}
    return budget.charge(settings, folder, facts, Experiment.model_validate(tree), noise, 1, name).epsilon


def spent(count: int, delta: float = 1e-5) -> float:
    """Of so many runs of one step, of which each may have been chosen after looking at those before it."""
    return filters.epsilon([[Event(20.0, 1.0, 1)]] * count, delta)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    folder = tmp_path / "records"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("apart", "adults"), [(False, 2), (True, 1)])
def test_two_cohorts_of_one_hospital_are_one_ledger(tmp_path: Path, records: Path, apart: bool, adults: int) -> None:
    settings = site(records=records, separate_cohorts=apart)
    children, grown = work(tmp_path / "children", records), work(tmp_path / "adults", records)
    assert charge(settings, children, "ann", "bob") == spent(1)
    assert charge(settings, grown, "cid") == spent(adults)
    assert charge(settings, grown, "bob", "cid") == spent(adults + 1)  # bob has grown up
    kept = ["ledger.groups.json", "ledger.jsonl", "ledger.mark", "ledger.members", dataset.KEY_FILE]
    assert sorted(p.name for p in records.iterdir()) == kept
    assert not (children / "ledger.jsonl").exists()


def test_a_cohort_made_with_an_unknown_key_counts_for_everybody(tmp_path: Path, records: Path) -> None:
    settings = site(records=records, separate_cohorts=True)
    charge(settings, work(tmp_path / "a", records), "ann")
    old = work(tmp_path / "b", records, tagged=False)
    assert charge(settings, old, "bob") == spent(2)
    (old / "cohort" / dataset.COHORT_FILE).write_text(dataset.cohort_id(bytes(32)))
    assert charge(settings, old, "cid") == spent(3)
    assert [r["members"] is None for r in checked_records(records / "ledger.jsonl")[1:]] == [False, True, True]


@pytest.mark.parametrize("name", [dataset.KEY_FILE, "ledger.jsonl"])
def test_a_second_key_or_ledger_in_the_work_folder_is_refused(tmp_path: Path, records: Path, name: str) -> None:
    folder = work(tmp_path / "a", records)
    (folder / name).write_bytes(b"x")
    with pytest.raises(DataError, match="of its own"):
        charge(site(records=records), folder, "ann")
    assert not (records / "ledger.jsonl").exists()


def test_records_must_be_an_absolute_path() -> None:
    with pytest.raises(ConfigError, match="absolute"):
        validate({"name": "north", "data": "/d", "records": "records"}, Site, "site.yaml")


def test_delta_follows_the_number_of_patients_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    folder = work(tmp_path / "a")
    told = charge(site(), folder, *(f"p{i}" for i in range(10_001)))
    assert told == spent(1)  # at the experiment's delta: what travels does not tell the number
    assert checked_records(folder / "ledger.jsonl")[-1]["epsilon"] == spent(1, 1e-6)
    charge(site(), folder, "p1")  # ten thousand patients fewer: what was promised is not weakened
    assert checked_records(folder / "ledger.jsonl")[-1]["delta"] == 1e-6


def test_a_refusal_does_not_tell_how_many_patients_there_are_and_says_how_to_mend(tmp_path: Path) -> None:
    said = []
    for name, people in (("small", 10), ("large", 10_001)):
        folder = work(tmp_path / name)
        (folder / dataset.KEY_FILE).write_bytes(bytes(32))
        (folder / "cohort" / dataset.COHORT_FILE).write_text(dataset.cohort_id(bytes(32)))
        with pytest.raises(BudgetExceeded) as error:
            charge(site(epsilon_cap=0.1), folder, *(f"p{i}" for i in range(people)))
        said.append(str(error.value))
    assert said[0] == said[1]
    folder = work(tmp_path / "older")
    charge(site(), folder, *(f"p{i}" for i in range(10_001)))
    with pytest.raises(LedgerError, match="is of a smaller delta") as refused:
        charge(site(delta=1e-5), folder, "p1")
    assert "1e-06" not in str(refused.value)
    for words in ("`privacy.delta` in the experiment", "`delta` in its file", "epsilon_cap"):
        assert words in said[0]


def test_a_run_that_fits_at_its_own_delta_may_not_fit_at_the_sites(tmp_path: Path) -> None:
    noise = accounting.noise_multiplier_for(epsilon=8.0, delta=1e-5, sampling_rate=1.0, steps=1)
    people = [f"p{i}" for i in range(10_001)]
    with pytest.raises(BudgetExceeded, match="site's own delta"):
        charge(site(), work(tmp_path / "a"), *people, noise=noise)
    planned = accounting.noise_multiplier_for(epsilon=8.0, delta=1e-6, sampling_rate=1.0, steps=1)
    assert charge(site(), work(tmp_path / "b"), *people, noise=planned, delta=1e-6) <= 8
    assert charge(site(delta=1e-5), work(tmp_path / "c"), *people, noise=noise) <= 8


@pytest.mark.parametrize(
    "change", [{"model": {"blocks_per_level": 2}}, {"training": {"steps": 2}}, {"base": "none", "training": {"trainable": "full"}}]
)  # fmt: skip
def test_a_run_with_another_model_training_or_base_is_another_plan(change: dict[str, Any]) -> None:
    assert set(Experiment.model_fields) >= budget.DECIDES, "each is a key of the experiment, as it is called today"
    one, other = (Experiment.model_validate({"name": "t", **tree}) for tree in ({}, change))
    assert budget.plan(one, 20.0).key != budget.plan(other, 20.0).key
