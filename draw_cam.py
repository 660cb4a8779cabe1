"""Draw where a trained classifier looks, and measure it: maps over radiographs, scored against lung and lesion masks.

python draw_cam.py                                        # Grad-CAM of the newest run, 8 test images per class
python draw_cam.py --method all --score                   # every method that the architecture can have, with controls
python draw_cam.py --method gradcam,layercam --sanity     # may the maps be believed at all?
python draw_cam.py --image FILE_OR_FOLDER --label COVID   # these images, the evidence for COVID
python draw_cam.py --errors 12                            # and the most confident errors, for the report
python draw_cam.py --weights runs/A runs/B                # two models, and where they differ
python draw_cam.py --model all --save                     # every run; keep raw images and maps too
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line import Parser, add_data_flags, run_verb
from config import Config
from localization import METHODS
from localization.methods.table import method_name
from utils import UserError, log, make_folder, shortened_name, write_json

if TYPE_CHECKING:
    from experiment.selection import Selection
    from localization.drawing.maps import Drawn
    from localization.run import Wanted


def parser() -> Parser:
    parser = Parser(prog="draw_cam.py", description=__doc__)
    add_data_flags(parser)
    add = parser.add_argument
    add(
        "--weights",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="checkpoints, or run folders (their best.pt); of two the differences are drawn too; default: the newest "
        "finished run",
    )
    add(
        "--image",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="images or folders of images; default: images of the test split",
    )
    add("--label", metavar="CLASS", help="the class whose evidence is drawn (default: the predicted one)")
    add("--count", type=int, default=8, metavar="N", help="images per class without --image (default 8)")
    add(
        "--errors",
        type=int,
        default=0,
        metavar="N",
        help="besides, the N most confident errors among test.py's predictions for the test split (default 0)",
    )
    _add_map_flags(parser)
    _add_measure_flags(parser)
    add("--output", type=Path, metavar="DIR", help="where to write (default: the run's cams/)")
    add(
        "--save",
        nargs="?",
        type=Path,
        const=True,
        metavar="DIR",
        help="keep the raw images and the maps (.npy) too, in DIR (default: beside the overlays)",
    )
    parser.config_flag(
        "--model",
        "model",
        help="check that the checkpoint is of this model; without --weights, take its "
        "newest run; 'all': every finished run",
    )
    parser.config_flag("--lung-masks", "data.lung_masks")
    parser.config_flag("--lesion-masks", "data.lesion_masks")
    parser.config_flag("--boxes", "data.boxes", metavar="FILE")
    parser.config_flag("--batch", "train.eval_batch", type=int)
    parser.config_flag("--seed", "seed", type=int, help="of the choice of images, of noise and of random weights")
    parser.config_flag("--device", "device")
    parser.config_flag("--precision", "precision", help="auto: as trained", choices=("auto", "fp32", "bf16"))
    return parser


def _add_map_flags(parser: Parser) -> None:
    """Which maps, and how they are coloured."""
    add = parser.add_argument
    add(
        "--method",
        default="gradcam",
        metavar="A,B,C",
        help=f"{', '.join(METHODS)}; all: every method that is available for the architecture (default gradcam)",
    )
    add("--layer", metavar="NAME,NAME", help="the target layer, or several to be averaged (default: found by itself)")
    add(
        "--scale",
        choices=("image", "batch", "shared"),
        default="image",
        help="the top of the colours: each map's own peak (default), the highest of the batch, the highest of all",
    )
    add("--colormap", default="inferno", metavar="NAME", help="a colormap of matplotlib (default inferno)")
    add("--max-channels", type=int, default=64, metavar="N", help="of Score-CAM; Ablation-CAM: their work (default 64)")


def _add_measure_flags(parser: Parser) -> None:
    """What is measured of the maps."""
    add = parser.add_argument
    add("--score", action="store_true", help="beside controls, with faithfulness: scores.csv, scores.png, controls.csv")
    add(
        "--score-count",
        type=int,
        default=16,
        metavar="N",
        help="pictures on which deletion, insertion, drop, increase and ROAD are scored, and on which costly methods "
        "are tried with random weights (default 16)",
    )
    add(
        "--tolerance", type=float, default=0.03, metavar="SHARE", help="of the pointing game (default 0.03 of the side)"
    )
    add("--sanity", action="store_true", help="sanity checks of every method, with verdicts: sanity.csv, sanity.png")
    add("--sanity-count", type=int, default=4, metavar="N", help="pictures of the sanity checks (default 4)")
    add("--strict", action="store_true", help="with --sanity: exit code 1 where a method fails")


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what no model can do, before anything is loaded."""
    from localization.drawing.overlay import check_colormap

    for flag, least in (("count", 1), ("score_count", 0), ("sanity_count", 2), ("max_channels", 1)):
        if getattr(arguments, flag) < least:
            raise UserError(f"--{flag.replace('_', '-')} {getattr(arguments, flag)}: at least {least} is needed")
    if arguments.errors < 0 or (arguments.errors and arguments.image):
        raise UserError(f"--errors {arguments.errors}: a number of test images, without --image, is needed")
    if not 0 <= arguments.tolerance < 1:
        raise UserError(f"--tolerance {arguments.tolerance}: a share of the picture's side, from 0 to 1, is needed")
    if arguments.strict and not arguments.sanity:
        raise UserError("--strict: it belongs to --sanity")
    check_colormap(arguments.colormap)
    if arguments.method.strip().lower() != "all":
        for word in arguments.method.split(","):
            method_name(word)


def _weights(arguments: argparse.Namespace, config: Config) -> list[Path | None]:
    """The checkpoints to explain; None is the newest run."""
    from experiment.run_folder import finished_runs, runs_folder

    if config.model.lower() != "all":
        return arguments.weights or [None]
    if arguments.weights is not None:
        raise UserError("--model all: it takes every run's best.pt; leave --weights out")
    found = finished_runs(runs_folder(config))
    if not found:
        raise UserError(f"--model all: no finished run in {runs_folder(config)}: train one (python train.py)")
    return found


def _name(chosen: Selection) -> str:
    """What the checkpoint is called in tables: its run, and its file where that is not best.pt."""
    path = chosen.checkpoint.path
    if chosen.run is None:
        return path.stem
    return chosen.run.name if path.name == "best.pt" else f"{chosen.run.name}-{path.stem}"


def _names(config: Config, weights: Sequence[Path | None], given: dict[str, Any]) -> dict[str, Path | None]:
    """What each of several checkpoints is called; a single one is named when it is loaded.

    Raises: `UserError`, before anything is drawn, for one that cannot be used or is given twice.
    """
    from experiment.selection import select

    if len(weights) == 1:
        return {"": weights[0]}
    names: dict[str, Path | None] = {}
    for path in weights:
        name = _name(select(config, path, given))
        other = names.get(name)
        if other is not None and other.resolve() == path.resolve():
            raise UserError(f"--weights {path}: it is given twice")
        if other is not None:  # another of that name: its folder tells them apart
            name = f"{path.resolve().parent.name}-{name}"
        if name in names:
            raise UserError(f"--weights {path}: another one is called {name} too; rename its folder")
        names[name] = path
    return names


def _keep_images(images: Sequence[Path] | None, *folders: Path | None) -> None:
    """Refuse to write into a folder that given images lie in: what an earlier call drew there is taken away."""
    places = {folder.resolve() for folder in folders if folder is not None}
    for image in images or ():
        if image.resolve() in places or image.resolve().parent in places:
            raise UserError(f"--image {image}: it lies where the maps go; name another --output or --save folder")


def _wanted(arguments: argparse.Namespace, config: Config) -> Wanted:
    from localization.drawing.maps import Style
    from localization.run import Wanted

    return Wanted(
        arguments.method,
        [name.strip() for name in arguments.layer.split(",")] if arguments.layer else (),
        arguments.label,
        Style(arguments.scale, arguments.colormap, arguments.tolerance),
        arguments.score,
        arguments.score_count,
        arguments.sanity,
        arguments.sanity_count,
        arguments.max_channels,
        config.train.eval_batch,
        config.seed,
    )


def _renew_report(run: Path) -> None:
    """Write the report of the test split anew, if there is one: it shows the maps."""
    from report.page import write_report

    if (run / "test" / "report.html").is_file():
        try:
            log.info(f"the report has the maps now: {write_report(run / 'test', run)}")
        except (UserError, OSError) as error:
            log.warning(f"the report stays as it was: {error}")


def _record(chosen: Selection, folder: Path, arguments: argparse.Namespace, methods: Sequence[str]) -> None:
    """Say in `cams.json` which weights drew the maps of which split; the report of that split then shows them."""
    from localization.run import TITLES

    tested = arguments.image is None and chosen.data.path is None
    record = {"weights": chosen.checkpoint.fingerprint, "kind": "test" if tested else None}
    write_json(folder / "cams.json", record | {"methods": {method: TITLES[method] for method in methods}})
    if tested and chosen.run and folder == chosen.run / "cams":
        _renew_report(chosen.run)


def _together(folder: Path, drawn: list[Drawn], arguments: argparse.Namespace) -> None:
    """What is said of several models in one folder: their table, and of two that were named their differences."""
    from localization.drawing.maps import clear_folder
    from localization.drawing.pairs import draw_pairs
    from localization.run import TITLES
    from localization.scoring.summary import summarise, write_summary

    clear_folder(make_folder(folder, "--output"))
    if arguments.score:
        rows = [row for one in drawn for row in (*one.rows, *one.controls)]
        write_summary(folder, summarise(rows), TITLES)
    if _are_compared(arguments):
        draw_pairs(folder, (drawn[0], drawn[1]), arguments.colormap)
    log.info(f"the models beside each other: {folder}")


def _are_compared(arguments: argparse.Namespace) -> bool:
    return len(arguments.weights or ()) == 2


def main(argv: Sequence[str]) -> None:
    arguments, config, given = parser().read_command(argv)
    _check(arguments)
    from experiment.run_folder import runs_folder
    from experiment.selection import select
    from inference.images import images_from_paths, images_from_split
    from localization.run import inspect_model

    weights = _weights(arguments, config)
    every_run = config.model.lower() == "all"
    if every_run:
        given.pop("model")
    names = _names(config, weights, given)
    wanted, drawn, failed = _wanted(arguments, config), [], False
    for name, path in names.items():
        chosen = select(config, path, given)
        if arguments.image is None:
            part = images_from_split(chosen, arguments.count, config.seed, arguments.errors)
        else:
            part = images_from_paths(chosen, arguments.image)
        folder, save = arguments.output or chosen.output_folder("cams"), arguments.save
        name = name or _name(chosen)
        if len(weights) > 1 or every_run:  # one folder per run, wherever they go
            folder = folder / name if arguments.output else folder
            save = save / name if isinstance(save, Path) else save
        save = folder if save is True else save
        _keep_images(arguments.image, folder, save)
        found, findings = inspect_model(
            chosen.checkpoint,
            part,
            wanted,
            name,
            folder,
            save,
            chosen.device,
            chosen.precision,
            keep=_are_compared(arguments),
        )
        drawn.append(found)
        failed |= any(finding.verdict == "fail" for finding in findings)
        _record(chosen, folder, arguments, list(found.means))
    if len(drawn) > 1 and (arguments.score or _are_compared(arguments)):
        together = shortened_name("localization-" + "-vs-".join(one.name for one in drawn))
        _together(arguments.output or runs_folder(config) / together, drawn, arguments)
    if arguments.strict and failed:
        raise SystemExit(1)


if __name__ == "__main__":
    run_verb(main)
