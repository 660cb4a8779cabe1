"""The folder of an ensemble's results."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from inference.ensemble import Ensemble


def _ensemble(runs: list[Path]) -> Ensemble:
    checkpoints = [SimpleNamespace(path=run / "best.pt", classes=["A", "B"]) for run in runs]
    return Ensemble(
        selections=[SimpleNamespace(run=run, checkpoint=c) for run, c in zip(runs, checkpoints, strict=True)]
    )


def test_a_folder_of_long_names_can_be_created(tmp_path: Path) -> None:
    """A name on a disk has at most 255 bytes; a Chinese character has three."""
    names = [character * 40 for character in "肺炎片"]
    ensembles = [_ensemble([tmp_path / name for name in [*names, last]]) for last in ("", "x", "y")]
    folders = {ensemble.folder_name() for ensemble in ensembles}
    assert len(folders) == 3
    for folder in folders:
        assert len(folder.encode()) <= 255
        (tmp_path / folder).mkdir()
