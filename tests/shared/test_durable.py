"""A file is there whole or not at all, and the disk knows its name before anybody is told."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from shared import files
from shared.crypto import keys, signing


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was waited for, renamed and linked, in order."""
    found: list[str] = []
    fsync, replace, link = os.fsync, Path.replace, os.link

    def synced(file: int) -> None:
        found.append(f"sync {Path(f'/proc/self/fd/{file}').readlink().name}")
        fsync(file)

    def renamed(path: Path, target: Path) -> Path:
        found.append(f"name {target.name}")
        return replace(path, target)

    def linked(old: Path, new: Path, **named: bool) -> None:
        found.append(f"name {new.name}")
        link(old, new, **named)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(os, "link", linked)
    return found


def test_attack_10_a_power_cut_does_not_bring_the_file_before_back(tmp_path: Path, events: list[str]) -> None:
    files.write_bytes(tmp_path / "deep" / "file", b"new")
    assert (tmp_path / "deep" / "file").read_bytes() == b"new"
    assert f"sync {tmp_path.name}" in events, "the folder that was made"
    assert events[-2:] == ["name file", "sync deep"]


def test_attack_10_a_power_cut_does_not_take_a_new_key_away(tmp_path: Path, events: list[str]) -> None:
    """A statement could be on the disk, and the key that signed it gone."""
    keys.write_secret(tmp_path / "node" / "node.key", b"secret")
    assert events[-2:] == ["name node.key", "sync node"]
    signing.load_or_make(tmp_path / "node" / "approval.key")
    assert events[-1] == "sync node"


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_bytes(tmp_path / "file", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (files.write_bytes, files.replace):
        with pytest.raises(OSError, match="No space"):
            write(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_secrets_are_for_their_owner_and_other_files_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        files.write_bytes(tmp_path / "open", b"")
        files.replace(tmp_path / "mine", b"")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("open", "mine")] == [0o644, 0o600]


def test_a_new_file_never_takes_the_place_of_one_that_is_there(tmp_path: Path) -> None:
    files.write_new(tmp_path / "file", b"first")
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "file", b"second")
    files.remove(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
