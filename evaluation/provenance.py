"""The origin of the predictions of an evaluation, as metrics.json records it under `evaluation`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from utils import file_sha256, log


@dataclass(frozen=True)
class Overlap:
    """The number of evaluated images that the model was trained on, and that selected its epoch; None if unknown."""

    trained_on: int | None = None
    allowed: bool = False
    validated_on: int | None = None


@dataclass(frozen=True)
class FileNote:
    """A file as seen from the evaluation folder, and the SHA-256 of its content."""

    path: str
    sha256: str

    @classmethod
    def of(cls, file: Path, folder: Path) -> FileNote:
        """Describe `file`, relative to `folder`."""
        return cls(os.path.relpath(file, folder), file_sha256(file))

    def find(self, folder: Path) -> Path | None:
        """Return the file; None, with a warning, if it is gone or has changed."""
        file = folder / self.path
        if file.is_file() and file_sha256(file) == self.sha256:
            return file
        log.warning(f"{file} is missing or has changed: no operating points")
        return None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The model, the images and the command behind a set of predictions.

    A field that is None is unknown, unless it is `recorded`: then None is what metrics.json says (of an ensemble, that
    its members differ).

    Attributes:
        kind: `train`, `val`, `test` or `external`; None for the table of another program.
        weights, fingerprints, models: the checkpoint files, the marks of their weights, and their architectures.
        epoch, size, fit, mean, std: of the checkpoints.
        parameters: learnable ones, summed over the checkpoints.
        synthetic: whether a checkpoint was trained on the phantom.
        tta: whether mirror images were averaged in.
        sensitivity: sensitivities of the operating points; None: the default.
        prevalence: `CLASS=P` words.
        data, data_path: the images as the user named them, and their absolute path.
        unknown_classes: images of external classes that the model does not have.
        class_map: external class → the model's class.
        unreadable: images that were left out.
        validation: the validation predictions that chose the thresholds.
        recorded: the keys that metrics.json has, in its order.
        other: keys of another version, kept as they are.
    """

    kind: str | None = None
    weights: Sequence[str] = ()
    fingerprints: Sequence[str] = ()
    models: Sequence[str] = ()
    epoch: int | None = None
    size: int | None = None
    fit: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    parameters: int | None = None
    precision: str | None = None
    synthetic: bool = False
    tta: bool | None = None
    device: str | None = None
    command: str | None = None
    commit: str | None = None
    versions: Mapping[str, str] | None = None
    finished: str | None = None
    sensitivity: Sequence[float] | None = None
    prevalence: Sequence[str] = ()
    data: str | None = None
    data_path: str | None = None
    unknown_classes: Mapping[str, int] = field(default_factory=dict)
    class_map: Mapping[str, str] = field(default_factory=dict)
    unreadable: int | None = None
    title: str = ""
    overlap: Overlap | None = None
    validation: FileNote | None = None
    recorded: tuple[str, ...] = ()
    other: Mapping[str, Any] = field(default_factory=dict)

    def record(self, **values: Any) -> Provenance:
        """Return a copy with these fields, which are recorded after those that it has."""
        return replace(self, **values, recorded=tuple(dict.fromkeys((*self.recorded, *values))))

    def to_json(self) -> dict[str, Any]:
        """Return what metrics.json holds under `evaluation`."""
        values = {name: self.other[name] if name in self.other else getattr(self, name) for name in self.recorded}
        return {name: asdict(value) if is_dataclass(value) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any] | None) -> Provenance:
        """Read what `to_json` returned, of this version or an older one; None, of another program, has no field."""
        entry = entry or {}
        names = {f.name for f in fields(cls)} - {"recorded", "other"}
        values = {name: value for name, value in entry.items() if name in names and value is not None}
        for name, kind in (("overlap", Overlap), ("validation", FileNote)):
            if name in values:
                values[name] = kind(**values[name])
        other = {name: value for name, value in entry.items() if name not in names}
        return cls(**values, recorded=tuple(entry), other=other)
