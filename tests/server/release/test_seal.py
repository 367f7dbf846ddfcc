"""Whoever receives a release can tell that not a byte of it was changed, nothing taken away and nothing added."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.evaluation import tools
from server.release import seal
from shared.crypto import signing
from shared.errors import DataError, FedsynthError, SignatureError


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    (folder / "images").mkdir(parents=True)
    for i in range(3):
        (folder / "images" / f"{i}.png").write_bytes(bytes([i] * 100))
    (folder / "metadata.jsonl").write_text("{}\n")
    key = signing.load_or_make(tmp_path / "key.pem")
    (tmp_path / "public.pem").write_text(signing.public_pem(key.public_key()))
    seal.close(folder, "demo", key)
    return folder


def test_a_release_as_it_was_signed_is_admitted(release: Path, tmp_path: Path) -> None:
    found = seal.verify_release(release, tmp_path / "public.pem")
    assert (found.experiment, found.files, found.known) == ("demo", 4, True)
    assert not seal.verify_release(release).known
    moved = tmp_path / "elsewhere"
    shutil.copytree(release, moved)
    assert seal.verify_release(moved, tmp_path / "public.pem") == found


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def relink(folder: Path) -> None:
    """The same bytes, but somewhere else: the folder is no longer whole."""
    target = folder / "images" / "1.png"
    outside = folder.parent / "outside.png"
    target.rename(outside)
    target.symlink_to(outside)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: flip(f / "images" / "1.png"), "images/1.png was changed"),
        (lambda f: flip(f / "metadata.jsonl"), "metadata.jsonl was changed"),
        (lambda f: flip(f / "SHA256SUMS"), "SHA256SUMS is not the one"),
        (lambda f: flip(f / "SIGNATURE.json"), "byte was changed|does not match|not by"),
        (lambda f: (f / "images" / "2.png").unlink(), "lacks images/2.png"),
        (lambda f: (f / "extra.png").write_bytes(b"1"), "extra.png"),
        (lambda f: (f / "images" / ".hidden").write_bytes(b"1"), "hidden"),
        (lambda f: (f / "images" / "SHA256SUMS").write_bytes(b"1"), "images/SHA256SUMS"),
        (lambda f: (f / "SIGNATURE.json").unlink(), "not signed"),
        (relink, "images/1.png was changed"),
    ],
)
def test_whatever_was_changed_is_named(
    release: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(release)
    with pytest.raises(SignatureError, match=words):
        seal.verify_release(release, tmp_path / "public.pem")


def test_sums_made_again_after_a_change_do_not_help_without_the_key(release: Path, tmp_path: Path) -> None:
    flip(release / "images" / "0.png")
    seal.close(release, "demo", None)
    with pytest.raises(SignatureError, match="SHA256SUMS is not the one"):
        seal.verify_release(release, tmp_path / "public.pem")
    seal.close(release, "demo", signing.load_or_make(tmp_path / "forger.pem"))
    with pytest.raises(SignatureError, match="not by"):
        seal.verify_release(release, tmp_path / "public.pem")
    assert seal.verify_release(release).fingerprint == signing.fingerprint(
        signing.load_or_make(tmp_path / "forger.pem").public_key()
    ), "without a key from outside, only the fingerprint tells"


def test_a_signature_of_something_else_is_none(release: Path, tmp_path: Path) -> None:
    key = signing.load_or_make(tmp_path / "key.pem")
    body = {"format": "another", "sums_sha256": seal.digest(release / "SHA256SUMS")}
    (release / "SIGNATURE.json").write_bytes(signing.seal(key, body))
    with pytest.raises(SignatureError, match="something other than a release"):
        seal.verify_release(release, tmp_path / "public.pem")
    with pytest.raises(DataError, match="not a release"):
        seal.verify_release(tmp_path)


def test_the_command_says_whose_signature_it_is(release: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(tools.app, ["verify", str(release), "--json"])
    assert json.loads(done.stdout)["files"] == 4
    done = CliRunner().invoke(tools.app, ["verify", str(release)])
    assert "give --public-key" in done.stdout
    done = CliRunner().invoke(tools.app, ["verify", str(release), "--public-key", str(tmp_path / "public.pem")])
    assert "as they were signed by" in done.stdout
    assert "--public-key" not in done.stdout
    flip(release / "images" / "0.png")
    assert isinstance(CliRunner().invoke(tools.app, ["verify", str(release)]).exception, FedsynthError)


@pytest.mark.parametrize(
    "left",
    [".git/HEAD", ".git/objects/ab/cd", ".gitattributes", ".cache/huggingface/x.lock", ".DS_Store", "images/.DS_Store",
     "images/._1.png", "__MACOSX/._images", "images/Thumbs.db"],
)  # fmt: skip
def test_what_git_a_hub_or_a_mac_left_beside_the_files_passes_and_is_listed(release: Path, left: str) -> None:
    (release / left).parent.mkdir(parents=True, exist_ok=True)
    (release / left).write_bytes(b"1")
    assert seal.verify_release(release).ignored == (left,)
    said = CliRunner().invoke(tools.app, ["verify", str(release)])
    assert said.exit_code == 0 and left in said.output


def test_all_that_is_wrong_is_named_and_not_the_first_alone(release: Path) -> None:
    flip(release / "images" / "0.png")
    (release / "images" / "1.png").unlink()
    (release / "added.png").write_bytes(b"1")
    with pytest.raises(SignatureError, match=r"lacks images/1.png.*'added.png'.*images/0.png was changed"):
        seal.verify_release(release)
