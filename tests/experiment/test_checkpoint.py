"""Checkpoints: a file with everything a model needs, complete or not written at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiment import checkpoint as checkpoints
from experiment.checkpoint import hashes_to_tensor, load_checkpoint, save_checkpoint
from utils import UserError


def test_a_checkpoint_has_everything_that_is_needed(tiny_run: Path) -> None:
    raw = torch.load(tiny_run / "best.pt", weights_only=True)
    checkpoint = load_checkpoint(tiny_run / "best.pt")
    split = pd.read_csv(tiny_run / "split.csv")
    trained = split[split["split"] == "train"]["sha256"]
    assert checkpoint.train_hashes.shape == (len(trained), 32)
    assert {bytes(row).hex() for row in checkpoint.train_hashes.numpy()} == set(trained)
    assert checkpoint.classes == ["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"]
    assert (checkpoint.size, checkpoint.fit, checkpoint.architecture.name) == (64, "squash", "resnet18")
    assert raw["config"]["train"]["batch"] == 16
    history = pd.read_csv(tiny_run / "history.csv")
    assert checkpoint.epoch == history["epoch"][history["valid_loss"].idxmin()]
    assert checkpoint.model()(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


@pytest.mark.parametrize("cut", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("written", [0, 100_000])
def test_the_cause_of_an_incomplete_checkpoint_is_raised(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: BaseException, written: int
) -> None:
    """Although torch raises an error of its own; the earlier file stays."""
    checkpoint = load_checkpoint(tiny_run / "best.pt")
    checkpoint.path = tmp_path / "best.pt"
    checkpoint.path.write_bytes(b"before")

    class Disk(io.BytesIO):
        def write(self, data: bytes) -> int:
            if self.tell() + len(data) > written:
                raise cut
            return super().write(data)

    whole = checkpoints.atomic_write

    @contextlib.contextmanager
    def atomic_write(path: Path, mode: str) -> Iterator[Disk]:
        with whole(path, mode):
            yield Disk()

    monkeypatch.setattr(checkpoints, "atomic_write", atomic_write)
    with pytest.raises(type(cut)) as error:
        save_checkpoint(checkpoint)
    assert error.value is cut
    assert checkpoint.path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_hashes_round_trip() -> None:
    digests = [hashlib.sha256(bytes([i])).hexdigest() for i in range(3)]
    assert [bytes(row).hex() for row in hashes_to_tensor(digests).numpy()] == digests


def test_a_checkpoint_is_read_back_as_it_was_written(tiny_run: Path, tmp_path: Path) -> None:
    before = load_checkpoint(tiny_run / "last.pt")
    before.path = tmp_path / "copy.pt"
    save_checkpoint(before)
    after = load_checkpoint(tmp_path / "copy.pt")
    assert after.architecture == before.architecture and after.fingerprint == before.fingerprint
    assert after.resume["history"] == before.resume["history"] and after.config == before.config
    assert torch.equal(after.train_hashes, before.train_hashes)
    content = torch.load(tmp_path / "copy.pt", weights_only=True)
    assert list(content) == list(torch.load(tiny_run / "last.pt", weights_only=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: {"fc.weight": torch.zeros(2)}, "not a checkpoint written by train.py"),
        (lambda content: content | {"format": 99}, "format 99"),
        (lambda content: {k: v for k, v in content.items() if k != "epoch"}, "incomplete .*epoch"),
        (lambda content: content | {"classes": ["a", "b"]}, "does not fit resnet18"),
    ],
)
def test_files_that_are_not_complete_checkpoints_are_named(tiny_run: Path, tmp_path: Path, change, words: str) -> None:
    torch.save(change(torch.load(tiny_run / "best.pt", weights_only=True)), tmp_path / "x.pt")
    with pytest.raises(UserError, match=rf"^--weights .*x\.pt: .*{words}"):
        load_checkpoint(tmp_path / "x.pt").model()
