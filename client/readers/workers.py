"""Work in several processes that end with this one: after a kill nobody is left who writes.

Each process gets its share of the cores. Left out: more than one machine; a limit on memory (choose fewer processes).
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar, cast

from shared.errors import DataError, FedsynthError

THREADS = ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")  # read by the libraries when they load

T = TypeVar("T")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(work: Callable[[T], None], tasks: Iterable[T], jobs: int) -> Iterator[T]:
    """Do `work` on every task in `jobs` processes (1: in this one); yields each task when it is done, in any order.

    Raises DataError in the words of a task's FedsynthError, and when a process dies; the other processes are ended then.
    """
    if jobs == 1:
        for task in tasks:
            work(task)
            yield task
        return
    left = iter(tasks)
    busy: dict[Connection, tuple[T, SpawnProcess]] = {}
    try:
        for task in itertools.islice(left, jobs):
            line, process = _start(work, jobs)
            busy[line] = task, process
            line.send(task)
        while busy:
            for ready in wait(list(busy)):
                line = cast("Connection", ready)
                task, process = busy[line]
                _hear(line)
                yield task
                following = list(itertools.islice(left, 1))
                if following:
                    busy[line] = following[0], process
                    line.send(following[0])
                else:
                    line.close()  # the process ends when it finds nobody there
                    del busy[line]
    finally:
        for _, process in busy.values():
            process.kill()
            process.join()


def _start(work: Callable[[T], None], jobs: int) -> tuple[Connection, SpawnProcess]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_listen, args=(theirs, work), daemon=True)
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ |= {name: str(max(cores() // jobs, 1)) for name in THREADS}
    try:
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ |= {} if value is None else {name: value}
    theirs.close()
    return ours, process


def _hear(line: Connection) -> None:
    try:
        said = line.recv()
    except (EOFError, OSError):
        said = "a worker process died, maybe for lack of memory; run the same command again with fewer `--jobs`"
    if said is not None:
        raise DataError(said)


def _listen(line: Connection, work: Callable[[T], None]) -> None:
    """The life of a worker: one task after the other until nobody sends any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = line.recv()
        except EOFError:
            return
        line.send(_said(work, task))


def _said(work: Callable[[T], None], task: T) -> str | None:
    """What went wrong with a task, without the words of a library, which may quote patient data; None when nothing did."""
    try:
        work(task)
    except FedsynthError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  (its traceback would be printed)
        return f"a worker process failed with {type(error).__name__}"
    return None


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
