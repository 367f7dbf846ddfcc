"""What the images and the compose files promise, read from the files; `python -m simulations.containers` builds and runs them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from client import dataset
from privacy import ledger_members

ROOT = Path(__file__).parents[1]
ROOMS = ("client", "server")


def lines(room: str) -> list[tuple[str, str]]:
    """(instruction, its text), with continued lines joined."""
    text = (ROOT / room / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^#.*\n", "", text).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def final(room: str) -> list[tuple[str, str]]:
    """The last stage: what is in the image."""
    found = lines(room)
    return found[max(i for i, (word, _) in enumerate(found) if word == "FROM") :]


def services(room: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / room / "compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ]
    return found


def mounted(service: dict[str, Any]) -> dict[str, str]:
    """Target -> source, with `:ro` where it is read only."""
    found = {}
    for text in service["volumes"]:
        source, target, *mode = re.sub(r"\$\{(\w+):-.\}", r"\1", text).split(":")
        found[target] = ":".join([source, *mode])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_attack_10_the_base_is_named_by_its_digest_or_nothing_is_built(room: str) -> None:
    """What a name means today may be another image tomorrow."""
    found = lines(room)
    assert found[0] == ("ARG", "BASE"), "no default: a name without a digest would be one"
    assert [text for word, text in found if word == "FROM"] == ["${BASE} AS build", "${BASE}"]
    assert found[2] == ("ARG", "BASE")
    (check,) = (text for word, text in found if word == "RUN" and "@sha256:" in text)
    for name, good in {"debian": False, "debian:12": False, "": False, f"debian:12@sha256:{'0' * 64}": True}.items():
        done = subprocess.run(["sh", "-c", check], env={"BASE": name}, capture_output=True, check=False)
        assert (done.returncode == 0) is good, name


@pytest.mark.parametrize("room", ROOMS)
def test_an_image_runs_as_a_user_without_rights_and_needs_no_shell(room: str) -> None:
    found = dict(final(room))
    assert found["USER"] == "10001:10001"
    assert json.loads(found["ENTRYPOINT"]) == ["fedsynth"]
    assert json.loads(found["HEALTHCHECK"].partition("CMD ")[2])[:2] == ["python", "-c"]
    assert [word for word, _ in final(room)].index("USER") > [word for word, _ in final(room)].index("RUN")


@pytest.mark.parametrize("room", ROOMS)
def test_what_programs_like_to_write_goes_to_tmp(room: str) -> None:
    (environment,) = (text for word, text in final(room) if word == "ENV")
    values = dict(pair.split("=", 1) for pair in environment.split())
    places = ("HOME", "FLWR_HOME", "HF_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
    assert all(values[name].startswith("/tmp") for name in places)
    assert values["HF_HUB_OFFLINE"] == "1" and values["FLWR_TELEMETRY_ENABLED"] == "0"
    assert len([text for word, text in final(room) if word == "VOLUME"]) == 1


@pytest.mark.parametrize("room", ROOMS)
def test_only_tested_versions_are_installed_and_the_image_lists_them(room: str) -> None:
    found = lines(room)
    assert ("COPY", "constraints.txt ./") in found
    installs = [
        text
        for word, line in found
        if word == "RUN"
        for text in re.split("&&|;", line)
        if re.search(r"pip\b.* install ", text)
    ]
    assert len(installs) == 4
    for text in installs:
        checked = "--constraint constraints.txt" in text and "--only-binary :all:" in text
        assert checked or re.search("(?<!no)-require-hashes", text), text
    (wheel,) = (line for word, line in found if word == "RUN" and "pip wheel" in line)
    assert "--no-build-isolation" in wheel, "a build of its own would fetch what nobody checks"
    assert ("COPY", "--from=build /opt/fedsynth.cdx.json /usr/share/sbom/fedsynth.cdx.json") in final(room)
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"(?m)^cyclonedx-bom==", pinned) and re.search(r"(?m)^hatchling==", pinned)
    assert not [text for _, text in final(room) if "pip" in text]


def test_both_images_are_built_in_the_same_way() -> None:
    stages = [lines(room)[: -len(final(room))] for room in ROOMS]
    assert stages[0] == stages[1]


@pytest.mark.parametrize("room", ROOMS)
def test_no_host_is_written_into_a_file_that_builds(room: str) -> None:
    for name in ("Dockerfile", "compose.yaml"):
        assert "://" not in (ROOT / room / name).read_text(encoding="utf-8")


def test_only_what_is_needed_goes_to_the_builder() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source
        for word, text in lines("client")
        if word == "COPY" and not text.startswith("--from")
        for source in text.split()[:-1]
    }
    assert allowed == copied


@pytest.mark.parametrize(("room", "name"), [(room, name) for room in ROOMS for name in services(room)])
def test_a_container_can_change_nothing_of_itself(room: str, name: str) -> None:
    service = services(room)[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service and "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "${FEDSYNTH_UID:-10001}:${FEDSYNTH_GID:-10001}"
    assert "/tmp" in service["tmpfs"]
    assert not any("docker.sock" in text or text.startswith("/:") for text in service["volumes"])


def test_the_node_has_a_network_and_no_patients() -> None:
    node = services("client")["node"]
    assert node["networks"] == ["outside"]
    assert mounted(node) == {
        "/etc/fedsynth/site.yaml": "FEDSYNTH_HOME/site.yaml:ro",
        "/work/node": "FEDSYNTH_HOME/work/node",
        "/records": "FEDSYNTH_HOME/records",
        "/records/pseudonym.key": "/dev/null:ro",
        "/run/fedsynth": "door",
    }
    assert "ports" not in node


def test_attack_10_the_container_with_the_network_has_neither_the_lists_of_patients_nor_the_key_of_their_names() -> (
    None
):
    node = services("client")["node"]
    lists = ledger_members.folder(Path("ledger.jsonl")).name
    assert f"/records/{lists}" in node["tmpfs"], "empty memory lies over the lists"
    assert mounted(node)[f"/records/{dataset.KEY_FILE}"] == "/dev/null:ro"


def test_the_app_has_patients_and_no_network() -> None:
    app = services("client")["app"]
    assert app["network_mode"] == "none"
    assert not {"networks", "ports", "links", "extra_hosts"} & app.keys()
    assert mounted(app) == {
        "/etc/fedsynth/site.yaml": "FEDSYNTH_HOME/site.yaml:ro",
        "/work/cohort": "FEDSYNTH_HOME/work/cohort:ro",
        "/run/fedsynth": "door:ro",
    }, "not the records, the node's folder or the manifest"


def test_the_scans_are_read_by_one_container_which_cannot_write_them_and_has_no_network() -> None:
    found = services("client")
    assert {name for name, service in found.items() if "/data" in mounted(service)} == {"desk"}
    assert mounted(found["desk"])["/data"].endswith(":ro")
    assert found["desk"]["network_mode"] == "none"


def test_node_and_app_name_the_same_places() -> None:
    """The node tells the app where its site file and work folder are, so both must say the same."""
    node, app = (services("client")[name]["command"] for name in ("node", "app"))
    assert node[:2] == ["client", "serve"] and app[:2] == ["client", "app"]
    assert node[2:] == app[2:]


def test_the_server_opens_one_port_and_writes_in_one_place() -> None:
    server = services("server")["server"]
    assert len(server["ports"]) == 1
    assert list(mounted(server)) == ["/srv/fedsynth"] == [text for word, text in final("server") if word == "VOLUME"]
