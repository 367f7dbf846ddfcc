"""What the licences of the libraries ask is said, and no library is loaded that nobody needs."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def installed_for(name: str) -> dict[str, str]:
    """Every distribution that comes with `name` -> what its metadata says about its licence."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, str]] = [(name, "")]
    asked = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        said = distribution.metadata
        own = (said.get("License") or "").strip().partition("\n")[0]  # whole texts go on to what is bundled
        words = [said.get("License-Expression") or "", own, *(said.get_all("Classifier") or [])]
        found[canonicalize_name(name)] = " ".join(words)
        for needed in map(Requirement, distribution.requires or []):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                wanted = {(needed.name, each) for each in ("", *needed.extras)} - asked
                asked |= wanted
                waiting += wanted
    return found


def test_every_library_under_a_gnu_licence_is_named_in_the_readme() -> None:
    libraries = installed_for("fedsynth")
    assert {"torch", "deepbet", "fastremap"} <= libraries.keys(), "the walk reaches what comes with what comes"
    gnu = {name for name, licence in libraries.items() if "GPL" in licence}
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w-]+", readme.rpartition("Apache-2.0")[2]))
    assert gnu == named & (libraries.keys() - {"deepbet"})


def test_the_masker_runs_without_its_window() -> None:
    """deepbet asks for customtkinter, a toolkit for windows that its networks do not need."""
    code = "import sys; from client.readers import masks; masks._network(); print({'customtkinter', 'tkinter'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
