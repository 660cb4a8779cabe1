"""The pixel cache: every image and mask is decoded and resized once, and kept as a row of one file of uint8.

A store is a folder with `rows.u8` (rows of side×side bytes, append-only) and `index.sqlite` (content hash → row).
Builders take turns by a file lock, and a row is entered in the index only after its bytes are on disk: a second process
waits and then finds the rows, and the next build overwrites what an interrupted one left behind.
"""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import IO

import cv2
import numpy as np

from config import DataConfig
from dataset import readers
from dataset.readers import UnreadableImage, square_image, square_mask
from utils import PROJECT, UserError, cores, file_sha256, log, make_folder

FORMAT = 1  # raise it when decoding or resizing changes, so that old rows are not used
COMMIT_ROWS = 512
MAX_READ = 2**30  # bytes; systems refuse or shorten reads of 2 GiB
MANY = 4000  # from this many files on, processes repay their start
CHUNK = 16  # files per job: one file per job would cost a tenth of the decoding time


def in_parallel(
    work: Callable, items: Sequence, workers: int, title: str, unit: str, processes_from: float = math.inf
) -> Iterator:
    """Yield `work(item)` in order, under a progress bar, with a bounded number of jobs in flight.

    Args:
        workers: 0 means one per core.
        title, unit: for the progress bar.
        processes_from: from this many items on, use processes instead of threads, for work that holds the interpreter's
            lock; it is then pickled.

    Raises: `UserError` if a process dies.
    """
    from tqdm import tqdm

    workers = workers or cores()
    size = max(1, min(CHUNK, len(items) // (4 * workers)))
    if workers > 1 and len(items) >= processes_from:
        # spawn, not fork: the fork of a process with threads (torch, OpenCV) can hang
        executor = ProcessPoolExecutor(workers, get_context("spawn"), _start_process)
    else:
        executor = ThreadPoolExecutor(workers)
    with executor as pool, tqdm(total=len(items), desc=title, unit=unit, leave=False, delay=0.5) as bar:
        jobs = (pool.submit(_each, work, items[i : i + size]) for i in range(0, len(items), size))
        try:
            pending = deque(islice(jobs, 2 * workers))
            while pending:
                done = pending.popleft().result()
                pending.extend(islice(jobs, 1))
                yield from done
                bar.update(len(done))
        except BrokenProcessPool:
            raise UserError(f"{title}: a process died, perhaps out of memory; try data.workers=1") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _each(work: Callable, items: Sequence) -> list:
    return [work(item) for item in items]


def _start_process() -> None:
    """Prepare a new process: Ctrl-C is left to its parent, and decoding is set up for a single thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    readers.one_thread = True


def _decode(decode: Callable, side: int, fit: str, item: Hashable) -> np.ndarray | str:
    """Return the pixels of an item, or the reason why it cannot be read."""
    try:
        return decode(item, side, fit)
    except UnreadableImage as error:
        return str(error)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock `path` against every other process by an exclusive SQLite transaction, which works on every platform."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            log.info(f"waiting for another process that is building {path.parent}")
            lock.execute(f"PRAGMA busy_timeout = {24 * 3600 * 1000}")
            lock.execute("BEGIN EXCLUSIVE")
        yield  # closing ends the transaction; so does the death of the process


def _open_index(path: Path, table: str) -> sqlite3.Connection:
    """Open a database with one table, `name (columns)`. Raises: `UserError` for a file that is not one."""
    connection = sqlite3.connect(path, timeout=60)
    try:
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} WITHOUT ROWID")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise UserError(f"{path}: cannot be used ({error}); delete {path.parent} and run again") from None
    return connection


def cache_folder(data: DataConfig) -> Path:
    """Return `data.cache_dir`, relative to the project."""
    return PROJECT / data.cache_dir


def hash_files(paths: Sequence[str], cache_dir: Path, workers: int = 0) -> list[str | None]:
    """Return the SHA-256 of each file, remembered by path, size and mtime_ns; None for a file that cannot be read."""
    make_folder(cache_dir, "data.cache_dir")
    table = "hashes (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sha256 TEXT)"
    with closing(_open_index(Path(cache_dir) / "hashes.sqlite", table)) as index:
        remembered = {row[0]: row for row in index.execute("SELECT * FROM hashes")}

        def work(path: str) -> tuple[str, int, int, str] | None:
            try:
                stat, row = os.stat(path), remembered.get(path)
                unchanged = row and row[1:3] == (stat.st_size, stat.st_mtime_ns)
                return row if unchanged else (path, stat.st_size, stat.st_mtime_ns, file_sha256(path))
            except OSError:
                return None

        hashed = list(in_parallel(work, paths, workers, "hashing", "file"))
        new = [row for row in hashed if row and row is not remembered.get(row[0])]
        with index:
            index.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)", new)
    return [row and row[3] for row in hashed]


class PixelStore:
    """Rows of (side, side) uint8, keyed by the SHA-256 of what they were decoded from.

    Args:
        fit: `squash` or `letterbox` (`dataset.readers.fit_square`).
        kind: `image` (grey, 0 to 255) or `mask` (0 and 1).
    """

    def __init__(self, cache_dir: Path, side: int, fit: str, kind: str = "image") -> None:
        self.side, self.fit, self.kind = side, fit, kind
        self.folder = make_folder(Path(cache_dir) / f"{kind}-{side}-{fit}-v{FORMAT}", "data.cache_dir")
        self.rows_file = self.folder / "rows.u8"
        # Open as long as the store: rows can be read even if the file is deleted.
        self._file = os.open(self.rows_file, os.O_RDONLY | os.O_CREAT, 0o644)
        weakref.finalize(self, os.close, self._file)

    def rows(self, hashes: Iterable[str]) -> np.ndarray:
        """Return the row of each hash, int64, -1 if it has none."""
        with closing(self._index()) as index:
            row_of = dict(index.execute("SELECT sha256, row FROM rows WHERE row < ?", (self._rows_on_disk(),)))
        return np.array([row_of.get(sha, -1) for sha in hashes], np.int64)

    def build(
        self, items: Sequence[Hashable], keys: Sequence[str], workers: int = 0, decode: Callable | None = None
    ) -> dict[Hashable, str]:
        """Decode the items whose key has no row yet.

        Args:
            items: paths, or whatever `decode` takes.
            keys: the SHA-256 of each.
            decode: a function of (item, side, fit) that returns (side, side) uint8; default: read an image or a mask,
                depending on the kind.

        Returns: item → reason of every one that cannot be read.
        """
        if (self.rows(keys) >= 0).all():
            return {}
        decode = decode or (square_image if self.kind == "image" else square_mask)
        work, title = partial(_decode, decode, self.side, self.fit), f"{self.kind}s to {self.side}×{self.side}"
        failed: dict[str, str] = {}
        with _locked(self.folder / "lock.sqlite"), closing(self._index()) as index:
            missing = {key: item for item, key, row in zip(items, keys, self.rows(keys), strict=True) if row < 0}
            with index:  # drop entries without bytes: somebody deleted or truncated the file
                index.execute("DELETE FROM rows WHERE row >= ?", (self._rows_on_disk(),))
            next_row = index.execute("SELECT COALESCE(MAX(row) + 1, 0) FROM rows").fetchone()[0]
            with open(self.rows_file, "ab") as file:
                file.truncate(next_row * self.side**2)  # drop rows that an interrupted build did not enter in the index
                entered = []
                results = in_parallel(work, list(missing.values()), workers, title, self.kind, MANY)
                for key, result in zip(missing, results, strict=True):
                    if isinstance(result, str):
                        failed[key] = result
                        continue
                    file.write(result)
                    entered.append((key, next_row))
                    next_row += 1
                    if len(entered) == COMMIT_ROWS:
                        self._enter(index, file, entered)
                self._enter(index, file, entered)
        return {item: failed[key] for item, key in zip(items, keys, strict=True) if key in failed}

    @staticmethod
    def _enter(index: sqlite3.Connection, file: IO[bytes], entered: list[tuple[str, int]]) -> None:
        """Enter rows in the index once their bytes are on disk, and empty the list."""
        file.flush()
        os.fsync(file.fileno())
        with index:
            index.executemany("INSERT INTO rows VALUES (?, ?)", entered)
        entered.clear()

    def _index(self) -> sqlite3.Connection:
        return _open_index(self.folder / "index.sqlite", "rows (sha256 TEXT PRIMARY KEY, row INTEGER NOT NULL)")

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the pixels of `rows` (int64, -1 for none): (n, side, side) uint8, zeros for -1.

        The file is read, not mapped: the pages of a memory map count as the process's memory, up to the whole file, and
        truncating a mapped file kills the process. The kernel's page cache makes both equally fast.

        Raises: `UserError` for rows that no longer exist.
        """
        out = np.zeros((len(rows), self.side, self.side), np.uint8)
        # Consecutive rows are read at once.
        ends = np.flatnonzero((np.diff(rows) != 1) | (rows[:-1] < 0)) + 1
        for start, stop in pairwise([0, *ends.tolist(), len(rows)]):
            if start < stop and rows[start] >= 0:
                self._fill(out[start:stop], int(rows[start]) * self.side**2)
        return out

    def _fill(self, pixels: np.ndarray, at: int) -> None:
        """Fill `pixels` from the byte offset `at`; one read may return less than requested."""
        view = memoryview(pixels.reshape(-1))
        while len(view):
            got = os.preadv(self._file, [view[:MAX_READ]], at)
            if got == 0:
                raise UserError(f"{self.rows_file}: shorter than its index; delete {self.folder} and run again")
            view, at = view[got:], at + got

    def _rows_on_disk(self) -> int:
        return self.rows_file.stat().st_size // self.side**2
