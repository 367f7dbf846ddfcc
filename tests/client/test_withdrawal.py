"""What was withdrawn stays withdrawn, whatever a disk or a backup brings back; nobody believes in a withdrawal that was none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from client.supernode import approval, journal
from shared.config.site import Site
from shared.crypto import bundle
from shared.errors import FedsynthError


def code(line: str) -> bytes:
    files = {f"{room}/__init__.py": line.encode() for room in bundle.ROOMS}
    return bundle.pack(files | {"pyproject.toml": bundle.PROJECT.format(version="1").encode()})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(name="north", data=tmp_path, face_removal="none")


@pytest.fixture
def honest(site: Site, tmp_path: Path) -> bytes:
    data = code("noise = 1\n")
    approval.approve(site, tmp_path, data)
    return data


def test_attack_10_a_withdrawn_approval_that_comes_back_counts_for_nothing(
    site: Site, tmp_path: Path, honest: bytes
) -> None:
    """From a backup, or because the disk had not yet forgotten it when the power went."""
    digest = bundle.sha256(honest)
    folder = tmp_path / "node" / "approvals"
    shutil.copytree(folder, tmp_path / "copy")
    approval.withdraw(tmp_path, digest)
    shutil.copytree(tmp_path / "copy", folder, dirs_exist_ok=True)
    assert approval.missing(site, tmp_path, digest) == 1
    assert approval.last(site, tmp_path) is None
    approval.approve(site, tmp_path, honest)
    assert approval.missing(site, tmp_path, digest) == 0


def test_attack_10_a_withdrawal_is_on_the_disk_when_it_is_said(
    site: Site, tmp_path: Path, honest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, events, real, unlink = tmp_path / "node" / "approvals", list[str](), os.fsync, Path.unlink

    def synced(file: int) -> None:
        events.append(str(Path(f"/proc/self/fd/{file}").readlink()))
        real(file)

    def removed(path: Path, missing_ok: bool = False) -> None:
        events.append(f"gone {path.name}")
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "unlink", removed)
    approval.withdraw(tmp_path, bundle.sha256(honest))
    (gone,) = (i for i, event in enumerate(events) if event.startswith("gone") and event.endswith(".json"))
    assert str(folder) in events[gone:]


def test_attack_10_a_withdrawal_that_is_in_the_journal_holds_even_if_the_disk_then_fails(
    site: Site, tmp_path: Path, honest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", fails)
        with pytest.raises(OSError, match="Input/output"):
            approval.withdraw(tmp_path, bundle.sha256(honest))
    assert journal.read(tmp_path)[-1]["kind"] == "withdrawn"
    assert approval.missing(site, tmp_path, bundle.sha256(honest)) == 1


def test_attack_10_a_journal_that_cannot_be_written_does_not_keep_an_approval_alive(
    site: Site, tmp_path: Path, honest: bytes
) -> None:
    path = tmp_path / "node" / journal.FILE
    path.write_bytes(path.read_bytes().replace(b'"approved"', b'"approvad"'))
    with pytest.raises(FedsynthError, match="damaged"):
        approval.withdraw(tmp_path, bundle.sha256(honest))
    assert not list((tmp_path / "node" / "approvals").glob("*.json"))


@pytest.mark.parametrize("typed", ["", "*", "?", "[0-9a-f]", "../approvals/", "abcde", "0" * 64, "g" * 8])
def test_attack_10_a_withdrawal_that_names_nothing_says_so_and_removes_nothing(
    site: Site, tmp_path: Path, honest: bytes, typed: str
) -> None:
    """Who mistypes a hash must not go home in the belief that the code no longer runs."""
    with pytest.raises(FedsynthError, match="withdraw"):
        approval.withdraw(tmp_path, typed)
    assert approval.missing(site, tmp_path, bundle.sha256(honest)) == 0


def test_attack_10_an_approval_without_the_bundle_that_was_read_counts_for_nothing(
    site: Site, tmp_path: Path, honest: bytes
) -> None:
    digest = bundle.sha256(honest)
    copy = tmp_path / "node" / "approvals" / f"{digest}.bundle"
    copy.write_bytes(code("noise = 0\n"))
    assert approval.missing(site, tmp_path, digest) == 1
    copy.unlink()
    assert approval.missing(site, tmp_path, digest) == 1
