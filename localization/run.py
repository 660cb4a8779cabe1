"""Maps of one or several checkpoints: their names, their folders, and the comparison of two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from config import Config
from experiment.run_folder import finished_runs, runs_folder
from experiment.selection import Selection, select
from inference.images import images_from_paths, images_from_split
from localization.drawing.maps import DrawnMaps, Output, clear_folder
from localization.drawing.pairs import draw_pairs
from localization.explain_model import ModelResult, explain_model, load_model, write_scores
from localization.methods.table import METHODS
from localization.request import Destination, ExplanationRequest
from localization.scoring.summary import summarise
from utils import UserError, log, make_folder, shortened_name, write_json

EVERY_RUN = "all"  # as --model


def explain_checkpoints(
    config: Config,
    given: dict[str, Any],
    weights: Sequence[Path],
    request: ExplanationRequest,
    destination: Destination,
) -> Iterator[tuple[ModelResult, Path | None]]:
    """Draw and measure the maps of each checkpoint, then of all together; of two given ones, their differences.

    Args:
        config: `model` chooses among the finished runs where no weights are given; `all` means all of them.
        given: the configuration keys that the command line set.
        weights: checkpoints or run folders; none: the newest finished run.

    Yields: for each checkpoint the result and the run whose report of the test split now has these maps, or None.
    Raises: `UserError`, before anything is drawn, for a checkpoint that cannot be used or is given twice.
    """
    every_run, compared = config.model.lower() == EVERY_RUN, len(weights) == 2
    given = {key: value for key, value in given.items() if key != "model" or not every_run}
    paths: Sequence[Path | None] = _every_run(config, weights) if every_run else weights or [None]
    names = name_checkpoints(config, paths, given) if len(paths) > 1 else {"": paths[0]}
    drawn = []
    for name, path in names.items():
        selection = select(config, path, given)
        name = name or selection.name
        images = (
            images_from_paths(selection, request.images)
            if request.images
            else images_from_split(selection, request.count, request.seed, request.errors)
        )
        output = destination.of(selection, name, several=every_run or len(paths) > 1, keep=compared)
        _protect(request.images, output)
        result = explain_model(load_model(selection, name, request), images, request, output)
        drawn.append(result.drawn)
        yield result, _record(selection, result.drawn, request, output.folder)
    if len(drawn) > 1 and (request.score or compared):
        folder = destination.output or runs_folder(config) / together_name([maps.name for maps in drawn])
        _draw_together(folder, drawn, request, compared)


def _every_run(config: Config, weights: Sequence[Path]) -> list[Path]:
    if weights:
        raise UserError("--model all: uses every run's best.pt; leave --weights out")
    runs = finished_runs(runs_folder(config))
    if not runs:
        raise UserError(f"--model all: no finished run in {runs_folder(config)}; train one (python train.py)")
    return runs


def name_checkpoints(config: Config, paths: Sequence[Path], given: dict[str, Any]) -> dict[str, Path]:
    """Return several checkpoints by name, which has the parent folder in front where two would have the same name.

    Raises: `UserError` for a checkpoint that cannot be used or is given twice.
    """
    names: dict[str, Path] = {}
    for path in paths:
        name = select(config, path, given).name
        other = names.get(name)
        if other is not None and other.resolve() == path.resolve():
            raise UserError(f"--weights {path}: given twice; leave one out")
        if other is not None:
            name = f"{path.resolve().parent.name}-{name}"
        if name in names:
            raise UserError(f"--weights {path}: another checkpoint is named {name} too; rename its folder")
        names[name] = path
    return names


def together_name(names: Sequence[str]) -> str:
    """Return the name of the folder that compares the models `names`, unique to them and short enough for a disk."""
    return shortened_name("localization-" + "-vs-".join(names))


def _protect(images: Sequence[Path], output: Output) -> None:
    """Refuse to write into a folder with given images, since files of an earlier call are deleted there."""
    folders = {folder.resolve() for folder in (output.folder, output.save) if folder is not None}
    for image in images:
        if {image.resolve(), image.resolve().parent} & folders:
            raise UserError(f"--image {image}: it is where the maps go; choose another folder for --output or --save")


def _record(selection: Selection, drawn: DrawnMaps, request: ExplanationRequest, folder: Path) -> Path | None:
    """Write `cams.json`: which weights drew maps of which split. Return the run whose test report shows them, or None.

    The report shows maps of the weights and the split that it is about.
    """
    tested = not request.images and selection.data.path is None
    record = {"weights": selection.checkpoint.fingerprint, "kind": "test" if tested else None}
    write_json(folder / "cams.json", record | {"methods": {method: METHODS[method].title for method in drawn.means}})
    return selection.run if tested and selection.run and folder == selection.run / "cams" else None


def _draw_together(folder: Path, drawn: Sequence[DrawnMaps], request: ExplanationRequest, compared: bool) -> None:
    """Write the scores of several models in one table, and draw the differences of two."""
    clear_folder(make_folder(folder, "--output"))
    if request.score:
        write_scores(folder, summarise([row for maps in drawn for row in (*maps.rows, *maps.controls)]))
    if compared:
        draw_pairs(folder, (drawn[0], drawn[1]), request.style.colormap)
    log.info(f"models compared in {folder}")
