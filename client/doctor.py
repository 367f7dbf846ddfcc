"""What stands between this hospital and taking part: each thing looked at in turn, and how to mend it.

Nothing is changed, nothing is sent but an empty request that shows the node's public key.

The machine itself is looked at by shared/checks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from client import dataset
from client.supernode import approval, connection, isolation, journal, node, starter
from privacy import ledger
from shared import checks
from shared.checks import Finding
from shared.config.site import Site
from shared.crypto import bundle, keys
from shared.errors import DataError, FederationError, FedsynthError, PolicyError
from shared.wording import count


def examine(site: Site, work: Path, door: Path | None = None) -> Iterator[Finding]:
    """Look at everything; a bad finding does not stop the next. `door`: the patients and the app are elsewhere (starter.py)."""
    looks: list[tuple[str, Callable[[], list[str]]]] = [  # each returns warnings, or raises what is wrong
        ("cohort", lambda: _cohort(work)),
        ("ledger", lambda: _ledger(site, work)),
        ("key", lambda: _key(work)),
        ("kit", lambda: node.warnings(node.load_kit(work))),
        ("code", lambda: _code(site, work)),
        ("app's network", lambda: _network(site)),
        ("app's files", lambda: _files(site, work)),
        ("journal", lambda: _journal(work)),
    ]
    if door is not None:
        looks = [(what, look) for what, look in looks if what not in ("cohort", "app's network", "app's files")]
        looks.append(("app's door", lambda: _door(door)))
    for what, look in looks:
        try:
            warnings = look()
        except FedsynthError as error:
            yield Finding(what, "bad", str(error))
            continue
        yield from (Finding(what, "warning", text) for text in warnings)
        if not warnings:
            yield Finding(what, "good", "")
    if door is not None:
        yield from checks.machine(work)
    yield from _line(work)


def _line(work: Path) -> Iterator[Finding]:
    """The proxy that is taken, then the line through it: TLS, the server's certificate, its clock, and that it admits this node."""
    try:
        kit, key = node.load_kit(work), node.private_key(work)
        yield checks.proxy(kit.address.rpartition(":")[0])
        warnings, said = connection.look(kit, key)
    except FedsynthError as error:
        yield Finding("line", "bad", str(error))
        return
    yield from (Finding("line", "warning", text) for text in warnings)
    if not warnings:
        yield Finding("line", "good", said)


def _cohort(work: Path) -> list[str]:
    if not any((work / "cohort").glob("*.npz")):
        raise DataError(f"no patients in {work / 'cohort'}; run `fedsynth client ingest` first")
    dataset.facts(work)
    return []


def _ledger(site: Site, work: Path) -> list[str]:
    path = dataset.records(site, work) / dataset.LEDGER_FILE
    mark = journal.ledger_mark(work)
    if mark is not None or ledger.begun(path):
        ledger.checked_records(path, [mark] if mark else [])
    if site.epsilon_cap is None:
        return ["`epsilon_cap: null` protects nobody; it is for rehearsals on public data"]
    return []


def _key(work: Path) -> list[str]:
    node.private_key(work)
    return []


def _code(site: Site, work: Path) -> list[str]:
    digest = bundle.sha256(bundle.build())
    lacking = approval.missing(site, work, digest)
    if lacking:
        raise PolicyError(
            f"the installed code, bundle {digest[:12]}, lacks {count(lacking, 'signature')}; "
            "look at it with `fedsynth client approve`"
        )
    return []


def _network(site: Site) -> list[str]:
    if site.policy.app_network == "host":
        return [
            "the app has this machine's network (`policy.app_network: host`); only a container should keep it from it"
        ]
    if not isolation.available():
        raise FederationError(
            "user namespaces are off, so the network cannot be taken away from the app; allow them, or see `policy.app_network`"
        )
    return []


def _files(site: Site, work: Path) -> list[str]:
    match starter.keeps(site, work):
        case "host":
            return ["the app may read all that the service may (`policy.app_files: host`): keys, approvals and scans"]
        case "landlock":
            return [
                "Landlock alone keeps the app from files: it cannot hide names that are guessed; allow user namespaces"
            ]
        case _:
            return []


def _door(door: Path) -> list[str]:
    """Private, and there; who stands at its other side cannot be seen from here."""
    if not door.is_dir():
        raise FederationError(f"there is no folder {door}; mount the same one in the node's and the app's container")
    keys.private_folder(door)
    return []


def _journal(work: Path) -> list[str]:
    journal.read(work)
    return []
