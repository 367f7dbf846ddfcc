"""The hospital's app says no in words that carry no data, and spends before it computes."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from client import app, dataset, private_statistics, reply_cache
from client.deidentification import pseudonym
from privacy import accounting, noisy_statistics
from privacy.accounting import Event
from privacy.ledger import checked_records
from privacy.noise import SecureRandom
from shared import messages
from shared.adapters.base import attach
from shared.config.experiment import Experiment, Statistics
from shared.config.loading import read
from shared.config.site import Site
from shared.models import weights
from shared.models.pixel_diffusion import PixelDiffusion, PixelDiffusionSettings

EXPERIMENT = Experiment.model_validate(
    {
        "name": "t",
        "base": "none",
        "classes": {"a": "any", "b": "any"},
        "model": PixelDiffusionSettings(
            image_size=16, channels=(8, 16), groups=4, latents=4, encoder_channels=8
        ).model_dump(),
        "training": {"rounds": 2, "steps": 2},
        "cohort": {"patients_per_site": 3},
    }
)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site with three patients, ready to train."""
    tree = {"name": "north", "data": str(tmp_path), "format": "images", "face_removal": "none", "epsilon_cap": 8}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(tree))
    pseudonym.load_or_make(tmp_path / dataset.KEY_FILE)
    rng = np.random.default_rng(0)
    for i in range(3):
        x = rng.integers(0, 255, (5, 16, 16), dtype=np.uint8)
        dataset.save(dataset.Patient(f"p{i}", i % 2, x), tmp_path / "cohort")
    registered(tmp_path)
    return tmp_path


def registered(place: Path, classes: tuple[str, ...] = ("a", "b"), image_size: int = 16) -> None:
    """The cohort as a finished ingest leaves it."""
    settings = read(place / "site.yaml", Site)
    dataset.register(settings, place, image_size=image_size, classes=classes)


def ask(
    site: Path,
    experiment: Experiment = EXPERIMENT,
    noise: float = 3.0,
    *,
    number: int = 1,
    shift: float = 0.0,
    run: int = 7,
    **spoil: Any,
) -> messages.TrainReply | messages.Refusal:
    model = weights.load_base("none", experiment.model, experiment.classes)
    tensors = {k: v.detach() + shift for k, v in attach(model, experiment.training.trainable).items()}
    content = messages.pack_request(messages.TrainRequest(experiment, number, noise, tensors | spoil))
    context: Any = SimpleNamespace(
        node_config={"site": str(site / "site.yaml")}, run_config={"experiment": ""}, run_id=run
    )
    reply = app.answer(content, context)
    asked = noisy_statistics.asked(experiment.privacy.statistics, number)
    return messages.unpack_reply(reply, {k: tuple(v.shape) for k, v in tensors.items()}, asked)


def test_a_good_request_is_answered_and_charged(site: Path) -> None:
    reply = ask(site)
    assert isinstance(reply, messages.TrainReply)
    assert (reply.site, reply.steps) == ("north", 2)
    assert any(u.abs().sum() > 0 for u in reply.update.values())
    assert reply.epsilon == pytest.approx(accounting.epsilon([Event(3.0, 1.0, 4)], 1e-5))  # of the whole run


def test_every_round_and_run_of_a_cohort_adds_up_until_the_cap_stops_it(site: Path) -> None:
    spent = []
    for i in range(20):
        reply = ask(site, shift=i / 1000, run=i)
        if isinstance(reply, messages.Refusal):
            break
        spent.append(reply.epsilon)
    assert spent == sorted(spent)
    assert spent[-1] <= 8
    assert reply == messages.Refusal("north", "budget")


@pytest.mark.parametrize(
    ("changes", "noise", "setting", "words"),
    [
        ({"privacy": {"epsilon": None}}, 0.0, "privacy.epsilon", "does not train without privacy"),
        ({}, 0.0, "privacy.epsilon", "does not train without privacy"),
        ({"privacy": {"epsilon": 20.0}}, 3.0, "privacy.epsilon", "permits epsilon 8"),
        ({"privacy": {"delta": 1e-4}}, 3.0, "privacy.delta", "permits delta"),
    ],
)
def test_a_request_beyond_the_site_file_is_refused_and_costs_nothing(
    site: Path, changes: dict[str, Any], noise: float, setting: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = Experiment.model_validate(EXPERIMENT.model_dump() | changes)
    assert ask(site, experiment, noise) == messages.Refusal("north", "policy", setting)
    assert words in caplog.text
    assert not (site / "ledger.jsonl").exists()


def test_an_extra_tensor_is_refused(site: Path) -> None:
    assert ask(site, extra=torch.zeros(1)) == messages.Refusal("north", "unreadable")


def test_the_budget_is_spent_when_training_fails_and_noise_alone_is_the_answer(
    site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(PixelDiffusion, "loss", lambda *_: 1 / 0)
    reply = ask(site)
    assert isinstance(reply, messages.TrainReply)
    assert all(u.abs().sum() > 0 for u in reply.update.values())
    assert charges(site) == 1
    assert "ZeroDivisionError" in caplog.text


def test_where_even_noise_cannot_be_drawn_the_refusal_says_nothing(
    site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("JANE SMITH 1947")

    monkeypatch.setattr(app, "train", fail)
    assert ask(site) == messages.Refusal("north", "failed")
    assert "JANE" not in caplog.text and "RuntimeError" in caplog.text
    assert charges(site) == 1


def test_a_node_without_a_site_says_how_to_give_it_one() -> None:
    context: Any = SimpleNamespace(node_config={}, run_id=1)
    with pytest.raises(Exception, match="start it with --node-config"):
        app.locate(context)


def test_full_training_moves_the_network_too(site: Path) -> None:
    settings = EXPERIMENT.model_dump()
    settings["training"] |= {"trainable": "full", "slices": 2, "draws": 1, "learning_rate": 1e-3, "optimizer": "adam"}
    reply = ask(site, Experiment.model_validate(settings))
    assert isinstance(reply, messages.TrainReply)
    assert any(name.startswith("denoiser.unet") and u.abs().sum() > 0 for name, u in reply.update.items())


def charges(site: Path) -> int:
    return sum(r["kind"] == "reserve" for r in checked_records(site / "ledger.jsonl"))


def same(a: messages.TrainReply | messages.Refusal, b: messages.TrainReply | messages.Refusal) -> bool:
    assert isinstance(a, messages.TrainReply)
    assert isinstance(b, messages.TrainReply)
    return all(torch.equal(t, b.update[name]) for name, t in a.update.items())


def test_a_request_that_comes_again_gets_the_same_update_and_costs_nothing(site: Path) -> None:
    first = ask(site)
    again = ask(site, run=8)  # a run that goes on after an interruption has a new number
    assert same(first, again)
    assert charges(site) == 1


def test_another_request_is_charged_and_the_reply_before_it_is_gone(site: Path) -> None:
    first = ask(site)
    assert not same(first, ask(site, shift=0.01))  # the same round, other weights
    assert charges(site) == 2
    assert not same(first, ask(site))  # the first again: its reply was dropped, and new noise is paid for
    assert charges(site) == 3
    later = ask(site, number=2)  # within what was reserved for the whole run
    assert same(later, ask(site, number=2))
    assert charges(site) == 3
    assert isinstance(ask(site, noise=5.0, number=2, run=8), messages.TrainReply)  # another plan is another run
    assert charges(site) == 4


def test_a_crash_before_the_reply_is_finished_is_charged_again_and_one_after_it_is_not(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name, count in (("train", 2), ("messages.pack_reply", 2)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"client.app.{name}", killed)
            ask(site)
        assert isinstance(ask(site), messages.TrainReply)
        assert charges(site) == count


def test_a_refused_request_leaves_the_kept_reply_alone(site: Path) -> None:
    first = ask(site)
    assert isinstance(ask(site, noise=0.3, shift=0.01), messages.Refusal)
    assert same(first, ask(site))
    assert charges(site) == 1


def test_a_site_that_permits_less_than_before_does_not_send_the_kept_reply(site: Path) -> None:
    assert isinstance(ask(site), messages.TrainReply)
    tree = yaml.safe_load((site / "site.yaml").read_text())
    (site / "site.yaml").write_text(yaml.safe_dump(tree | {"epsilon_cap": 1}))
    assert isinstance(ask(site), messages.Refusal)


def test_an_update_without_privacy_is_not_kept(site: Path) -> None:
    tree = yaml.safe_load((site / "site.yaml").read_text())
    (site / "site.yaml").write_text(yaml.safe_dump(tree | {"epsilon_cap": None}))
    assert isinstance(ask(site, noise=0.0), messages.TrainReply)
    assert not reply_cache.path(site).exists()


ASKING = EXPERIMENT.model_copy(
    update={
        "privacy": EXPERIMENT.privacy.model_copy(
            update={"statistics": Statistics(patient_count=30.0, mean_loss=40.0, loss_bound=5.0)}
        )
    }
)


def share(site: Path, *names: str) -> None:
    tree = yaml.safe_load((site / "site.yaml").read_text())
    (site / "site.yaml").write_text(yaml.safe_dump(tree | {"share": list(names)}))


@pytest.mark.parametrize("shared", [(), ("patient-count",), ("mean-loss",)])
def test_a_figure_that_the_site_does_not_share_is_refused_and_costs_nothing(
    site: Path, shared: tuple[str, ...]
) -> None:
    share(site, *shared)
    reply = ask(site, ASKING)
    assert isinstance(reply, messages.Refusal)
    assert reply.word == "policy" and reply.setting.startswith("privacy.statistics.")
    assert not (site / "ledger.jsonl").exists()


def test_nothing_leaves_that_was_not_asked_for(site: Path) -> None:
    share(site, "patient-count", "mean-loss")
    reply = ask(site)
    assert isinstance(reply, messages.TrainReply)
    assert reply.statistics == {}
    assert charges(site) == 1


def test_shared_figures_are_charged_one_by_one_before_they_are_computed_and_sent_again_as_they_were(site: Path) -> None:
    share(site, "patient-count", "mean-loss")
    first = ask(site, ASKING)
    assert isinstance(first, messages.TrainReply)
    assert set(first.statistics) == {"patient-count", "mean-loss"}
    assert 0 <= first.statistics["mean-loss"] <= 5
    events = [
        Event(30.0, 1.0, 1),
        Event(40.0, 1.0, 2),
        Event(3.0, 1.0, 4),
    ]  # of both rounds: the plan is reserved whole
    assert first.epsilon == pytest.approx(accounting.epsilon(events, 1e-5))
    assert charges(site) == 1
    again = ask(site, ASKING)
    assert isinstance(again, messages.TrainReply)
    assert again.statistics == first.statistics
    assert charges(site) == 1
    second = ask(site, ASKING, number=2)
    assert isinstance(second, messages.TrainReply)
    assert set(second.statistics) == {"mean-loss"}


def test_figures_and_training_that_do_not_fit_together_cost_nothing(site: Path) -> None:
    share(site, "patient-count", "mean-loss")
    tree = yaml.safe_load((site / "site.yaml").read_text())
    (site / "site.yaml").write_text(yaml.safe_dump(tree | {"epsilon_cap": 8}))
    noise = accounting.noise_multiplier_for(epsilon=8.0, delta=1e-5, sampling_rate=1.0, steps=4)
    statistics = Statistics(patient_count=5.0, mean_loss=5.0)
    dear = ASKING.model_copy(update={"privacy": ASKING.privacy.model_copy(update={"statistics": statistics})})
    assert ask(site, dear, noise) == messages.Refusal("north", "budget")
    assert charges(site) == 0
    assert isinstance(ask(site, noise=noise), messages.TrainReply)


def test_the_loss_is_that_of_every_patient_and_the_count_is_of_all(site: Path) -> None:
    model = weights.load_base("none", EXPERIMENT.model, EXPERIMENT.classes)
    cohort = dataset.load(site / "cohort")
    exact = private_statistics.losses(model, cohort, EXPERIMENT)
    assert len(exact) == 3
    assert all(loss > 0 for loss in exact)
    few = [
        private_statistics.measure(model, cohort, ASKING, {"patient-count": 1e-6})["patient-count"] for _ in range(3)
    ]
    assert few == [3.0] * 3
    mean = private_statistics.measure(model, cohort, ASKING, {"mean-loss": 1e-6})["mean-loss"]
    assert mean == pytest.approx(sum(min(x, 5.0) for x in exact) / 3, rel=0.05)
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("place", ["node_config", "run_config"])
def test_a_seed_in_a_configuration_is_refused(site: Path, place: str, caplog: pytest.LogCaptureFixture) -> None:
    configurations: dict[str, Any] = {"node_config": {"site": str(site / "site.yaml")}, "run_config": {}}
    configurations[place] |= {"noise-seed": 3}
    content = messages.pack_request(messages.TrainRequest(EXPERIMENT, 1, 3.0, {}))
    reply = messages.unpack_reply(app.answer(content, SimpleNamespace(**configurations, run_id=7)), {})
    assert reply == messages.Refusal("north", "failed")
    assert "`noise-seed`; a hospital's app takes no seed" in caplog.text
    assert not (site / "ledger.jsonl").exists()


@pytest.mark.parametrize("made", ["inside", "before"])
def test_noise_from_a_given_key_is_refused_whoever_brings_it(
    site: Path, made: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As code would that was changed to make a run repeatable: its update never leaves."""
    stream = SecureRandom(bytes(32))
    assert stream.deterministic
    source = (lambda: stream) if made == "before" else (lambda: SecureRandom(bytes(32)))
    monkeypatch.setattr("client.train.SecureRandom", source)
    reply = ask(site)
    assert reply == messages.Refusal("north", "failed")
    assert "given key" in caplog.text
    assert stream.gaussian((1,)).shape == (1,)  # outside the hospital's app a test may


def test_seeding_every_other_generator_changes_nothing(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    updates = []
    for number in (1, 2):
        torch.manual_seed(0)
        np.random.seed(0)  # the old global generator is what somebody would seed
        random.seed(0)
        reply = ask(site, EXPERIMENT.model_copy(update={"seed": 5}), number=number)
        assert isinstance(reply, messages.TrainReply)
        updates.append(torch.cat([u.flatten() for u in reply.update.values()]))
    assert not torch.isclose(updates[0], updates[1], rtol=1e-6).any()  # by chance: 1 in 10,000


def asked_with(site: Path, classes: dict[str, str], **more: Any) -> messages.TrainReply | messages.Refusal:
    return ask(site, Experiment.model_validate(EXPERIMENT.model_dump() | {"classes": classes} | more))


def add(site: Path, label: int, x_SHW: np.ndarray | None = None) -> None:
    x = np.full((5, 16, 16), 99, np.uint8) if x_SHW is None else x_SHW
    dataset.save(dataset.Patient("p9", label, x), site / "cohort")


def test_attack_01_a_label_that_the_experiment_does_not_know_makes_no_difference_to_what_leaves(site: Path) -> None:
    """Fewer classes than the site has: a failing round would be an answer without noise."""
    replies = [ask(site)]
    add(site, label=7)
    replies.append(ask(site, shift=0.01))
    assert [type(reply) for reply in replies] == [messages.TrainReply] * 2


def test_attack_01_fewer_classes_than_the_sites_are_refused_in_the_same_words_whoever_is_there(site: Path) -> None:
    for path in (site / "cohort").glob("*.npz"):
        patient = dataset.load_one(path)
        dataset.save(dataset.Patient(patient.pseudonym, 0, patient.x_SHW), site / "cohort")
    without = asked_with(site, {"a": "any"})
    add(site, label=1)
    assert asked_with(site, {"a": "any"}) == without
    assert isinstance(without, messages.Refusal)
    assert not (site / "ledger.jsonl").exists()


@pytest.mark.parametrize("spoiled", ["another size", "no slice", "not an archive", "cut short"])
def test_attack_01_a_patient_who_cannot_be_read_contributes_nothing_and_changes_nothing(
    site: Path, spoiled: str
) -> None:
    add(site, 0, np.zeros((5, 8, 8), np.uint8) if spoiled == "another size" else None)
    path = site / "cohort" / "p9.npz"
    if spoiled == "no slice":
        np.savez_compressed(path, x=np.zeros((0, 16, 16), np.uint8), label=np.int64(0))
    elif spoiled != "another size":
        path.write_bytes(b"JANE SMITH" if spoiled == "not an archive" else path.read_bytes()[:-40])
    reply = ask(site)
    assert isinstance(reply, messages.TrainReply)


def test_attack_01_an_error_while_training_is_noise_and_not_a_refusal(
    site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = app.train
    calls: list[int] = []

    def fails_with_patients(model: Any, cohort: list[dataset.Patient], *rest: Any, **named: Any) -> Any:
        calls.append(len(cohort))
        if cohort:
            raise RuntimeError("JANE SMITH 1947")
        return real(model, cohort, *rest, **named)

    monkeypatch.setattr(app, "train", fails_with_patients)
    with caplog.at_level(logging.ERROR):
        reply = ask(site)
    assert isinstance(reply, messages.TrainReply)
    assert any(u.abs().sum() > 0 for u in reply.update.values())
    assert calls == [3, 0] and "RuntimeError" in caplog.text and "JANE" not in caplog.text


def test_attack_02_a_clipping_bound_or_a_learning_rate_beyond_the_sites_policy_is_refused(site: Path) -> None:
    for section, change in (
        ("privacy", {"max_grad_norm": 3e37}),
        ("training", {"learning_rate": 1e30}),
        ("training", {"slices": 100_000}),
        ("training", {"draws": 100_000}),
        ("privacy", {"sampling_rate": 1e-6}),
    ):
        experiment = Experiment.model_validate(
            EXPERIMENT.model_dump() | {section: EXPERIMENT.model_dump()[section] | change}
        )
        assert isinstance(ask(site, experiment), messages.Refusal), change
    assert isinstance(ask(site, noise=0.001), messages.Refusal)
    assert isinstance(ask(site, shift=1e30), messages.Refusal)
    assert not (site / "ledger.jsonl").exists()


def test_attack_03_a_base_is_a_name_and_never_a_path(site: Path) -> None:
    """A path would read the hospital's disk, and the text of the error would say what is there."""
    told = []
    for name in ("JANE.safetensors", "absent.safetensors"):
        (site / "JANE.json").write_text("{}")
        (site / "JANE.safetensors").write_bytes(b"x")
        for base in (str(site / name), f"../{name}", f"..{name}"):
            experiment = EXPERIMENT.model_copy(update={"base": base})
            content = messages.pack_request(messages.TrainRequest(experiment, 1, 3.0, {}))
            context: Any = SimpleNamespace(node_config={"site": str(site / "site.yaml")}, run_config={}, run_id=7)
            reply = messages.unpack_reply(app.answer(content, context), {})
            assert isinstance(reply, messages.Refusal)
            told.append(reply.reason)
    assert len(set(told)) == 1
    assert str(site) not in told[0] and "JANE" not in told[0]
