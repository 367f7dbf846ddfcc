"""What can break in a federation, done to a real one: each fault strikes, then looks whether what was promised came true.

A fault is a generator. What stands before its `yield` does the harm, what stands after it waits and looks; it returns in one
sentence what happened, or raises FederationError where that is not what was promised. So several faults can strike one round.
The faults of this file strike a run that goes on; startup.py has those of a node or server that must not even start.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import torch
import yaml

from client.supernode import approval, node, prefork
from privacy import ledger
from privacy.accounting import Event, epsilon
from server.cli import app as server_app
from shared import messages
from shared.config.loading import read
from shared.config.site import Site
from shared.crypto import bundle, keys
from shared.refusals import WORDS
from simulations.testbed.byzantine_client import rogue
from simulations.testbed.loopback import command, until
from simulations.testbed.run_probe import PATIENCE_S, RunProbe, expect, ledger_of
from simulations.testbed.tcp_proxy import Cable

Strike = Generator[None, None, str]
APP, STARTER, SERVER_APP = prefork.APP, prefork.__name__, "flwr-serverapp"
BACK = "; it contributed again in round {}"


def server_killed(run: RunProbe) -> Strike:
    """SuperLink, the process that starts apps, and the ServerApp, while the sites train."""
    net = run.net
    run.charging(net.sites[0])
    number = int(run.events("round_started")[-1]["round"])
    finished = [e["round"] for e in run.events("round_finished")]
    resumed = len(run.events("run_resumed"))
    net.kill("server")
    yield
    net.processes["server"].wait(10)
    net.serve()
    until(lambda: len(run.events("run_resumed")) > resumed, PATIENCE_S, "the run goes on")
    after = int(run.events("run_resumed")[-1]["round"])
    expect(after >= max(finished, default=0), f"round {max(finished)} was finished, and it went on after round {after}")
    who = run.end(max(number, after + 1))
    rounds = [e["round"] for e in run.events("round_finished")]
    expect(rounds == sorted(set(rounds)), f"a round was finished twice: {rounds}")
    paid = {site: run.charged(site, number) for site in net.sites}
    said = _contributed(run, max(number, after + 1), who)
    return f"went on after round {after}; {said}; charged for round {number}: {paid}"


def server_app_killed(run: RunProbe) -> Strike:
    """The ServerApp alone; the SuperLink lives."""
    run.charging(run.net.sites[0])
    resumed = len(run.events("run_resumed"))
    expect(bool(run.net.kill("server", SERVER_APP)), "there was no ServerApp to kill")
    yield
    until(lambda: len(run.events("run_resumed")) > resumed, PATIENCE_S, "the run goes on")
    after = int(run.events("run_resumed")[-1]["round"])
    return f"started again, went on after round {after}; {_contributed(run, after + 1, run.end(after + 1))}"


def killed(run: RunProbe, site: str, word: str = "") -> Strike:
    """Those of a site's processes whose command holds `word`, after its app has paid; its supervisor lives.

    word   APP; STARTER, without which the node lives and could not answer any more; none: the node and all that it started
    """
    run.charging(site)
    number = int(run.events("round_started")[-1]["round"])
    expect(bool(run.net.kill(site, word, spare=run.net.processes[site].pid)), "there was nothing to kill")
    yield
    return _without(run, site, number)


def site_slow(run: RunProbe, site: str) -> Strike:
    """The app lives, and its heartbeats come, but it gets next to no time until the round's deadline has passed."""
    run.charging(site)
    number = int(run.events("round_started")[-1]["round"])
    with _held(run, site):
        yield
        who = run.end(number)
    reason = run.reason(number, site)
    expect(site not in who and "no reply within" in reason, f"{who} contributed to round {number}; {reason}")
    again = run.back(site, number)
    late = [e for e in run.events("site_replied", number) if e["site"] == site]
    expect(not late, f"the late reply was added to round {number}")
    return f"round {number} ended without it ({reason}); the late reply was not used" + BACK.format(again)


@contextlib.contextmanager
def _held(run: RunProbe, site: str) -> Generator[None]:
    """A site's app works for 0.3 s in every 20 s: enough for a heartbeat, which Flower misses after 60 s."""
    over = threading.Event()

    def hold() -> None:
        while not over.is_set():
            run.net.kill(site, APP, signal.SIGSTOP)
            over.wait(20.0)
            run.net.kill(site, APP, signal.SIGCONT)
            over.wait(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def link_cut(run: RunProbe, site: str, cable: Cable, seconds: float) -> Strike:
    """The line between node and server, while the site trains."""
    run.charging(site)
    number = int(run.events("round_started")[-1]["round"])
    cable.cut()
    mend_at = time.monotonic() + seconds
    yield
    time.sleep(max(0.0, mend_at - time.monotonic()))
    cable.mend()
    who = run.end(number)
    if site in who:
        paid = run.charged(site, number)
        expect(paid == 1, f"charged {paid} times for round {number}")
        return f"away for {seconds:g} s; its update arrived when the line was back, in the same round; charged once"
    return f"away for {seconds:g} s; " + _without(run, site, number)


def site_absent(run: RunProbe, site: str) -> Strike:
    """The node is ended, stays away for two rounds, and comes back."""
    run.net.stop(site)
    number = run.begin()
    yield
    who = run.end(number) and run.end(number + 1)
    expect(site not in who, f"{site} contributed while it was away")
    took = _seconds(run, number + 1)
    run.net.join(site)
    again = run.back(site, number + 1)
    return (
        f"rounds {number} and {number + 1} by {len(who)} of {len(run.net.sites)} sites, the second in {took:.0f} s"
        + BACK.format(again)
    )


def unapproved(run: RunProbe, site: str) -> Strike:
    """The hospital withdraws its approval of the code in the middle of a run, and gives it again."""
    data = bundle.build()
    approval.withdraw(run.net.work(site), bundle.sha256(data))
    number = run.begin()
    yield
    who = run.end(number)
    reason = run.reason(number, site)
    expect(site not in who and WORDS["code"] in reason, f"{who} contributed; {reason}")
    expect(run.charged(site, number) == 0, "it was charged")
    approval.approve(read(run.net.file(site), Site), run.net.work(site), data)
    return f"refused at the hospital's boundary, nothing run or charged: {reason[:60]}..." + BACK.format(
        run.back(site, number)
    )


def revoked(run: RunProbe, site: str) -> Strike:
    """The coordinator revokes a site while it trains. Later its people make a new key, and are admitted again."""
    net = run.net
    run.charging(site)
    number = int(run.events("round_started")[-1]["round"])
    command(server_app, "revoke", net.folder / "fed.yaml", site)
    yield
    who = [*run.end(number), *run.end(number + 1)]
    expect(site not in who, f"{site} contributed after it was revoked")
    until(lambda: "does not admit this node" in net.log(site), PATIENCE_S, "the site's log says so")
    net.stop(site)
    net.admit(site, keys.certificate_fingerprint((net.federation / "ca.pem").read_text()), new_key=True)
    net.join(site)
    again = run.back(site, number + 1)
    return f"rounds {number} and {number + 1} without it, its own log says that it is not admitted" + BACK.format(again)


def changed_file(run: RunProbe, site: str) -> Strike:
    """The hospital lowers its cap below what the run asks for, in the middle of the run, and raises it again."""
    path = run.net.file(site)
    before = path.read_text()
    path.write_text(yaml.safe_dump(yaml.safe_load(before) | {"epsilon_cap": 0.5}))
    number = run.begin()
    yield
    who = run.end(number)
    reason = run.reason(number, site)
    path.write_text(before)
    expect(site not in who and WORDS["policy"] in reason, f"{who} contributed; {reason}")
    expect(run.charged(site, number) == 0, "it was charged")
    return f"refused by name, nothing charged: {reason}" + BACK.format(run.back(site, number))


def bad_answer(
    run: RunProbe, site: str, say: Callable[[messages.TrainReply], messages.TrainReply], because: str
) -> Strike:
    """A node with the site's own key answers as `say` makes it; the server must refuse and name it."""
    net, number = run.net, 0
    net.stop(site)
    with rogue(net.kit(site), node.private_key(net.work(site))) as line:
        request = line.asked(PATIENCE_S)
        experiment, number, noise, arrays = messages.unpack_request(request.content)
        update = {name: torch.zeros(array.shape) for name, array in arrays.items()}
        steps, privacy = experiment.training.steps, experiment.privacy
        spent = epsilon([Event(noise, privacy.sampling_rate, steps)], privacy.delta)
        honest = messages.TrainReply(site, update, spent, steps, request=messages.request_id(request.content))
        line.answer(request, messages.pack_reply(say(honest)))
        yield
        run.end(number)
    expect(number > 0, "it was not asked, or could not answer")  # Flower's connection keeps errors to itself
    who, reason = run.end(number), run.reason(number, site)
    net.join(site)
    expect(site not in who and because in reason, f"{who} contributed; {reason}")
    return f"rejected: {reason}" + BACK.format(run.back(site, number))


def disk_full(run: RunProbe, site: str, fill: Path) -> Strike:
    """The disk of the hospital's ledger; `fill`: a file on it that may grow. The ledger may still have room in its last block."""
    begun = time.monotonic()
    try:
        with contextlib.suppress(OSError), fill.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        number = run.begin()
        yield
        while site in run.end(number):
            expect(time.monotonic() < begun + 2 * PATIENCE_S, f"{site} goes on with a full disk")
            number += 1
    finally:
        fill.unlink(missing_ok=True)
    reason = run.reason(number, site)
    expect(WORDS["ledger"] in reason, reason)
    said = [line for line in run.net.log(site).splitlines() if "ERROR" in line and "disk is full" in line]
    expect(bool(said), "its log says nothing")
    again = run.back(site, number)
    expect(run.charged(site, number) == 0, f"it was charged for round {number}, for which it had no room")
    return f"nothing was computed ({reason}); its log: {said[-1].split('ERROR')[-1].strip(' :')}" + BACK.format(again)


def never_below(run: RunProbe) -> str:
    """After everything: what each ledger holds is at least what the server received; FederationError where it is not."""
    told = next(e for e in run.events("run_started"))["noise_multiplier"]
    step = Event(told, run.experiment.privacy.sampling_rate, run.experiment.training.steps)
    said = []
    for site in run.net.sites:
        received = [e for e in run.events("site_replied") if e["site"] == site]
        different = {(e["round"], e["epsilon"]) for e in received}
        missing = [e["round"] for e in received if not run.charged(site, e["round"])]
        expect(not missing, f"{site} sent updates for rounds {missing} that its ledger does not hold")
        charges = sum(d.name == run.name for d in ledger.draws(ledger.checked_records(ledger_of(run.net, site))))
        held = max((e["epsilon"] for e in received if e["epsilon"] is not None), default=math.inf)
        spent = epsilon([step] * len({number for number, _ in different}), run.experiment.privacy.delta)
        expect(
            charges >= len(different) and held >= spent * (1 - 1e-9),
            f"{site}: {charges} charges, epsilon {held} < {spent}",
        )
        said.append(
            f"{site} sent {len(different)} updates and was charged {charges} times, epsilon {held:.2f} >= {spent:.2f}"
        )
    return "; ".join(said)


def _without(run: RunProbe, site: str, number: int) -> str:
    """A round that stood without the site, which then came back."""
    who = run.end(number)
    if site in who:
        return f"asked again in round {number}, charged {run.charged(site, number)} times, and contributed"
    reason = run.reason(number, site)
    again = run.back(site, number)
    return f"round {number} stood without it ({reason}), charged {run.charged(site, number)} times" + BACK.format(again)


def _contributed(run: RunProbe, number: int, who: list[str]) -> str:
    """Who took part in a round; whoever did not is named, and comes back."""
    said = [f"{len(who)} of {len(run.net.sites)} sites contributed to round {number}"]
    for site in sorted(set(run.net.sites) - set(who)):
        said.append(f"{site} did not ({run.reason(number, site)})" + BACK.format(run.back(site, number)))
    return ", ".join(said)


def _seconds(run: RunProbe, number: int) -> float:
    return float(run.events("round_finished", number)[0]["seconds"] - run.events("round_started", number)[0]["seconds"])
