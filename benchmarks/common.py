"""What the benchmarks share: contestants in processes of their own, interleaved rounds, the table and its file.

Timings on a shared machine drift. So nobody is timed on its own: in every round each contestant does its share, in an
order that rotates, and what is reported is the median over the rounds of the ratio within a round.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(ROOT))  # also for the contestants' processes, which import this module first

Work = Callable[..., float]  # does one round's work and returns how much of it (images, maps) per second


class Contestant:
    """One way to do the work, in a process of its own: nobody shares an allocator, threads or a cache with another.

    Args:
        name: in the table.
        setup: a module's function; called in the new process with `arguments`, it prepares everything and returns the
            work of one round.
    """

    def __init__(self, name: str, setup: Callable[..., Work], *arguments: Any) -> None:
        self.name, self._setup, self._arguments = name, setup, arguments

    def measure(self, *arguments: Any) -> float:
        """One round's work: its rate. Raises: `RuntimeError` where the process died."""
        try:
            self._pipe.send(arguments)
            return self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise RuntimeError(f"{self.name}: its process ended (its message is above)") from None

    def __enter__(self) -> Contestant:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._setup, self._arguments))
        self._process.start()
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, setup: Callable[..., Work], arguments: tuple) -> None:
    work = setup(*arguments)
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(work(*arguments))


def rounds(title: str, contestants: Sequence[Contestant], repeats: int, *arguments: Any) -> dict[str, list[float]]:
    """The rates of each contestant in each of `repeats` rounds, after one round that is not counted.

    `arguments` are those of the work.
    """
    from tqdm import tqdm

    rates: dict[str, list[float]] = {c.name: [] for c in contestants}
    with tqdm(total=(repeats + 1) * len(contestants), desc=title, unit="turn", leave=False) as bar:
        for number in range(repeats + 1):
            turn = number % len(contestants)
            for contestant in (*contestants[turn:], *contestants[:turn]):
                rate = contestant.measure(*arguments)
                if number:
                    rates[contestant.name].append(rate)
                bar.update()
    return rates


@contextmanager
def contest(*contestants: Contestant) -> Iterator[Sequence[Contestant]]:
    """The contestants' processes, ended with the block."""
    with ExitStack() as stack:
        yield [stack.enter_context(contestant) for contestant in contestants]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The ratio ours / theirs within each round: its median, and the least and the largest."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(pairs), "low": min(pairs), "high": max(pairs)}


def show_ratio(value: dict[str, float]) -> str:
    """`3.91 (3.80-4.02)`: the median and the range over the rounds."""
    return f"{value['median']:.2f} ({value['low']:.2f}-{value['high']:.2f})"


def show_medians(values: dict[str, list[float]], digits: int) -> dict[str, str]:
    """The median of each contestant's rates or seconds over the rounds, with `digits` decimals."""
    return {name: f"{statistics.median(found):.{digits}f}" for name, found in values.items()}


def finish(device: torch.device) -> None:
    """Wait until a GPU has done what it was given: until then no clock may stop."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine() -> dict[str, Any]:
    """What the figures depend on: the device, the cores, the system, the versions, the commit and the day."""
    from utils import cores, device_name, git_commit, pick_device, versions

    device = pick_device("auto")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "device": device_name(device),
        "device_type": device.type,
        "cores": cores(),
        "memory_gib": round(memory),
        "system": platform.platform(),
        "versions": versions(),
        "commit": git_commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def device_slug(facts: dict[str, Any]) -> str:
    """The device in the names of result files: `cpu`, or a GPU's name in lower case with dashes."""
    device = facts["device"] if facts["device_type"] != "cpu" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def report(name: str, columns: dict[str, str], rows: list[dict[str, Any]], measured: dict[str, Any]) -> Path:
    """Print a table and write `results/NAME-DEVICE.json`.

    Args:
        columns: key of a row → heading.
        rows: text for people; what is missing is left blank.
        measured: every figure, for machines.
    """
    table = [list(columns.values()), *([str(row.get(key, "")) for key in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    facts = machine()
    print(f"\n{name}: {facts['device']}, {facts['cores']} cores, torch {facts['versions']['torch']}, {facts['date']}")
    for number, line in enumerate(table):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))
    path = RESULTS / f"{name}-{device_slug(facts)}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": facts, "rows": rows, "measured": measured}, indent=2) + "\n")
    print(f"written: {path.relative_to(ROOT)}", flush=True)
    return path
