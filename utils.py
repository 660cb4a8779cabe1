"""Small things that every room shares: errors for people, seeds, devices, precision, logging, atomic files.

Nothing heavy is imported at the top: verbs import this module before they answer `--help`.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PROJECT = Path(__file__).resolve().parent
log = logging.getLogger("cxr")


class UserError(Exception):
    """Something that the user can mend: printed as one line, without a traceback, with exit code 2."""


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block has ended, so keep it short.

    matplotlib's C++ swallows the exception that a signal raises in it, or makes another one of it: the interruption
    would be lost. A signal without a handler in Python (SIGTERM mostly) ends the process at once, as ever.
    """
    came: list[tuple[Callable[[int, Any], Any], int, Any]] = []

    def later(handler: Callable[[int, Any], Any]) -> Callable[[int, Any], None]:
        return lambda number, frame: came.append((handler, number, frame))

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    mine = threading.current_thread() is threading.main_thread()  # no other thread hears signals, or may set handlers
    changed = {number: handler for number, handler in handlers.items() if mine and callable(handler)}
    for number, handler in changed.items():
        signal.signal(number, later(handler))
    try:
        yield
    finally:
        for number, handler in changed.items():
            signal.signal(number, handler)
        for handler, number, frame in came[:1]:
            handler(number, frame)


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that takes its name only when the block ends well. `OSError` as open's."""
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, mode, **text) as file:
            yield file
        os.chmod(name, 0o644)  # mkstemp makes files that only the owner may read
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
    """A JSON mapping. Raises: `UserError` that names the file and the `remedy` for anything else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({type(error).__name__}); {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: no JSON mapping; {remedy}")
    return found


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write `rows` as CSV with a header, atomically; `columns` default to the first row's keys."""
    with atomic_write(path) as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_tensors(path: Path, flag: str) -> Any:
    """What a `.safetensors`, `.pt` or `.pth` file holds; nothing in it is executed (`weights_only=True`).

    Raises: `UserError` that names `flag` and the file, for one that is missing, truncated, text or pickled code.
    """
    import pickle

    import torch

    if not Path(path).is_file():
        raise UserError(f"{flag} {path}: no such file")
    try:
        if Path(path).suffix.lower() == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                return load_file(path)
            except SafetensorError as error:
                raise UserError(f"{flag} {path}: no whole .safetensors file ({error})") from None
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{flag} {path}: refused: it is no file of tensors, or it holds pickled code that would be "
            "executed; save a state dict"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise UserError(
            f"{flag} {path}: cannot be read as tensors, it may be truncated "
            f"({(str(error) or type(error).__name__).splitlines()[0]})"
        ) from None


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
    """Return `text`, its middle replaced by `…` where it has more than `limit` characters."""
    kept = limit - 1
    return text if len(text) <= limit else f"{text[: kept - kept // 2].rstrip()}…{text[-(kept // 2) :].lstrip()}"


def shortened_name(text: str, identity: str = "", limit: int = 120) -> str:
    """Return a name for a file or folder: `text`, cut to `limit` bytes of UTF-8 where it is longer.

    A name that is cut ends in 8 hexadecimal digits of the SHA-256 of `identity` (default: `text`), so that two texts
    that begin alike keep two names. File systems take 255 bytes for a name.
    """
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    mark = hashlib.sha256((identity or text).encode()).hexdigest()[:8]
    return f"{encoded[: limit - 9].decode(errors='ignore')}-{mark}"


def shown(path: Path) -> str:
    """Return `path` as a user would type it: relative to the working folder if it is inside it."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def sqlite_address(path: Path) -> str:
    """The address, as SQLAlchemy reads it, of the SQLite file `path`, whatever signs it has."""
    return "sqlite:///" + str(path.resolve()).replace("%", "%25").replace("?", "%3F")


def make_folder(path: Path, flag: str) -> Path:
    """Make `path` and its parents; a `UserError` names `flag` where that, or writing there, is not possible."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written ({error.strerror}); name another folder") from None


def derived_seed(*keys: int) -> int:
    """One 63-bit seed for a tuple of non-negative integers: well mixed, the same on every machine."""
    import numpy as np

    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 1)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators: initial weights and dropout draw from torch's."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that we call may draw from the global generator
    torch.manual_seed(seed)


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU; a device that is not there is a `UserError`."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError(device.type)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"--device {name}: not available here; use cpu, or auto") from None
    if device.type == "cpu":
        keep_freed_memory()
    return device


@cache
def keep_freed_memory() -> None:
    """Tell glibc to keep the memory that is freed, and the kernel to give the heap huge pages. Nothing elsewhere.

    A step on a CPU frees and asks for the same gigabytes again and again. By default every large block is a mapping of
    its own, given back when it is freed, and the kernel fills each page of the next one with zeros: half of the time of
    a step of VGG16. Who sets glibc's own MALLOC_MMAP_MAX_ in the environment keeps his setting.
    """
    import ctypes

    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or "MALLOC_MMAP_MAX_" in os.environ:
        return
    trim_threshold, top_pad, mmap_max, huge_page = -1, -2, -4, 14  # of malloc.h; MADV_HUGEPAGE of mman.h
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)  # never
    libc.mallopt(top_pad, 64 * 2**20)
    overcommit = Path("/proc/sys/vm/overcommit_memory")
    if not overcommit.exists() or overcommit.read_text().strip() == "2":
        return  # where what is reserved counts as used, nothing is reserved
    # Stretch the heap by addresses that nothing uses yet, ask for huge pages there, and leave it to later blocks.
    page, size = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if block:
        start = -(-block // page) * page
        libc.madvise(start, (block + size - start) // page * page, huge_page)
        libc.free(block)


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """The hardware behind `device` as its maker calls it, for records and for the memory of measured precisions."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({torch.get_num_threads()} threads)"
    import platform

    return platform.processor() or platform.machine()


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The autocast context of a measured or chosen precision (`fp32` or `bf16`)."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def versions() -> dict[str, str]:
    """The versions that a number depends on."""
    import platform
    from importlib.metadata import version

    names = ("torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn", "opencv-python-headless")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def git_commit() -> str | None:
    """The project's commit, with `-dirty` where files differ from it; None where it is no git checkout."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip() or None
