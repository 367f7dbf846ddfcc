"""The app bundle is a function of the sources, and Flower takes it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from flwr.cli.install import install_from_fab
from flwr.common.config import get_fab_config, get_metadata_from_config

from shared import bundle
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
    root = Path(__file__).parents[1]
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
    listing, text = bundle.changes(before, bundle.build(root))
    assert listing == ["+ client/new.py", "- client/old.py", "~ shared/__init__.py"]
    assert "+noise = 0" in text and "-old = 1" in text
    assert bundle.changes(before, before) == ([], "")


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
