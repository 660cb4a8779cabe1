"""Shared by the benchmarks: contestants in separate processes, interleaved rounds, the table and its file.

Timings on a shared machine drift, so contestants are never timed one after the other: in each round every contestant
does its share, in rotating order, and the median over the rounds of the ratio within a round is reported.
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
sys.path.insert(0, str(ROOT))  # needed by the contestants' processes too, which import this module first

Work = Callable[..., float]  # does the work of one round and returns its rate (images or maps per second)


class Contestant:
    """One way to do the work, in its own process, so that none shares an allocator, threads or a cache with another.

    Args:
        name: the name in the table.
        setup: a function of a module; called with `arguments` in the new process, it prepares everything and returns
            the work of one round.
    """

    def __init__(self, name: str, setup: Callable[..., Work], *arguments: Any) -> None:
        self.name, self._setup, self._arguments = name, setup, arguments

    def measure(self, *arguments: Any) -> float:
        """Do one round's work and return its rate. Raises: `RuntimeError` if the process died."""
        try:
            self._pipe.send(arguments)
            return self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise RuntimeError(f"{self.name}: the process ended (see its message above)") from None

    def __enter__(self) -> Contestant:
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_end, self._setup, self._arguments))
        self._process.start()
        other_end.close()
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
    """Return the rates of each contestant in `repeats` rounds, after one round that is not counted.

    `arguments` are passed to the work.
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
    """Start the contestants' processes, and end them with the block."""
    with ExitStack() as stack:
        yield [stack.enter_context(contestant) for contestant in contestants]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return the median, minimum and maximum of the ratio ours / theirs within each round."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(pairs), "low": min(pairs), "high": max(pairs)}


def show_ratio(value: dict[str, float]) -> str:
    """Return the median and the range over the rounds as `3.91 (3.80-4.02)`."""
    return f"{value['median']:.2f} ({value['low']:.2f}-{value['high']:.2f})"


def show_medians(values: dict[str, list[float]], digits: int) -> dict[str, str]:
    """Return the median of each contestant's rates or seconds over the rounds, with `digits` decimals."""
    return {name: f"{statistics.median(rates):.{digits}f}" for name, rates in values.items()}


def finish(device: torch.device) -> None:
    """Wait until a GPU has finished its work, so that it is included in the time."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine() -> dict[str, Any]:
    """Return what the figures depend on: device, cores, system, versions, commit and date."""
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
    """Return the device as in result files' names: `cpu`, or a GPU's name in lower case with dashes."""
    device = facts["device"] if facts["device_type"] != "cpu" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def report(name: str, columns: dict[str, str], rows: list[dict[str, Any]], measured: dict[str, Any]) -> Path:
    """Print a table and write `results/NAME-DEVICE.json`.

    Args:
        columns: a row's key → heading.
        rows: the cells as text; missing cells are left blank.
        measured: all figures, for programs.
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
