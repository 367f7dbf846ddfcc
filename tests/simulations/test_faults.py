"""A real federation that is struck while it runs: it goes on, whoever was struck comes back, and no ledger under-counts.

All faults, and what was promised of each: `python -m simulations.benchmarks.faults`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from simulations.benchmarks.faults import SITE, experiment, finish, through_a_cable
from simulations.faults import running, startup
from simulations.testbed.loopback import federation
from simulations.testbed.run_probe import RunProbe
from simulations.testbed.tcp_proxy import Cable

pytestmark = pytest.mark.in_order


@pytest.fixture(scope="module")
def struck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunProbe, Cable]]:
    folder = tmp_path_factory.mktemp("faults")
    settings = experiment(deadline_s=90.0, sites=3)
    with federation(folder, settings, **SITE) as net:
        cable = through_a_cable(net, net.sites[2])
        net.serve()
        for site in net.sites:
            net.join(site)
        net.want(settings)
        run = RunProbe(net, settings)
        run.back(net.sites[0], 0)
        yield run, cable


def test_pain02_after_a_killed_app_a_killed_node_and_a_cut_link_the_round_stands_and_all_come_back(
    struck: tuple[RunProbe, Cable],
) -> None:
    run, cable = struck
    one, two, three = run.net.sites
    strikes = [
        running.killed(run, one, running.APP),
        running.killed(run, two),
        running.link_cut(run, three, cable, 8.0),
    ]
    with ThreadPoolExecutor(3) as pool:  # all in the same round
        list(pool.map(next, strikes))
    for strike in reversed(strikes):
        assert finish(strike)
    assert running.never_below(run)


def test_a_node_that_cannot_start_its_app_any_more_starts_anew(struck: tuple[RunProbe, Cable]) -> None:
    """It would take work, and never answer."""
    run, _ = struck
    strike = running.killed(run, run.net.sites[0], running.STARTER)
    next(strike)
    assert finish(strike)


def test_a_killed_server_goes_on_after_its_last_round(struck: tuple[RunProbe, Cable]) -> None:
    run, _ = struck
    strike = running.server_killed(run)
    next(strike)
    assert finish(strike)
    assert running.never_below(run)


def test_a_clock_that_is_wrong_is_refused_in_one_line(struck: tuple[RunProbe, Cable]) -> None:
    run, _ = struck
    assert "clock" in startup.wrong_clock(run.net, run.net.sites[0])
