"""The pixel cache: keyed by content, safe against a second process and against an interrupted build."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset import cache
from dataset.cache import PixelStore, hash_files
from tests.helpers.verbs import ROOT
from utils import UserError


def _images(folder: Path, count: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:03d}.png"), np.full((40, 40), i, np.uint8))
    return [str(folder / f"{i:03d}.png") for i in range(count)]


def _values(store: PixelStore, hashes: list[str]) -> list[int]:
    return [int(p.mean()) for p in store.read(store.rows(hashes))]


def test_rows_hold_the_images_in_any_order(tmp_path: Path) -> None:
    paths = _images(tmp_path / "p", 20)
    hashes = hash_files(paths, tmp_path)
    store = PixelStore(tmp_path, 32, "squash")
    assert store.build(paths, hashes, workers=3) == {}
    assert _values(store, hashes[::-1]) == list(range(20))[::-1]


def test_a_changed_file_rebuilds_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = _images(tmp_path / "p", 10)
    store = PixelStore(tmp_path, 32, "squash")
    store.build(paths, hash_files(paths, tmp_path))
    decoded = []
    original = cache.square_image
    monkeypatch.setattr(cache, "square_image", lambda path, *rest: decoded.append(path) or original(path, *rest))
    cv2.imwrite(paths[4], np.full((40, 40), 200, np.uint8))
    hashes = hash_files(paths, tmp_path)
    store.build(paths, hashes)
    assert decoded == [paths[4]]
    assert _values(store, hashes) == [0, 1, 2, 3, 200, 5, 6, 7, 8, 9]
    Path(paths[7]).rename(tmp_path / "elsewhere.png")  # the same content under another name needs no new row
    store.build([str(tmp_path / "elsewhere.png")], hash_files([str(tmp_path / "elsewhere.png")], tmp_path))
    assert decoded == [paths[4]]


def test_hashes_are_remembered_by_path_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = _images(tmp_path / "p", 5)
    first = hash_files(paths, tmp_path)
    assert first == [hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in paths]
    read = []
    original = cache.file_sha256
    monkeypatch.setattr(cache, "file_sha256", lambda path: read.append(path) or original(path))
    assert hash_files(paths, tmp_path) == first
    assert read == []
    cv2.imwrite(paths[2], np.full((40, 40), 99, np.uint8))
    Path(paths[3]).unlink()
    second = hash_files(paths, tmp_path)
    assert read == [paths[2]]
    assert second[2] != first[2]
    assert second[3] is None


def test_unreadable_files_are_reported_and_the_others_kept(tmp_path: Path) -> None:
    paths = _images(tmp_path / "p", 6)
    Path(paths[1]).write_text("text")
    hashes = hash_files(paths, tmp_path)
    store = PixelStore(tmp_path, 32, "squash")
    assert list(store.build(paths, hashes)) == [paths[1]]
    assert store.rows(hashes).tolist() == [0, -1, 1, 2, 3, 4]


def test_an_interrupted_build_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = _images(tmp_path / "p", 30)
    hashes = hash_files(paths, tmp_path)
    store = PixelStore(tmp_path, 32, "squash")
    monkeypatch.setattr(cache, "COMMIT_ROWS", 4)
    original = cache.square_image

    def stop(path: str, *rest: object) -> np.ndarray:
        if path == paths[17]:
            raise KeyboardInterrupt
        return original(path, *rest)

    monkeypatch.setattr(cache, "square_image", stop)
    with pytest.raises(KeyboardInterrupt):
        store.build(paths, hashes, workers=1)
    kept = store.rows(hashes)
    assert 0 < (kept >= 0).sum() < 30
    with open(store.rows_file, "ab") as file:  # and part of a row after the last one in the index
        file.write(b"torn")
    monkeypatch.setattr(cache, "square_image", original)
    store.build(paths, hashes)
    assert _values(store, hashes) == list(range(30))


def test_missing_rows_are_built_again(tmp_path: Path) -> None:
    paths = _images(tmp_path / "p", 8)
    hashes = hash_files(paths, tmp_path)
    store = PixelStore(tmp_path, 32, "squash")
    store.build(paths, hashes)
    with open(store.rows_file, "r+b") as file:
        file.truncate(3 * 32 * 32 + 5)
    assert (store.rows(hashes) >= 0).sum() == 3
    store.build(paths, hashes)
    assert _values(store, hashes) == list(range(8))


@pytest.mark.slow
def test_two_processes_build_one_store(tmp_path: Path) -> None:
    paths = _images(tmp_path / "p", 200)
    hashes = hash_files(paths, tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
        "from dataset.cache import PixelStore, hash_files\n"
        "root = Path(sys.argv[2]); paths = sorted(map(str, (root / 'p').glob('*.png')))\n"
        "store = PixelStore(root, 32, 'squash'); hashes = hash_files(paths, root); store.build(paths, hashes)\n"
        "print([int(p.mean()) for p in store.read(store.rows(hashes))] == list(range(200)))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [p.communicate(timeout=60)[0].strip().splitlines()[-1] for p in running] == ["True"] * 3
    store = PixelStore(tmp_path, 32, "squash")
    assert sorted(store.rows(hashes)) == list(range(200))
    assert store.rows_file.stat().st_size == 200 * 32 * 32


def test_sides_fits_and_kinds_do_not_mix(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "m.png"), np.tile(np.array([0, 255], np.uint8), (30, 10)))
    path, sha = str(tmp_path / "m.png"), hash_files([str(tmp_path / "m.png")], tmp_path)
    pixels = {}
    for key in ((20, "squash", "image"), (24, "squash", "image"), (20, "letterbox", "image"), (20, "squash", "mask")):
        store = PixelStore(tmp_path, *key)
        store.build([path], sha)
        pixels[key] = store.read(store.rows(sha))[0]
    assert pixels[20, "squash", "mask"].max() == 1
    assert pixels[20, "squash", "image"].max() == 255
    assert not np.array_equal(pixels[20, "squash", "image"], pixels[20, "letterbox", "image"])
    assert pixels[24, "squash", "image"].shape == (24, 24)


def test_consecutive_rows_absent_rows_and_a_truncated_file(tmp_path: Path) -> None:
    paths = _images(tmp_path / "p", 30)
    store = PixelStore(tmp_path, 16, "squash")
    store.build(paths, hash_files(paths, tmp_path), workers=1)
    rows = [-1, 0, 1, 2, 7, 6, -1, -1, 29, 5, 5]
    pixels = store.read(np.array(rows))
    assert [int(p.min()) for p in pixels] == [int(p.max()) for p in pixels] == [max(row, 0) for row in rows]
    assert store.read(np.array([], np.int64)).shape == (0, 16, 16)
    with open(store.rows_file, "r+b") as file:
        file.truncate(16 * 16 * 10)
    with pytest.raises(UserError, match=r"rows\.u8"):
        store.read(np.array([3, 12]))


def test_many_files_are_decoded_by_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = _images(tmp_path / "p", 40)
    Path(paths[7]).write_bytes(b"not an image")
    monkeypatch.setattr(cache, "MANY", 40)
    started = []
    original = cache.ProcessPoolExecutor
    spy = lambda workers, *rest: started.append(workers) or original(workers, *rest)  # noqa: E731
    monkeypatch.setattr(cache, "ProcessPoolExecutor", spy)
    hashes = hash_files(paths, tmp_path)
    store = PixelStore(tmp_path, 32, "squash")
    assert list(store.build(paths, hashes, workers=2)) == [paths[7]]
    assert started == [2]
    assert _values(store, hashes) == [0 if i == 7 else i for i in range(40)]
