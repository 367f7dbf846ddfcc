"""A folder of many patients to slices: cut by patient, done in several processes, and what is done stays done.

A unit of work is the files of one patient identifier (of any issuer), together with those of another that may be the same
person (`client.readers.persons`): they have a study, a series or an instance in common, or one names the other. So no verdict
depends on another unit, and the result is that of reading all at once. Files that name nobody are a unit too. A unit is kept
whole or not at all (`client.readers.resume`): a run that was killed, or that finds new patients, goes on with what is missing,
and its last bytes are those of an uninterrupted run.

A unit's files are taken as unchanged when paths, sizes and both times of change are. Left out: cutting in several processes.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from client.deidentification import pseudonym
from client.readers import resume, workers
from client.readers.inventory import Inputs, Tie
from client.readers.resume import Batch, Files, Task
from client.readers.whose import People

Ties = Callable[[Inputs, int], Tie]
ANEW = "the finished patients here are of other files, or of another site file, key or version: starting anew"


@dataclass
class Unit:
    """Files that are judged together. `name` of its folder, `settings`, `images`: keyed tokens, as in `finished`."""

    name: str = ""
    settings: str = ""
    images: str = ""
    patients: set[str] = field(default_factory=set, repr=False)
    files: Files = field(default_factory=list, repr=False)


def read(
    task: Task,
    ties: Ties,
    data: Path,
    files: Files,
    place: Path,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    jobs: int = 1,
    met: Callable[[list[set[str]]], None] | None = None,
    people: People | None = None,
) -> Batch:
    """Slices of every patient of a folder in `place`, and the verdict on each file.

    ties   of a file: who its patient is
    say    told in one line what of an earlier run was taken up
    people how the paths say whose a file is, of files that are no DICOM
    met    told, before any pixel is read, the identifiers of each unit, a person as a rule; it may raise DataError
    """
    store, batch, done = task.work / "finished", Batch(), 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, 2 * len(files))

    def take(unit: Unit) -> bool:
        kept = resume.find(store / unit.name, unit.settings, unit.images)
        if kept is not None:
            batch.add(kept)
            resume.copy(store / unit.name, place)
            tell(len(unit.files))
        return kept is not None

    units = _units(task, ties, Inputs(data, files, task.key, people=people), files, tell)
    if met is not None:
        met([unit.patients - {""} for unit in units])
    before = [path for path in store.glob("*") if path.suffix != ".partial"]
    resume.forget_others(store, {unit.name for unit in units})
    left = [unit for unit in units if not take(unit)]
    if before and say is not None:
        todo, everyone = (sum(any(unit.patients) for unit in several) for several in (left, units))
        say(f"{everyone - todo} of {everyone} patients are finished already" if todo < everyone else ANEW)
    work = functools.partial(_finish, task, data, store)
    for unit in workers.run(work, left, min(jobs, max(len(left), 1))):
        assert take(unit), "a unit that was just finished"
    return batch


def _finish(task: Task, data: Path, store: Path, unit: Unit) -> None:
    partial = resume.begin(store / unit.name)
    resume.keep(store / unit.name, task.read(data, unit.files, partial), unit.settings, unit.images)


def _units(task: Task, ties: Ties, inputs: Inputs, files: Files, tell: Callable[[int], None]) -> list[Unit]:
    """The connected parts of the graph of files, patients and instances."""
    unfit = set(range(len(files))) - set(inputs.open())
    nodes: dict[tuple[str, str], int] = {}
    edges: list[tuple[int, int]] = []
    patients, others = [], []
    for file in range(len(files)):
        tie = Tie() if file in unfit else ties(inputs, file)
        keys = [("patient", tie.patient), *(("uid", uid) for uid in tie.uids if tie.patient)]
        edges += [(file, len(files) + nodes.setdefault(key, len(nodes))) for key in keys]
        others += [(file, other) for other in tie.others]
        patients.append(tie.patient)
        tell(1)
    edges += [(file, len(files) + nodes["patient", other]) for file, other in others if ("patient", other) in nodes]
    size = len(files) + len(nodes)
    graph = coo_matrix((np.ones(len(edges)), tuple(np.array(edges).T)), shape=(size, size))
    parts: dict[int, Unit] = defaultdict(Unit)
    for file, part in enumerate(connected_components(graph, directed=False)[1][: len(files)]):
        parts[part].patients.add(patients[file])
        parts[part].files.append(files[file])
    for unit in parts.values():
        unit.name = pseudonym.token(task.key, "unit", "\0".join(sorted(unit.patients)))
        unit.settings = task.settings(*sorted(unit.patients))
        unit.images = pseudonym.token(task.key, "images", json.dumps(list(_looks(inputs.folder, unit.files))))
    return sorted(parts.values(), key=lambda unit: unit.name)


def _looks(data: Path, files: Files) -> Iterable[tuple[str, int, int, int]]:
    for path, _ in files:
        status = path.lstat()
        yield str(path.relative_to(data)), status.st_size, status.st_mtime_ns, status.st_ctime_ns
