"""Shared by all rooms: user errors, atomic files, names of files and folders, seeds, devices and versions.

Nothing heavy is imported at the top: verbs import this module before they answer `--help`.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import difflib
import hashlib
import json
import logging
import os
import pickle
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import torch

PROJECT = Path(__file__).resolve().parent
log = logging.getLogger("cxr")


class UserError(Exception):
    """An error the user can fix: printed as one line, without a traceback, with exit code 2."""


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the block has ended, so keep the block short.

    matplotlib's C++ code swallows or replaces the exception that a signal handler raises in it, and the interruption
    would be lost. Signals without a Python handler (usually SIGTERM) still end the process at once.
    """
    received: list[tuple[int, Any]] = []
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in signals if callable(signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in received[:1]:
            handlers[number](number, frame)


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` only if the block succeeds. Raises: `OSError`, as `open` does."""
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, mode, **text) as file:
            yield file
        os.chmod(name, 0o644)  # mkstemp creates files that only their owner may read
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_write(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON mapping. Raises: `UserError` that names the file and the `remedy`."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({type(error).__name__}); {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON mapping; {remedy}")
    return content


def best_epoch(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the row of the lowest validation loss, the earliest of equals: the epoch that `best.pt` holds."""
    return min(history, key=lambda row: row["valid_loss"])


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write `rows` as CSV with a header, atomically; `columns` default to the first row's keys."""
    with atomic_write(path) as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path, columns: Sequence[str], name: str, remedy: str = "") -> pd.DataFrame:
    """Read a CSV, all cells as text. Blank lines are left out, but count in the index: line 2 of the file is row 0.

    Raises: `UserError` with the file's `name` and the `remedy`, if it cannot be read or lacks one of the `columns`.
    """
    import pandas as pd

    try:  # index_col=False: a trailing comma shifts nothing
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, skip_blank_lines=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{name}: cannot be read as CSV ({str(error).splitlines()[0]}){remedy}") from None
    table.columns = [str(column).strip().lower() for column in table.columns]
    if missing := [column for column in columns if column not in table]:
        raise UserError(f"{name}: no column '{missing[0]}' (its columns: {', '.join(table.columns)}){remedy}")
    if not table.columns.is_unique:
        raise UserError(f"{name}: two columns have the same name ({', '.join(table.columns)}){remedy}")
    table = table.fillna("")
    return table[(table != "").any(axis=1)]


def read_tensors(path: Path, flag: str) -> Any:
    """Read a `.safetensors`, `.pt` or `.pth` file without executing anything in it (`weights_only=True`).

    Raises: `UserError` that names `flag` and the file, if it is missing, truncated, text or pickled code.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise UserError(f"{flag} {path}: no such file")
    try:
        if Path(path).suffix.lower() == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{flag} {path}: refused: not a file of tensors, or it contains pickled code that could be executed; save "
            "a state dict"
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{flag} {path}: cannot be read as tensors; the file may be truncated ({reason})") from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal. Raises: `OSError`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def did_you_mean(word: str, names: Iterable[str] | Mapping[str, str], count: int = 1, cutoff: float = 0.6) -> str:
    """Return ` (did you mean A, B?)` with at most `count` of the `names` that resemble `word`, or an empty string.

    Args:
        names: the names to compare with; of a mapping, the keys are compared and their values are shown.
        cutoff: the least similarity, from 0 to 1.
    """
    spellings = names if isinstance(names, Mapping) else {name: name for name in names}
    near = difflib.get_close_matches(word, list(spellings), n=count, cutoff=cutoff)
    return f" (did you mean {', '.join(spellings[name] for name in near)}?)" if near else ""


def count(number: int, noun: str) -> str:
    """Return the number with its noun: `1 image`, `1,600 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def elide(text: str, limit: int) -> str:
    """Return `text`, with its middle replaced by `…` if it has more than `limit` characters."""
    tail = (limit - 1) // 2
    shortened = f"{text[: limit - 1 - tail].rstrip()}…{text[len(text) - tail :].lstrip()}"
    return text if len(text) <= limit else shortened


def shortened_name(text: str, limit: int = 120, identity: bytes = b"") -> str:
    """Return a name for a file or folder: `text`, cut to `limit` bytes of UTF-8 if it is longer.

    A cut name ends in 8 hexadecimal digits of the SHA-256 of `text`, so that texts that begin alike keep different
    names. Where an `identity` is given, the name always ends in the digits of its SHA-256. File systems allow names of
    255 bytes.
    """
    encoded = text.encode()
    if len(encoded) <= limit and not identity:
        return text
    mark = hashlib.sha256(identity or encoded).hexdigest()[:8]
    return f"{encoded[: limit - 9].decode(errors='ignore')}-{mark}"


def joint_name(names: Sequence[str], files: Sequence[Path], expected: Sequence[Path] = (), joint: str = "-vs-") -> str:
    """Return the name of a folder about several files, at most 120 bytes: `A-vs-B` or `A-vs-B-0123abcd`.

    The hash, of the files' real paths, is left out only if the names alone identify the files: the files are the
    `expected` ones of these names, and the joint name splits into the same names again.
    """
    text = joint.join(names).replace("/", "-")
    paths, plain = ([os.fsencode(file.resolve()) for file in group] for group in (files, expected))
    identified = paths == plain and text.split(joint) == list(names)
    return shortened_name(text, identity=b"" if identified else b"\0".join(paths))


def shown(path: Path) -> str:
    """Return `path` as a user would type it: relative to the working folder if it is inside it."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def sqlite_address(path: Path) -> str:
    """Return the URL of the SQLite file `path` for SQLAlchemy; `%` and `?` in the path are escaped."""
    return "sqlite:///" + str(path.resolve()).replace("%", "%25").replace("?", "%3F")


def make_folder(path: Path, flag: str) -> Path:
    """Create `path` and its parents. Raises: `UserError` that names `flag`, if files cannot be written there."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written ({error.strerror}); choose another folder") from None


def derived_seed(*keys: int) -> int:
    """Return a 63-bit seed for non-negative integers: well mixed, and the same on every machine."""
    import numpy as np

    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 1)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators: initial weights and dropout draw from torch's."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries may draw from the global generator
    torch.manual_seed(seed)


def pick_device(name: str, flag: str = "--device") -> torch.device:
    """Return a device by name; `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises: `UserError` that names `flag`, if it is absent.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError(device.type)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"{flag} {name}: not available here; use cpu or auto") from None
    if device.type == "cpu":
        keep_freed_memory()
    return device


@cache
def keep_freed_memory() -> None:
    """Make glibc keep freed memory, and the kernel give the heap huge pages. On other systems, do nothing.

    A step on a CPU frees and allocates the same gigabytes again and again. By default every large block is a mapping of
    its own, returned when it is freed, and the kernel fills each page of the next one with zeros, which takes half the
    time of a step of VGG16. An existing MALLOC_MMAP_MAX_, glibc's environment variable, is respected.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or "MALLOC_MMAP_MAX_" in os.environ:
        return
    trim_threshold, top_pad, mmap_max, huge_page = -1, -2, -4, 14  # from malloc.h; MADV_HUGEPAGE from mman.h
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)  # never
    libc.mallopt(top_pad, 64 * 2**20)
    overcommit = Path("/proc/sys/vm/overcommit_memory")
    if not overcommit.exists() or overcommit.read_text().strip() == "2":
        return  # reserved memory counts as used there, so reserve none
    # Extend the heap by unused addresses, request huge pages for them, and leave them to later blocks.
    page, size = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if block:
        start = -(-block // page) * page
        libc.madvise(start, (block + size - start) // page * page, huge_page)
        libc.free(block)


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """Return the hardware's name, for records and as the key of measured precisions."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.*)", cpus.read_text(), re.MULTILINE) if cpus.exists() else []
    if not names:
        return platform.processor() or platform.machine()
    return f"{names[0].strip()} ({count(torch.get_num_threads(), 'thread')})"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast context of a precision (`fp32` or `bf16`)."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    from importlib.metadata import version  # too slow for --help

    names = ("torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn", "opencv-python-headless")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def git_commit() -> str | None:
    """Return the project's commit, with `-dirty` if files differ from it; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
