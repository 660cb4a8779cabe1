"""Checkpoints: a file with everything needed to use a model, in tensors and plain Python types."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pretrained_models import Architecture, build_model
from utils import UserError, atomic_write, read_tensors

FORMAT = 1
STORED = ("size", "fit", "precision", "epoch", "train_hashes", "config", "resume")  # under their own names


@dataclass(kw_only=True)
class Checkpoint:
    """A trained model and its file.

    Attributes:
        architecture: name, head and normalisation.
        classes: class names in the order of the outputs.
        size, fit: how images become squares.
        precision: `fp32` or `bf16`, as trained.
        epoch: the epoch (from 1) after which it was saved.
        train_hashes: (n, 32) uint8, the SHA-256 of every training image.
        config: the run's configuration, as nested dictionaries.
        state: the model's state dict.
        resume: optimiser state and history in `last.pt`; empty in `best.pt`.
        path: the file.
    """

    architecture: Architecture
    classes: list[str]
    size: int
    fit: str
    precision: str
    epoch: int
    train_hashes: torch.Tensor
    config: dict[str, Any]
    state: dict[str, torch.Tensor]
    resume: dict[str, Any]
    path: Path

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the weights, from all tensors below a megabyte, the head included."""
        digest = hashlib.sha256()
        for name, tensor in self.state.items():
            if tensor.nbytes < 2**20:
                digest.update(name.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def model(self, flag: str = "--weights") -> nn.Module:
        """Return the model in evaluation mode, float32, channels last. Raises: `UserError` if the state misfits."""
        model, _, _ = build_model(self.architecture.name, len(self.classes))
        try:
            model.load_state_dict(self.state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{flag} {self.path}: does not fit {self.architecture.name}: {reason}") from None
        return model.to(memory_format=torch.channels_last).eval()


def hashes_to_tensor(hashes: list[str]) -> torch.Tensor:
    """Return hexadecimal SHA-256 digests as (n, 32) uint8."""
    joined = bytearray.fromhex("".join(hashes))
    return torch.from_numpy(np.frombuffer(joined, np.uint8).copy()).view(-1, 32)


def save_checkpoint(checkpoint: Checkpoint) -> None:
    """Write `checkpoint.path`, atomically. Raises: `OSError` if there is no space left."""
    architecture = checkpoint.architecture
    content = {
        "format": FORMAT,
        "architecture": asdict(architecture) | {"mean": list(architecture.mean), "std": list(architecture.std)},
        "classes": list(checkpoint.classes),
        **{name: getattr(checkpoint, name) for name in STORED},
        "model": checkpoint.state,
    }
    with atomic_write(checkpoint.path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch hides the cause of an incomplete file: a full disk, Ctrl-C
            cause = error.__context__
            if isinstance(cause, OSError) or (cause is not None and not isinstance(cause, Exception)):
                raise cause from None
            raise


def load_checkpoint(path: Path, flag: str = "--weights") -> Checkpoint:
    """Read a checkpoint written by train.py. Raises: `UserError` that names `flag` and the file for anything else."""
    content = read_tensors(path, flag)
    if not isinstance(content, dict) or "architecture" not in content or "model" not in content:
        raise UserError(f"{flag} {path}: not a checkpoint written by train.py (train from a state dict with --init)")
    if content.get("format") != FORMAT:
        raise UserError(f"{flag} {path}: written in format {content.get('format')}; this version reads format {FORMAT}")
    try:
        described = content["architecture"]
        channels = {name: tuple(described[name]) for name in ("mean", "std")}
        architecture = Architecture(**{name: described[name] for name in ("name", "head", "size")}, **channels)
        return Checkpoint(
            architecture=architecture,
            classes=list(content["classes"]),
            state=content["model"],
            path=Path(path),
            **{name: content[name] for name in STORED},
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{flag} {path}: the checkpoint is incomplete (no {error})") from None
