"""What a doctor says of a machine is true of it, and says how to mend it."""

from __future__ import annotations

import ctypes
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shared import checks


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_everything_is_looked_at_and_whatever_is_not_good_says_how_to_mend_it(tmp_path: Path) -> None:
    found = list(checks.machine(tmp_path / "not" / "there" / "yet"))
    assert [f.what for f in found] == ["disk", "memory", "GPU", "shared memory", "clock", "versions"]
    assert all(bool(f.mend) == (f.state != "good") for f in found)


@pytest.mark.parametrize(("name", "look"), [("disk", lambda: checks.disk(Path("/"))), ("shm", checks.shared_memory)])
def test_little_room_is_a_warning(monkeypatch: pytest.MonkeyPatch, name: str, look: Any) -> None:
    usage = SimpleNamespace(total=64 * 2**20, free=64 * 2**20)  # a container's /dev/shm unless it is given more
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    assert look().state == "warning"
    usage.total = usage.free = 10**12
    assert look().state == "good"


def test_a_card_that_torch_cannot_use_is_told_apart_from_none_and_from_one_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Path, "glob", lambda *_: iter([]))
    assert "none found" in checks.gpu().text
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("/dev/nvidia0")]))
    assert "torch cannot use it" in checks.gpu().text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "card")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8e9, 9e9))

    def lost(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: no device")

    with monkeypatch.context() as broken:
        broken.setattr(torch, "ones", lost)
        assert checks.gpu().state == "bad"
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(2))
    assert checks.gpu() == checks.Finding("GPU", "good", "card, 8 GB free")


def test_a_clock_that_nothing_keeps_is_a_warning_and_a_wrong_one_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    for kept, state in ((True, "good"), (None, "good"), (False, "warning")):
        monkeypatch.setattr(checks, "kept", lambda kept=kept: kept)
        assert checks.clock().state == state
    monkeypatch.setattr(checks, "BUILT", checks.BUILT.replace(year=2090))
    assert checks.clock().state == "bad"


@pytest.mark.parametrize(("status", "kept"), [(0x40, False), (0x01, True), (0x41, False)])
def test_what_the_kernel_says_of_its_clock_is_read_at_the_right_place(
    monkeypatch: pytest.MonkeyPatch, status: int, kept: bool
) -> None:
    class Timex(ctypes.Structure):  # the head of struct timex, as in <sys/timex.h>
        _fields_ = [("modes", ctypes.c_uint), *((n, ctypes.c_long) for n in "ofme"), ("status", ctypes.c_int)]

    def adjtimex(asked: Any) -> int:
        assert ctypes.cast(asked, ctypes.POINTER(Timex)).contents.modes == 0, "it only reads"
        ctypes.cast(asked, ctypes.POINTER(Timex)).contents.status = status
        return 5

    monkeypatch.setattr(checks.ctypes, "CDLL", lambda _: SimpleNamespace(adjtimex=adjtimex))
    assert checks.kept() is kept
    monkeypatch.setattr(checks.ctypes, "CDLL", lambda _: SimpleNamespace(adjtimex=lambda _: -1))
    assert checks.kept() is None


def test_a_package_that_is_not_what_was_asked_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.versions().state == "good"
    real = metadata.version
    monkeypatch.setattr(checks, "version", lambda name: "1.99" if name == "flwr" else real(name))
    found = checks.versions()
    assert found.state == "bad" and "flwr 1.99" in found.text and "constraints.txt" in found.mend


def test_a_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.proxy("fed.example.org").text == "none in the environment"
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    assert checks.proxy("fed.example.org").state == "warning"
    monkeypatch.setenv("HTTPS_PROXY", "http://anna:secret@proxy:3128")
    found = checks.proxy("fed.example.org")
    assert "proxy:3128" in found.text and "secret" not in found.text and "anna" not in found.text
    monkeypatch.setenv("NO_PROXY", "example.org")
    assert "NO_PROXY" in checks.proxy("fed.example.org").text


def test_keys_that_others_can_read_are_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "key").write_text("")
    (tmp_path / "key").chmod(0o640)
    assert "key (640)" in checks.modes(tmp_path, ("key", "absent")).text
    (tmp_path / "key").chmod(0o600)
    assert checks.modes(tmp_path, ("key", "absent")).state == "good"
    tmp_path.chmod(0o750)
    assert checks.modes(tmp_path, ("key",)).state == "bad"
    tmp_path.chmod(0o700)
