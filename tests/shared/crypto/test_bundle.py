"""The app bundle is a function of the sources, Flower takes it, and a reviewer is shown all of it."""

from __future__ import annotations

import ast
import io
import re
import zipfile
from pathlib import Path

import pytest
from flwr.cli.install import install_from_fab
from flwr.common.config import get_fab_config, get_metadata_from_config
from hypothesis import example, given
from hypothesis import strategies as st

from shared.crypto import bundle, bundle_check, bundle_diff
from shared.errors import FederationError


def tree(root: Path) -> Path:
    for room in bundle.ROOMS:
        (root / room).mkdir(parents=True)
        (root / room / "__init__.py").write_text(f"# {room}\n")
    return root


def test_the_same_sources_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    first = bundle.build(tree(tmp_path / "a"))
    other = tree(tmp_path / "b")
    (other / "client" / "notes.txt").write_text("not a source")
    (other / "client" / "__pycache__").mkdir()
    (other / "client" / "__init__.py").touch()
    assert bundle.build(other) == first


def test_one_changed_byte_changes_the_hash(tmp_path: Path) -> None:
    root = tree(tmp_path)
    before = bundle.sha256(bundle.build(root))
    (root / "privacy" / "__init__.py").write_text("# privacz\n")
    assert bundle.sha256(bundle.build(root)) != before


def test_flower_reads_and_installs_our_bundle(tmp_path: Path) -> None:
    data = bundle.build()
    assert len(data) < bundle.LIMIT
    config = get_fab_config(data)
    assert config["tool"]["flwr"]["app"]["components"]["clientapp"] == "client.app:app"
    assert get_metadata_from_config(config)[0] == "fedsynth/fedsynth"
    folder = install_from_fab(data, tmp_path, skip_prompt=True)
    root = Path(__file__).parents[3]
    assert (folder / "client" / "app.py").read_bytes() == (root / "client" / "app.py").read_bytes()
    assert not (folder / "simulations").exists()


def test_a_missing_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="install fedsynth again"):
        bundle.build(tmp_path)


def test_what_changed_is_listed_and_shown_line_by_line(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "client" / "old.py").write_text("old = 1\n")
    before = bundle.build(root)
    (root / "client" / "old.py").unlink()
    (root / "client" / "new.py").write_text("new = 1\n")
    (root / "shared" / "__init__.py").write_text("noise = 0\n")
    listing, text = bundle_diff.changes(before, bundle.build(root))
    assert listing == ["+ client/new.py", "- client/old.py", "~ shared/__init__.py"]
    assert text.split("\n")[:3] == ["=== + client/new.py", "@@ -0,0 +1,2 @@", "+ new = 1"]
    assert "+ noise = 0" in text and "- old = 1" in text
    assert bundle_diff.changes(before, before) == ([], "")


def packed(source: bytes) -> bytes:
    files = {f"{room}/__init__.py": b"" for room in bundle.ROOMS}
    project = {"pyproject.toml": bundle.PROJECT.format(version="1.2.0.dev1").encode()}
    return bundle.pack(files | project | {"client/app.py": source})


LINES = st.lists(
    st.one_of(st.binary(max_size=6), st.text(max_size=6).map(lambda t: t.encode("utf-8", "surrogatepass")))
)
SOURCES = LINES.map(b"\n".join)


@given(SOURCES, SOURCES)
@example(b"", b"\n")
@example(b"\xfe", b"\xff")
@example(b"\xfe", "\ufffd".encode())
@example("\u2028".encode(), b"<U+2028>")
def test_whatever_differs_is_shown_and_in_printable_ascii(old: bytes, new: bytes) -> None:
    listing, text = bundle_diff.changes(packed(old), packed(new))
    shown = [line for line in text.split("\n") if line[:1] in ("+", "-")]
    assert bool(listing) == bool(shown) == (old != new)
    assert re.fullmatch(r"[\n\x20-\x7e]*", text)


@given(SOURCES)
def test_a_source_without_faults_is_read_by_python_as_it_is_shown(source: bytes) -> None:
    if not bundle_check.faults(packed(source)):
        assert bundle_diff.parsed(source) is not None
        assert ast.dump(ast.parse(source)) == ast.dump(ast.parse(source.decode("utf-8")))
        assert source.decode("utf-8").splitlines() == [
            line.decode() for line in source.removesuffix(b"\n").split(b"\n") if source
        ]


@given(st.binary(max_size=300), st.integers(0, 2000))
def test_no_bytes_of_a_stranger_make_the_check_raise(more: bytes, place: int) -> None:
    whole = packed(b"x = 1\n")
    spoiled = whole[:place] + more + whole[place + len(more) :]
    assert (bundle_check.faults(spoiled) == ()) == (spoiled == whole)


def test_a_diff_that_shows_nothing_of_a_change_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_diff.difflib, "unified_diff", lambda *_, **__: iter(()))
    with pytest.raises(FederationError, match=r"client/app\.py changed and the diff shows nothing"):
        bundle_diff.changes(packed(b"a = 1\n"), packed(b"a = 2\n"))


def test_our_own_sources_are_without_fault() -> None:
    assert bundle_check.faults(bundle.build()) == ()


def test_a_bundle_too_large_to_travel_is_not_even_opened() -> None:
    assert "may travel" in bundle_check.faults(bytes(bundle.LIMIT + 1))[0]


def test_only_so_many_faults_are_named() -> None:
    bad = {f"client/a{i}.txt": b"" for i in range(30)}
    assert len(bundle_check.faults(bundle.pack(bundle.contents(packed(b"")) | bad))) == bundle_check.MOST


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "a/../../evil"])
def test_a_bundle_that_points_outside_is_refused(name: str) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(FederationError, match="outside its folder"):
        bundle.contents(out.getvalue())


def test_a_bundle_that_unpacks_to_too_much_is_refused_unread() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.py", b"\0" * (65 * 1024 * 1024))
    with pytest.raises(FederationError, match="64 MB"):
        bundle.contents(out.getvalue())


def test_bytes_that_are_no_bundle_are_refused() -> None:
    with pytest.raises(FederationError, match="not a whole zip"):
        bundle.contents(b"nothing")
