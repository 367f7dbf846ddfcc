"""python -m simulations.benchmarks.draw_killed RUN [--images 2000] [--batch 48] [--out out/draw-killed]

Thousands of images from a finished run by `fedsynth server release`, once without interruption and once killed with SIGKILL three
times: twice while images are drawn, at a third and at two thirds, and once while the bundle is written. Each time the same command
goes on. Wrong is: a batch that was whole and is drawn again, a byte of the bundle that differs, a bundle that does not verify;
then it ends with code 1.

RUN is copied and not touched. Drawn with DDIM, 20 steps. The sites are not asked about these images (their check is left out of the
gate of the copies), so the bundle is for this comparison alone. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from server import finalize
from server.release import seal
from shared.config.experiment import Experiment
from shared.config.loading import read
from shared.crypto import signing
from shared.files import write_bytes

RELEASE = "import sys; from shared.cli import main; sys.argv[0] = 'fedsynth'; main()"
POLL_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run, e.g. out/demo")
    parser.add_argument("--images", type=int, default=2000, help="at least so many, the same number of each class")
    parser.add_argument("--batch", type=int, default=48, help="images that are drawn at a time")
    parser.add_argument("--sampler-steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("out/draw-killed"))
    options = parser.parse_args()
    console = Console(width=130)
    key = options.out / "key.pem"
    options.out.mkdir(parents=True, exist_ok=True)
    signing.load_or_make(key)
    whole, killed = (
        prepare(options.run, options.out / name, key, options.images, options.batch, options.sampler_steps)
        for name in ("whole", "killed")
    )

    began = time.monotonic()
    if not (whole / "release").exists():
        release(whole)
        console.print(f"uninterrupted: {time.monotonic() - began:.0f} s", highlight=False)
    if not (killed / "release").exists():
        again = kill_and_resume(killed, _seconds(whole), console)
        write_bytes(killed / "again.json", json.dumps(again).encode())
    again = json.loads((killed / "again.json").read_text())

    expected, found = (bundle(folder / "release") for folder in (whole, killed))
    seal.verify_release(killed / "release", killed / "release.pub.pem")
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    images = sum(name.startswith("images/") for name in found)
    console.print(
        f"{images} images, {len(found)} files, killed 3 times: {len(differ)} files differ, {again} whole batches drawn again",
        highlight=False,
    )
    for name in differ[:10]:
        console.print(f"  {name}", highlight=False)
    sys.exit(int(bool(differ) or bool(again) or images < options.images))


def prepare(run: Path, folder: Path, key: Path, images: int, batch: int, steps: int) -> Path:
    """A copy of what a release needs of a finished run, with settings of its own."""
    if not (folder / "server" / finalize.SIGNING_KEY).exists():
        shutil.rmtree(folder, ignore_errors=True)
        leave = shutil.ignore_patterns("draws", "samples", "sites_say.json", finalize.SIGNING_KEY)
        shutil.copytree(run / "server", folder / "server", ignore=leave)
        experiment = read(folder / "server" / "experiment.json", Experiment)
        gate = experiment.release.gate.model_copy(update={"required": ("privacy", "sites")})
        wanted = {
            "images_per_class": -(-images // len(experiment.classes)),
            "sampler": "ddim",
            "sampler_steps": steps,
            "gate": gate,
        }
        changed = experiment.model_copy(
            update={
                "release": experiment.release.model_copy(update=wanted),
                "performance": experiment.performance.model_copy(update={"sampling_batch": batch}),
            }
        )
        write_bytes(folder / "server" / "experiment.json", changed.model_dump_json(indent=2).encode())
        shutil.copy(key, folder / "server" / finalize.SIGNING_KEY)
    return folder


def kill_and_resume(folder: Path, batch_s: float, console: Console) -> int:
    """Three kills, the first two somewhere within a batch; then to the end. Returns how many whole batches were drawn again."""
    experiment = read(folder / "server" / "experiment.json", Experiment)
    total = experiment.release.images_per_class * len(experiment.classes)
    batches = -(-total // experiment.performance.sampling_batch)
    draws, rng, again = folder / "server" / "draws", random.Random(0), 0
    half = folder / ".release.new" / "images"

    def drawn(part: int) -> Callable[[], bool]:
        return lambda: _count(draws, "batch-*.npz") >= part

    moments: list[tuple[str, Callable[[], bool], float]] = [
        (f"drawing batch {part} of {batches}", drawn(part), rng.uniform(0, 0.8))
        for part in (batches // 3, 2 * batches // 3)
    ]
    moments.append(("writing the bundle", lambda: half.is_dir() and _count(half, "*/*.png") > total // 3, 0.0))
    before: dict[str, int] = {}
    for what, reached, wait in moments:
        process = start(folder)
        while not reached():
            if process.poll() is not None:
                raise SystemExit(f"the command ended by itself while it should be {what}; see {folder / 'log.txt'}")
            time.sleep(POLL_S)
        time.sleep(wait * batch_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (folder / "release").exists(), "killed before the end"
        made = {path.name: path.stat().st_mtime_ns for path in draws.glob("batch-*.npz")}
        again += sum(made.get(name) != at for name, at in before.items())
        before = made
        console.print(f"killed while {what}: {len(made)} of {batches} batches are whole", highlight=False)
    release(folder)
    made = {path.name: path.stat().st_mtime_ns for path in draws.glob("batch-*.npz")}
    return again + sum(made.get(name) != at for name, at in before.items())


def start(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log.txt").open("ab") as log:
        command = [sys.executable, "-c", RELEASE, "server", "release", str(folder)]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def release(folder: Path) -> None:
    if start(folder).wait() != 0:
        raise SystemExit(f"the release failed; see {folder / 'log.txt'}")


def bundle(folder: Path) -> dict[str, str]:
    """Name -> digest of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _seconds(folder: Path) -> float:
    """How long a batch took in an uninterrupted run."""
    at = sorted(path.stat().st_mtime for path in (folder / "server" / "draws").glob("batch-*.npz"))
    return (at[-1] - at[0]) / max(1, len(at) - 1)


def _count(folder: Path, pattern: str) -> int:
    return sum(1 for _ in folder.glob(pattern))


if __name__ == "__main__":
    main()
