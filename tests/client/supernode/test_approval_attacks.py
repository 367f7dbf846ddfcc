"""Whoever sends a bundle wants it approved and run without its code being read: every way that was thought of."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.supernode import approval, journal
from shared.config.site import Site
from shared.crypto import bundle, signing
from shared.errors import FedsynthError

NOISE = "noise = draw(scale)\n"
HEAD = "import math\n\n\ndef draw(scale):\n    return math.sqrt(scale)\n\n\nscale = 3\n"
CONTROL = {"form feed": "\f", "vertical tab": "\v", "lone return": "\r", "bell": "\a", "escape": "\x1b[8m"}
CONTROL |= {"file separator": "\x1c", "group separator": "\x1d", "record separator": "\x1e", "next line": "\x85"}
CONTROL |= {"line separator": "\u2028", "paragraph separator": "\u2029", "delete": "\x7f", "csi": "\x9b"}
INVISIBLE = {"bidi override": "\u202e", "bidi isolate": "\u2066", "zero width": "\u200b", "joiner": "\u200d"}
INVISIBLE |= {"byte order mark": "\ufeff", "soft hyphen": "\xad", "hangul filler": "\u3164", "tag": "\U000e0041"}
INVISIBLE |= {"no-break space": "\xa0", "variation selector": "\ufe0f", "combining stroke": "\u0338"}


def sources(**changed: str | bytes) -> dict[str, bytes]:
    """A small app. `changed`: privacy__sgd="..." is the file privacy/sgd.py."""
    files: dict[str, bytes] = {f"{room}/__init__.py": f'"""{room}"""\n'.encode() for room in bundle.ROOMS}
    files["privacy/sgd.py"] = (HEAD + NOISE).encode()
    for name, text in changed.items():
        files[name.replace("__", "/") + ".py"] = text.encode() if isinstance(text, str) else text
    return files


def built(root: Path, files: dict[str, bytes]) -> bytes:
    """What our own packer makes of these sources."""
    shutil.rmtree(root, ignore_errors=True)
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return bundle.build(root)


def repacked(data: bytes, more: dict[str, bytes], entry: Callable[[str], zipfile.ZipInfo] | None = None) -> bytes:
    """The same bundle with more files in it, listed as Flower wants it: what a hostile packer would send."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {e.filename: archive.read(e) for e in archive.infolist() if e.filename != ".info/CONTENT"} | more
    listing = [f"{name},{hashlib.sha256(body).hexdigest()},{len(body) * 8}" for name, body in sorted(files.items())]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, body in [*sorted(files.items()), (".info/CONTENT", "\n".join(listing).encode())]:
            info = zipfile.ZipInfo(name, (2024, 10, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o600 << 16
            archive.writestr(entry(name) if entry else info, body)
    return out.getvalue()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "north.yaml").write_text(f"name: north\ndata: {tmp_path}\nface_removal: none\n")
    return Site(name="north", data=tmp_path, face_removal="none")


@pytest.fixture
def honest(site: Site, tmp_path: Path) -> bytes:
    """Approved before anything hostile comes."""
    data = built(tmp_path / "honest", sources())
    approval.approve(site, tmp_path, data)
    return data


def shown(tmp_path: Path, data: bytes, answer: str = "n\n") -> str:
    """What the reviewer sees."""
    (tmp_path / "sent.bundle").write_bytes(data)
    words = ["approve", str(tmp_path / "north.yaml"), "--work", str(tmp_path), "--diff"]
    done = CliRunner().invoke(app, [*words, "--bundle", str(tmp_path / "sent.bundle")], input=answer)
    assert done.exception is None or isinstance(done.exception, SystemExit | FedsynthError), done.exception
    return done.output


def refused(site: Site, data: bytes, why: str) -> None:
    """Nobody can sign it, and a signature that is there all the same (an older version made it) counts for nothing."""
    with pytest.raises(FedsynthError, match=why):
        approval.approve(site, site.data, data)
    assert approval.missing(site, site.data, signed_by_force(site, data)) == 1


def signed_by_force(site: Site, data: bytes) -> str:
    """The files and the entry that an approval leaves, made without any check."""
    work, digest = site.data, bundle.sha256(data)
    key = signing.load_or_make(work / "node" / approval.OWN_KEY)
    name = signing.fingerprint(key.public_key())
    journal.write(work, "approved", bundle=digest, key=name)
    folder = work / "node" / "approvals"
    folder.mkdir(exist_ok=True)
    (folder / f"{digest}.bundle").write_bytes(data)
    body = {"kind": "fedsynth-approval", "site": site.name, "bundle": digest, "made": "2026-11-28T00:00:00+00:00"}
    (folder / f"{digest}.{name[:16]}.json").write_bytes(signing.seal(key, body))
    return digest


# What a diff must not hide


def test_what_is_made_by_force_would_count_if_the_bundle_were_sound(site: Site, tmp_path: Path, honest: bytes) -> None:
    """Otherwise `refused` would prove nothing."""
    other = built(tmp_path / "other", sources(privacy__sgd=HEAD))
    assert approval.missing(site, tmp_path, signed_by_force(site, other)) == 0


@pytest.mark.parametrize("mark", CONTROL.values(), ids=CONTROL.keys())
def test_attack_04_a_line_hidden_behind_a_control_character_is_shown_and_refused(
    site: Site, tmp_path: Path, honest: bytes, mark: str
) -> None:
    hidden = built(tmp_path / "x", sources(privacy__sgd=f"{HEAD}# sample{mark}{NOISE}"))
    lines = shown(tmp_path, hidden).split("\n")
    assert [line for line in lines if line.startswith("-") and NOISE.strip() in line], "the line that went"
    assert [line for line in lines if line.startswith("+") and f"# sample<U+{ord(mark[0]):04X}>" in line]
    refused(site, hidden, f"privacy/sgd.py, line 9: .*U\\+{ord(mark[0]):04X}")


@pytest.mark.parametrize("mark", INVISIBLE.values(), ids=INVISIBLE.keys())
def test_attack_04_what_cannot_be_seen_or_turns_the_text_round_is_shown_and_refused(
    site: Site, tmp_path: Path, honest: bytes, mark: str
) -> None:
    hidden = built(tmp_path / "x", sources(privacy__sgd=HEAD + f'name = "{mark}draw"\n' + NOISE))
    assert f'+ name = "<U+{ord(mark):04X}>draw"' in shown(tmp_path, hidden)
    refused(site, hidden, f"privacy/sgd.py, line 9: .*U\\+{ord(mark):04X}")


def test_attack_04_what_the_terminal_gets_is_printable_ascii_whatever_the_bundle_holds(
    site: Site, tmp_path: Path, honest: bytes
) -> None:
    every = "".join(map(chr, [*range(0x250), *range(0x2000, 0x2070), 0x3B5, 0xFEFF, 0x1F600]))
    data = repacked(
        honest,
        {
            "privacy/all.py": every.encode() + bytes(range(256)),
            "\x1b]0;owned\x07.py": b"x = 1\n",
            "client/\u202eyp.exe": b"",
        },
    )
    output = shown(tmp_path, data)
    assert re.fullmatch(r"[\n\x20-\x7e]*", output)
    assert "<U+001B>]0;owned<U+0007>.py" in output


def test_attack_04_a_file_cannot_draw_the_headline_of_another_file(site: Site, tmp_path: Path, honest: bytes) -> None:
    """Added and removed lines keep their first column; no line of a file begins as a headline does."""
    text = '"""\n++ new/client/app.py\n-- approved/client/app.py\n=== client/app.py\n@@ -1 +1 @@\n"""\n' + HEAD
    output = shown(tmp_path, built(tmp_path / "x", sources(privacy__sgd=text)))
    heads = [line for line in output.split("\n") if re.match(r"(=|\+\+\+ |--- )", line)]
    assert heads and all("privacy/sgd.py" in line for line in heads)


@pytest.mark.parametrize("escape", ["ef bf bd", "ff", "c3 28"])
def test_attack_04_bytes_that_decode_to_the_same_character_are_told_apart(
    site: Site, tmp_path: Path, honest: bytes, escape: str
) -> None:
    """Both were shown as U+FFFD, and the file was listed as changed with no line of change."""
    before = signed_by_force(site, built(tmp_path / "b", sources(privacy__sgd=HEAD.encode() + b'key = "\xfe"\n')))
    os.utime(tmp_path / "node" / "approvals" / f"{before}.bundle")
    spoiled = built(tmp_path / "x", sources(privacy__sgd=HEAD.encode() + b'key = "' + bytes.fromhex(escape) + b'"\n'))
    output = shown(tmp_path, spoiled)
    assert re.search(r'(?m)^\+ key = "<(U\+FFFD|byte .*)>', output)
    if escape != "ef bf bd":
        refused(site, spoiled, "privacy/sgd.py, line 9: .*UTF-8")


@pytest.mark.parametrize("change", [b"", b"\n\n", b"\n ", b"\r\n"], ids=["cut", "more", "space", "crlf"])
def test_attack_04_a_changed_file_never_has_an_empty_diff(
    site: Site, tmp_path: Path, honest: bytes, change: bytes
) -> None:
    """Of the file's last newline too."""
    changed = built(tmp_path / "x", sources(privacy__sgd=(HEAD + NOISE).encode()[:-1] + change))
    output = shown(tmp_path, changed)
    assert "~ privacy/sgd.py" in output
    assert re.search(r"(?m)^[-+] ", output)


def test_attack_04_an_empty_file_that_comes_or_goes_has_a_diff_as_well(
    site: Site, tmp_path: Path, honest: bytes
) -> None:
    output = shown(tmp_path, built(tmp_path / "x", sources(privacy__empty="")))
    assert "+ privacy/empty.py" in output
    assert re.search(r"(?m)^\+ ?$", output)


# What the interpreter reads must be what the reviewer read

CODINGS = {
    "utf-7": b"# -*- coding: utf-7 -*-\n# +AAo-import os  # harmless\n",
    "latin-1": b'# coding: latin-1\nmode = "\xc3\xa9"\n',
    "second line": b"#!/usr/bin/python\n# vim: set fileencoding=cp1252 :\n",
    "utf-8-sig": b"# coding=utf-8-sig\n",
    "rot13": b"# coding: rot13\n",
    "unicode_escape": b"# coding: unicode_escape\n# \\nimport os\n",
}


@pytest.mark.parametrize("head", CODINGS.values(), ids=CODINGS.keys())
def test_attack_04_a_source_that_names_its_own_coding_is_refused(
    site: Site, tmp_path: Path, honest: bytes, head: bytes
) -> None:
    refused(site, built(tmp_path / "x", sources(privacy__sgd=head + HEAD.encode())), "privacy/sgd.py.*coding")


NAMES = {
    "cyrillic": "sc\u0430le = 0\n",
    "full width": "\uff53cale = 0\n",  # Python reads `scale`
    "ligature": "import math as \ufb01le\n",
    "attribute": "draw.sc\u0430le = 0\n",
    "keyword": "draw(sc\u0430le=0)\n",
    "argument": "def f(sc\u0430le): ...\n",
    "in an f-string": 'f"{sc\u0430le} \u03b5"\n',
    "in a format": 'f"{1:{sc\u0430le}}"\n',
    "superscript letter": "x\u02b0 = 1\n",
}


@pytest.mark.parametrize("line", NAMES.values(), ids=NAMES.keys())
def test_attack_04_a_name_that_looks_like_another_is_refused(
    site: Site, tmp_path: Path, honest: bytes, line: str
) -> None:
    refused(
        site, built(tmp_path / "x", sources(privacy__sgd=HEAD + line)), "privacy/sgd.py.*a name in other than ASCII"
    )


def test_letters_of_the_papers_are_welcome_in_texts_and_comments_and_shown_by_number(
    site: Site, tmp_path: Path, honest: bytes
) -> None:
    text = '"""Noise of scale \u03c3 \u00b1 1, \u201cas stated\u201d."""  # 2 \u00d7 C\n'
    text += HEAD + 'print(f"\u03b5 {scale:\u00b7>4}")\n'
    data = built(tmp_path / "x", sources(privacy__sgd=text))
    output = shown(tmp_path, data, "y\n")
    assert '+ """Noise of scale <U+03C3> <U+00B1> 1' in output
    assert "it may run" in output


DEEP = "x = y\\\n" + ".a\\\n" * 50_000 + "\n"


@pytest.mark.parametrize("text", ["def f(:\n", "x = (\n", "x = 1\0\n", "(\n" * 5000, "-\\\n" * 50_000 + "1\n", DEEP])
def test_attack_04_what_is_not_python_is_refused_without_a_crash(
    site: Site, tmp_path: Path, honest: bytes, text: str
) -> None:
    refused(site, built(tmp_path / "x", sources(privacy__sgd=text)), "privacy/sgd.py")


def test_attack_04_code_far_to_the_right_of_a_line_is_refused(site: Site, tmp_path: Path, honest: bytes) -> None:
    """A pager that cuts long lines would not show it."""
    far = built(tmp_path / "x", sources(privacy__sgd=f"{HEAD}x = 1{' ' * 300}; scale = 0\n"))
    refused(site, far, "privacy/sgd.py, line 9: .*characters")


def test_attack_04_white_space_that_changes_the_program_is_called_out(
    site: Site, tmp_path: Path, honest: bytes
) -> None:
    before = "if scale:\n    scale = 3\n    noise = 1\n"
    signed_by_force(site, built(tmp_path / "b", sources(privacy__sgd=before)))
    output = shown(tmp_path, built(tmp_path / "x", sources(privacy__sgd=before.replace("    noise = 1", "noise = 1"))))
    assert re.search(r"(?i)~ privacy/sgd\.py .*looks the same.*another program", output)


def test_attack_04_letters_that_look_alike_are_called_out(site: Site, tmp_path: Path, honest: bytes) -> None:
    signed_by_force(site, built(tmp_path / "b", sources(privacy__sgd=HEAD + "l = 10\nnoise = l\n")))
    output = shown(tmp_path, built(tmp_path / "x", sources(privacy__sgd=HEAD + "l = 10\nnoise = 1\n")))
    assert re.search(r"(?i)~ privacy/sgd\.py .*looks the same.*another program", output)


def test_a_change_of_layout_and_comments_alone_is_called_the_same_program(
    site: Site, tmp_path: Path, honest: bytes
) -> None:
    text = HEAD.replace("scale = 3", "scale = (3)  # as in the plan") + NOISE
    output = shown(tmp_path, built(tmp_path / "x", sources(privacy__sgd=text)))
    assert re.search(r"~ privacy/sgd\.py .*same program", output)
    assert "same program" not in shown(tmp_path, built(tmp_path / "x", sources(privacy__sgd=HEAD)))


# What Python or Flower would take beside the sources

BESIDE = {
    "compiled": {"privacy/fast.so": b"\x7fELF"},
    "extension beside its module": {"privacy/sgd.cpython-311-x86_64-linux-gnu.so": b"\x7fELF"},
    "byte code": {"privacy/__pycache__/sgd.cpython-311.pyc": b"\xa7\r\r\n"},
    "byte code without source": {"privacy/fast.pyc": b"\xa7\r\r\n"},
    "path file": {"privacy/x.pth": b"import os\n"},
    "stub": {"privacy/__init__.pyi": b"x: int\n"},
    "library at the root": {"torch.py": b"x = 1\n"},
    "package at the root": {"numpy/__init__.py": b"x = 1\n"},
    "flower at the root": {"flwr.py": b"x = 1\n"},
    "customisation": {"sitecustomize.py": b"x = 1\n"},
    "a room as a module": {"client.py": b"x = 1\n"},
    "package over a module": {"privacy/sgd/__init__.py": b"noise = 0\n"},
    "folder over a module": {"privacy/sgd/more.py": b"noise = 0\n"},
    "a folder that is no package": {"privacy/deep/down.py": b"noise = 0\n"},
    "case twin": {"privacy/SGD.py": b"noise = 0\n"},
    "line break": {"privacy/sgd.py\nprivacy/noise.py": b"x = 1\n"},
    "back slash": {"privacy\\sgd.py": b"noise = 0\n"},
    "dot": {"privacy/./sgd.py": b"noise = 0\n"},
    "double slash": {"privacy//sgd.py": b"noise = 0\n"},
    "file as a folder": {"privacy/sgd.py/": b""},
    "look-alike": {"priv\u0430cy/__init__.py": b"", "privacy/sgd\u200b.py": b""},
    "more in .info": {".info/x.py": b"noise = 0\n"},
    "a name without end": {"privacy" + "/a" * 30_000 + ".py": b"x = 1\n", "\u00e9" * 30_000 + ".py": b"x = 1\n"},
    "requirements": {"requirements.txt": b"evil\n"},
    "settings": {"pyproject.toml": bundle.PROJECT.format(version="1").replace("client.app:app", "a.b:c").encode()},
    "a version with a path": {"pyproject.toml": bundle.PROJECT.format(version="0/../../../work/x").encode()},
    "to install": {
        "pyproject.toml": bundle.PROJECT.format(version="1").replace("= []", '= ["evil"]').encode(),
    },
}


@pytest.mark.parametrize("more", BESIDE.values(), ids=BESIDE.keys())
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_attack_04_a_file_that_no_reviewer_looks_for_is_refused(
    site: Site, tmp_path: Path, honest: bytes, more: dict[str, bytes]
) -> None:
    refused(site, repacked(honest, more), "the bundle")


@pytest.mark.parametrize("room", bundle.ROOMS)
def test_attack_04_a_room_that_is_no_package_would_be_taken_from_elsewhere(
    site: Site, tmp_path: Path, honest: bytes, room: str
) -> None:
    """Python prefers an installed package over a folder without __init__.py: other code would run than was read."""
    files = sources(**{f"{room}__more": "x = 1\n"})
    del files[f"{room}/__init__.py"]
    refused(site, built(tmp_path / "x", files), "__init__")


def between(data: bytes) -> bytes:
    """Code between the last file and the directory, which no list of files shows."""
    end = data.rindex(b"PK\5\6")
    start = struct.unpack("<I", data[end + 16 : end + 20])[0]
    more = b"import os\n"
    return data[:start] + more + data[start:end] + data[end : end + 16] + struct.pack("<I", start + len(more)) + b"\0\0"


def two_directories(data: bytes) -> bytes:
    """Two archives one after the other: who reads from the front sees another one than who reads from the back."""
    return repacked(data, {"privacy/sgd.py": b"noise = 0\n"}) + data


def other_local_name(data: bytes) -> bytes:
    """The file's own head names another file than the directory does."""
    return data.replace(b"privacy/sgd.py", b"privacy/dgs.py", 1)


def comment(data: bytes) -> bytes:
    return data[:-2] + struct.pack("<H", 9) + b"import os"


def symlink(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (2024, 10, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, (0o120777 if name == "privacy/sgd.py" else 0o100600) << 16
    return info


def extra(name: str) -> zipfile.ZipInfo:
    """Info-ZIP's field of a Unicode path: some unpackers take that name."""
    info = zipfile.ZipInfo(name, (2024, 10, 1, 0, 0, 0))
    info.extra = struct.pack("<HHBI", 0x7075, 5 + 8, 1, 0) + b"torch.py"
    return info


TRICKS: dict[str, Callable[[bytes], bytes]] = {
    "between": between,
    "two directories": two_directories,
    "other local name": other_local_name,
    "comment": comment,
    "before": lambda data: b"#!/bin/sh\nevil\n" + data,
    "after": lambda data: data + b"more",
    "symlink": lambda data: repacked(data, {}, symlink),
    "extra field": lambda data: repacked(data, {}, extra),
    "a list of files that lies": lambda data: data.replace(b"privacy/sgd.py,", b"privacy/dgs.py,", 1),
}


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS.keys())
def test_attack_04_an_archive_that_unpackers_read_in_two_ways_is_refused(
    site: Site, tmp_path: Path, honest: bytes, trick: Callable[[bytes], bytes]
) -> None:
    assert trick(honest) != honest
    refused(site, trick(honest), "the bundle")


def test_attack_04_a_bundle_that_flower_would_take_for_another_is_refused(
    site: Site, tmp_path: Path, honest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower unpacks into a folder named by eight digits of the hash, and runs what lies there already."""
    approval.withdraw(tmp_path, bundle.sha256(honest))
    twin = built(tmp_path / "x", sources(privacy__sgd=HEAD))
    real = bundle.sha256
    monkeypatch.setattr(bundle, "sha256", lambda data: real(honest)[:8] + real(data)[8:])
    refused(site, twin, "begins with the same")
