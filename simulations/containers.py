"""python -m simulations.containers [--base IMAGE] [--storage-driver vfs]

Build the images of client/ and server/ from this checkout and look at them from inside. As root on Debian, with buildah and
debootstrap (apt-get install buildah debootstrap); no container engine runs. About 10 minutes on 2 cores, half a gigabyte to
download, 10 GB of disk, so it is run by hand and not with the tests, which read the files alone (tests/test_containers.py).

Expected: both images are built, every line says ok, and the exit code is 0. Looked at, in each image:

    the user, the entry point and the health check; the command starts and does real work in its volume
    nothing is written but in the volume, /run/fedsynth and /tmp
    the same app bundle as this checkout's; the bill of materials lists what is installed, torch and flwr with it
    no pip, no cache of pip's and none of its settings are left

Left out: compose.yaml itself, which needs an engine; a read-only root and dropped capabilities are the engine's to keep.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from shared.config.experiment import Experiment
from shared.config.loading import read
from shared.crypto import bundle
from shared.errors import FedsynthError
from simulations.cohorts import hospitals

ROOT = Path(__file__).parents[1]
CONSOLE = Console(highlight=False)
VOLUMES = {"client": Path("work"), "server": Path("srv/fedsynth")}
SCRATCH = {Path("tmp"), Path("run/fedsynth")}  # may be lost, and is not of the image
TINY = """
name: tiny
data: phantoms
base: none
model: {image_size: 32, channels: [16, 32], groups: 4, latents: 4, encoder_channels: 8}
cohort: {sites: 1, patients_per_site: 2, heldout_patients: 2, slices_per_patient: 6}
training: {trainable: appearance, rounds: 1, steps: 2}
privacy: {epsilon: 4, max_nsr: 100}
evaluation: {samples: 24, sampler_steps: 2, bootstrap: 20}
"""


@dataclass(frozen=True)
class Builder:
    """Debian's buildah. `driver`: where it keeps layers; vfs works everywhere and copies everything."""

    driver: str

    def __call__(self, *words: str | Path, check: bool = True) -> str:
        program = ["buildah", "--storage-driver", self.driver, *map(str, words)]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        if check and done.returncode:
            said = "\n".join(done.stderr.strip().splitlines()[-20:])
            raise FedsynthError(f"buildah {words[0]} failed with {done.returncode}:\n{said}")
        return done.stdout.strip()

    @contextmanager
    def container(self, image: str) -> Iterator[tuple[str, Path]]:
        """A container of an image and the folder of its root."""
        name = self("from", "--pull-never", image)
        try:
            yield name, Path(self("mount", name))
        finally:
            self("rm", name)

    def run(self, container: str, program: list[str], mounts: dict[Path, str], *, check: bool = True) -> str:
        """A program in it, as the image's user; its output."""
        volumes = [word for source, target in mounts.items() for word in ("--volume", f"{source}:{target}")]
        return self("run", "--isolation", "chroot", *volumes, container, "--", *program, check=check)


def base(build: Builder, folder: Path) -> str:
    """A Debian 12 with Python, made from packages."""
    CONSOLE.print("debootstrap: Debian 12 with Python ...")
    root = folder / "base"
    packages = "--include=python3,python3-venv,ca-certificates"
    with (folder / "debootstrap.log").open("wb") as log:
        subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", root], check=True, stdout=log)
    with build.container("scratch") as (container, _):
        build("add", "--quiet", container, root, "/")
        build("commit", "--quiet", container, "fedsynth-base")
    return "localhost/fedsynth-base@" + build(
        "inspect", "--type", "image", "--format", "{{.FromImageDigest}}", "fedsynth-base"
    )


def own_torch(folder: Path, pip: Path) -> list[str]:
    """What names the wheel of torch that this machine's pip finds, where constraints.txt does not: a build without CUDA."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = re.search(r"(?m)^torch==\S+", text)
    assert pinned is not None
    words = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        pinned[0],
    ]
    subprocess.run(words, check=True, env=os.environ | {"PIP_CONFIG_FILE": str(pip)})
    (wheel,) = folder.iterdir()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return [] if f"sha256:{digest}" in text else ["--build-arg", f"TORCH_SHA256={digest}"]


def pip_settings(folder: Path) -> tuple[Path, set[Path]]:
    """This machine's settings of pip as one file, and the files and folders that they name: what a mirror needs."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    lines = re.findall(r"^(?:global|install|:env:)\.([a-z-]+)='(.*)'$", listed.stdout, re.MULTILINE)
    settings = {key: value.replace("\\n", " ") for key, value in lines}
    path = folder / "pip.conf"
    path.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    named = {Path("/", *Path(word.removeprefix("file://")).parts[:3]) if word.startswith("file://") else Path(word)
             for value in settings.values() for word in value.split() if word.startswith(("/", "file://"))}  # fmt: skip
    return path, {place for place in named if place.exists()}


def image(build: Builder, room: str, source: str, folder: Path) -> str:
    """Build one of the two; its name."""
    pip, named = pip_settings(folder)
    mounts = [word for place in sorted(named) for word in ("--volume", f"{place}:{place}:ro")]
    began, tag = time.monotonic(), f"fedsynth-{room}"
    build("bud", "--quiet", "--format", "docker", "--isolation", "chroot", "--layers", "--build-arg", f"BASE={source}",
          *own_torch(folder / f"{room}-torch", pip), "--secret", f"id=pip,src={pip}", *mounts, "--file", ROOT / room / "Dockerfile",
          "--tag", tag, ROOT)  # fmt: skip
    CONSOLE.print(f"[bold]{tag}[/], built in {time.monotonic() - began:.0f} s")
    return tag


def listing(root: Path, own: Path) -> dict[str, tuple[int, int, int]]:
    """Every path of an image with its mode, a file's size and time of change too, but for its volume and scratch."""
    found = {}
    for folder, names, files in os.walk(root):
        here = Path(folder)
        names[:] = [n for n in names if (here / n).relative_to(root) not in SCRATCH | {own, Path("proc"), Path("sys")}]
        for name in [*files, *names]:
            state = (here / name).lstat()
            fixed = (0, 0) if stat.S_ISDIR(state.st_mode) else (state.st_size, state.st_mtime_ns)
            found[str((here / name).relative_to(root))] = (state.st_mode, *fixed)
    return found


def look(build: Builder, room: str, tag: str, folder: Path, answers: list[bool]) -> None:
    """Everything about one image, a line each."""

    def say(what: str, good: bool, more: object = "") -> None:
        answers.append(good)
        CONSOLE.print(f"  {'ok ' if good else 'NO '} {what}{f': {more}' if more != '' else ''}")

    settings = json.loads(build("inspect", "--type", "image", tag))["Docker"]["config"]
    say("its user has no rights", settings["User"] == "10001:10001", settings["User"])
    say("needs no shell", settings["Entrypoint"] == ["fedsynth"] and settings["Healthcheck"]["Test"][0] == "CMD")
    with build.container(tag) as (container, root):
        before = listing(root, VOLUMES[room])
        volume, scratch = folder / room, folder / f"{room}-tmp"
        for place in (volume, scratch):
            place.mkdir(mode=0o700)
        mounts = {volume: f"/{VOLUMES[room]}", scratch: "/tmp"}  # noqa: S108 - the container's

        def inside(*program: str | Path, check: bool = True) -> str:
            for place in (volume, scratch):
                for path in [place, *place.rglob("*")]:
                    os.chown(path, 10001, 10001, follow_symlinks=False)
            return build.run(container, [str(word) for word in program], mounts, check=check)

        python = "/opt/fedsynth/bin/python"
        uid = inside(python, "-c", "import os; print(os.getuid(), os.getgid())")
        say("runs as that user", uid == "10001 10001", uid)
        version = inside("fedsynth", "--version")
        say("fedsynth --version", version.startswith("fedsynth "), version)
        say(f"fedsynth {room} --help", "Usage" in inside("fedsynth", room, "--help"))
        (WORK[room])(inside, volume, say)
        digest = inside(python, "-P", "-c", "from shared.crypto import bundle as b; print(b.sha256(b.build()))")
        say("the app bundle is this checkout's", digest == bundle.sha256(bundle.build(ROOT)), digest[:12])
        after = listing(root, VOLUMES[room])
        changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        say("nothing was written outside", not changed, ", ".join(changed[:5]))
        bill = json.loads((root / "usr/share/sbom/fedsynth.cdx.json").read_text(encoding="utf-8"))
        listed = {c["name"].lower().replace("_", "-"): c["version"] for c in bill["components"]}
        there = dict(
            line.split()
            for line in inside(python, "-c", "import importlib.metadata as m\nfor d in m.distributions():\n"
                               " print(d.name.lower().replace('_', '-'), d.version)").splitlines()
        )  # fmt: skip
        whole = (
            there.items() <= (listed | {"fedsynth": there["fedsynth"]}).items() and {"torch", "flwr"} <= listed.keys()
        )
        say(f"bill of materials ({bill['bomFormat']} {bill['specVersion']})", whole, f"{len(listed)} components")
        left = [
            path
            for path in ("etc/pip.conf", "root/.cache/pip", "opt/fedsynth/bin/pip", "src", "opt/tools")
            if (root / path).exists()
        ]
        say("nothing of pip is left", not left, ", ".join(left))
        size = sum(size for mode, size, _ in after.values() if stat.S_ISREG(mode))
        product = sum(
            p.lstat().st_size for p in (root / "opt/fedsynth").rglob("*") if p.is_file() and not p.is_symlink()
        )
        CONSOLE.print(f"      {size / 1e9:.2f} GB, of them {product / 1e9:.2f} GB fedsynth and what it needs")


def hospital(inside: Callable[..., str], volume: Path, say: Callable[..., None]) -> None:
    """Two made-up patients, from DICOM to a cohort; then the doctor, who finds that the site has not joined yet."""
    experiment = volume / "tiny.yaml"
    experiment.write_text(TINY)
    (site,), _ = hospitals.build(read(experiment, Experiment), volume, lambda _: None)
    data = site.data or volume
    file = volume / "site.yaml"
    file.write_text(f"name: north\ndata: /work/{data.relative_to(volume)}\nface_removal: none\nepsilon_cap: 8\n")
    inside("fedsynth", "client", "ingest", "/work/site.yaml", "--work", "/work/out", "--image-size", "32")
    patients = len(list((volume / "out" / "cohort").glob("*.npz")))
    say("fedsynth client ingest", patients == 2, f"{patients} patients")
    found = json.loads(
        inside("fedsynth", "client", "doctor", "/work/site.yaml", "--work", "/work/out", "--json", check=False)
    )
    bad = sorted(line["what"] for line in found if line["state"] == "bad")
    say(
        "fedsynth client doctor",
        {"kit", "line"} <= set(bad),
        f"{len(found)} lines; bad before joining: {', '.join(bad)}",
    )


def coordinator(inside: Callable[..., str], volume: Path, say: Callable[..., None]) -> None:
    """Keys and certificates of a federation."""
    (volume / "brains.yaml").write_text("name: brains\naddress: 127.0.0.1:9443\n")
    said = inside("fedsynth", "server", "provision", "brains.yaml")
    say("fedsynth server provision", "read to every hospital" in said and (volume / "brains" / "server.pem").exists())


WORK = {"client": hospital, "server": coordinator}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="an image to build on, by its digest; else one is made with debootstrap")
    parser.add_argument("--storage-driver", default="vfs", choices=("vfs", "overlay"))
    chosen = parser.parse_args()
    build, answers = Builder(chosen.storage_driver), list[bool]()
    with tempfile.TemporaryDirectory(prefix="fedsynth-images-", dir="/var/tmp") as place:
        folder = Path(place)
        try:
            source = chosen.base or base(build, folder)
            for room in ("client", "server"):
                look(build, room, image(build, room, source, folder), folder, answers)
        except (FedsynthError, subprocess.CalledProcessError, FileNotFoundError) as error:
            CONSOLE.print(str(error), style="red", markup=False)
            return 1
    return 0 if all(answers) else 1


if __name__ == "__main__":
    sys.exit(main())
