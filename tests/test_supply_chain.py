"""What is installed is what was tested, byte for byte: constraints.txt pins each package, by the hash of each file of it."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)(?P<rest>.*)")


def pins() -> dict[str, tuple[Version, str]]:
    """Name -> its version, and all that stands behind it."""
    joined = TEXT.replace("\\\n", " ").splitlines()
    found = [match for line in joined if line and not line.startswith("#") and (match := PIN.fullmatch(line.strip()))]
    assert len(found) == len([line for line in joined if line.strip() and not line.startswith("#")]), "only pins"
    assert len({canonicalize_name(m["name"]) for m in found}) == len(found), "one version each"
    return {canonicalize_name(m["name"]): (Version(m["version"]), m["rest"]) for m in found}


def named() -> list[Requirement]:
    """Everything that pyproject.toml asks for, whoever it is for."""
    project = PROJECT["project"]
    lists = [project["dependencies"], PROJECT["build-system"]["requires"]]
    lists += [*project["optional-dependencies"].values(), *PROJECT["dependency-groups"].values()]
    return [Requirement(text) for part in lists for text in part]


def brought_along() -> dict[str, Version]:
    """Every installed package that comes with ours, and its version without what a machine's own build adds (`+cpu`)."""
    found: dict[str, Version] = {}
    waiting = [Requirement("fedsynth")]
    while waiting:
        asked = waiting.pop()
        extras = asked.extras or {""}
        try:
            distribution = importlib.metadata.distribution(asked.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        name = canonicalize_name(asked.name)
        if name not in found or asked.extras:
            found[name] = Version(distribution.version)
            needed = map(Requirement, distribution.requires or [])
            waiting += [r for r in needed if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return {name: Version(version.public) for name, version in found.items() if name != "fedsynth"}


def test_attack_10_no_package_is_taken_by_its_name_alone() -> None:
    for name, (_, rest) in pins().items():
        words = rest.partition("--hash")
        hashes = re.findall(r"--hash=(\S+)", rest)
        assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", h) for h in hashes), name
        assert not words[0].strip() or words[0].strip().startswith(";"), name


def test_attack_10_what_a_package_brings_along_is_pinned_too() -> None:
    pinned, found = pins(), brought_along()
    assert {"torch", "flwr", "certifi", "mpmath"} <= found.keys(), "the walk reaches what comes with what comes"
    assert {name: v for name, v in found.items() if name not in pinned} == {}
    assert {"setuptools", "triton", "nvidia-cublas"} <= pinned.keys(), "and what comes on other machines than this"


def test_every_package_that_pyproject_names_is_pinned_to_a_version_that_it_allows() -> None:
    pinned = pins()
    asked = named()
    assert len(asked) > 50
    assert [str(r) for r in asked if canonicalize_name(r.name) not in pinned] == []
    assert [str(r) for r in asked if not r.specifier.contains(pinned[canonicalize_name(r.name)][0])] == []


def test_attack_10_the_list_of_authorities_is_the_present_one() -> None:
    assert pins()["certifi"][0] >= Version("2026.10.19")


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml", "Makefile"])
def test_no_host_of_a_registry_is_written_down(name: str) -> None:
    """Where packages come from is the machine's affair; the hash says which."""
    assert not re.search(
        r"://(?!www\.apache)|--(extra-)?index-url|--find-links|--trusted-host", (ROOT / name).read_text()
    )


def test_whatever_make_installs_is_checked_but_torch() -> None:
    rules = re.findall(r"(?m)^\t\$\(BIN\)/pip install (.*(?:\\\n.*)*)", (ROOT / "Makefile").read_text())
    assert len(rules) == 3
    assert [("constraint constraints.txt" in rule or "--require-hashes" in rule) for rule in rules] == [
        True,
        False,
        True,
    ]
    assert "torch" in rules[1] and "--no-deps" in rules[1]
