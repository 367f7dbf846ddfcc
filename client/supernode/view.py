"""What the app's process may see of its machine: this list. What is not on it does not exist for the app.

    read     the interpreter and its libraries, the system's libraries, our five packages, a few files of /etc, the processors;
             of the hospital its patients (WORK/cohort) and its site file
    write    a scratch folder of its own
    use      null, zero, full, random, urandom; graphics cards, where there are any

A folder of an environment is shown in parts (`bin`, `lib`, ...), because a hospital may keep its work folder beside them. Where
something of the hospital would lie within what is shown, nothing starts: `check` says what to move.

Left out: PYTHONPATH, of which only our own packages are taken; libraries elsewhere than in the environment, the system's folders
and LD_LIBRARY_PATH. Only the standard library is used here: this is loaded in the process that shuts the app in (isolation.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from shared import flower
from shared.errors import FederationError

OURS = Path(__file__).resolve().parents[2]
ROOMS = ("client", "server", "shared", "privacy", "weights")
PARTS = ("bin", "lib", "lib64", "targets", "pyvenv.cfg")  # of an environment; conda keeps CUDA in `targets`
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "nsswitch.conf")
SETTINGS = ("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "FEDSYNTH_LOG", "FEDSYNTH_LOOPBACK", "FEDSYNTH_PART")
PREFIXES = (
    "LC_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "CUDA_",
    "CUBLAS_",
    "NVIDIA_",
    "HIP_",
    "ROCR_",
    "HSA_",
    "PYTORCH_",
)


def environment() -> dict[str, str]:
    """The variables that the app keeps: none of a proxy, none that may be a secret."""
    names = {*SETTINGS, *flower.SETTINGS}
    kept = {name: value for name, value in os.environ.items() if name in names or name.startswith(PREFIXES)}
    if not OURS.is_relative_to(Path(sys.prefix).resolve()):
        kept["PYTHONPATH"] = str(OURS)
    return kept


def places(scratch: Path) -> dict[str, str]:
    """The variables that send what programs like to write into the scratch folder."""
    return {"HOME": str(scratch), "TMPDIR": str(scratch), "FLWR_HOME": str(scratch / "flower"), "USER": "fedsynth"}


def packages(folder: Path) -> Path:
    """A folder that leads to our packages and holds nothing else. Python lists a folder to import from it, and whoever may list one
    with Landlock may list all below it: the checkout, and a work folder in it."""
    folder.mkdir(exist_ok=True)
    for room in ROOMS:
        if not (folder / room).exists():
            (folder / room).symlink_to(OURS / room)
    return folder


def shown(seen: Iterable[Path]) -> list[Path]:
    """Files and folders that may be read: the libraries, and `seen`. Under the name they are asked for and under their true one."""
    listed = [*seen, *map(Path, SYSTEM), *(Path("/etc") / name for name in ETC), *_python(), *_processors()]
    listed += [Path(name) for name in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if name.startswith("/")]
    found = {path for place in listed if place.exists() for path in (place, place.resolve())}
    return sorted(path for path in found if not any(path.is_relative_to(other) for other in found - {path}))


def _python() -> Iterator[Path]:
    for prefix in dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)):
        yield from (Path(prefix) / part for part in PARTS)
    link = Path(sys.executable)
    while link.is_symlink():  # every step, so that Python finds its environment and its libraries as outside
        yield link
        link = link.parent / link.readlink()
    yield link
    yield from (OURS / room for room in ROOMS)


def _processors() -> list[Path]:
    parts = ("bus", "class", "dev", "devices", "module") if _cards() else ("devices/system",)
    return [Path("/sys") / part for part in parts]


def _cards() -> list[Path]:
    dev = Path("/dev")
    return [*dev.glob("nvidia*"), *(path for path in (dev / "dri", dev / "kfd") if path.exists())]


def devices() -> list[Path]:
    """What may be opened in /dev."""
    plain = [Path("/dev") / name for name in ("null", "zero", "full", "random", "urandom")]
    return [path for path in plain if path.exists()] + _cards()


def check(seen: Iterable[Path], hidden: Iterable[Path]) -> None:
    """FederationError where something of the hospital lies within what the app is shown."""
    for place in shown(seen):
        for path in hidden:
            if path.resolve().is_relative_to(place.resolve()):
                raise FederationError(
                    f"the app would see {path}, because it is shown {place}; move one of the two elsewhere"
                )
