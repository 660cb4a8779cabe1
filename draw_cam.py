"""Draw where a trained classifier looks: Grad-CAM over radiographs, scored against lung and lesion masks.

python draw_cam.py                                        # the newest run, 8 test images per class
python draw_cam.py --image FILE_OR_FOLDER --label COVID   # these images, the evidence for COVID
python draw_cam.py --errors 12                            # and the most confident errors, for the report
python draw_cam.py --model all --save                     # every run; keep raw images and maps too
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config import Parser, compose_config
from dataset.data import add_data_flags
from utils import UserError, log, run_verb, write_json


def parser() -> Parser:
    parser = Parser(prog="draw_cam.py", description=__doc__)
    add_data_flags(parser)
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a checkpoint, or a run folder (its best.pt); default: the newest finished run",
    )
    parser.add_argument(
        "--image",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="images or folders of images; default: images of the test split",
    )
    parser.add_argument(
        "--label", metavar="CLASS", help="the class whose evidence is drawn (default: the predicted one)"
    )
    parser.add_argument(
        "--count", type=int, default=8, metavar="N", help="images per class without --image (default 8)"
    )
    parser.add_argument(
        "--errors",
        type=int,
        default=0,
        metavar="N",
        help="besides, the N most confident errors among test.py's predictions for the test split (default 0)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: the run's cams/)")
    parser.add_argument(
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
    parser.config_flag("--batch", "train.eval_batch", type=int)
    parser.config_flag("--seed", "seed", type=int, help="of the choice of images")
    parser.config_flag("--device", "device")
    parser.config_flag("--precision", "precision", help="auto: as trained", choices=("auto", "fp32", "bf16"))
    return parser


def _renew_report(run: Path) -> None:
    """Write the report of the test split anew, if there is one: it shows the maps."""
    from evaluation.report import write_report

    if (run / "test" / "report.html").is_file():
        try:
            log.info(f"the report has the maps now: {write_report(run / 'test', run)}")
        except (UserError, OSError) as error:
            log.warning(f"WARNING: the report stays as it was: {error}")


def main(argv: Sequence[str]) -> None:
    arguments, words, flags = parser().parse_command(argv)
    config = compose_config(words, flags, arguments.config)
    if arguments.count < 1:
        raise UserError(f"--count {arguments.count}: at least 1 is needed")
    if arguments.errors < 0 or (arguments.errors and arguments.image):
        raise UserError(f"--errors {arguments.errors}: a number of test images, without --image, is needed")
    from localization.drawing import draw_maps
    from localization.scoring import format_summary, summarise
    from training.run_folder import finished_runs, runs_folder
    from training.selection import chosen_images, select

    given = {**dict(word.split("=", 1) for word in words), **flags}
    weights = [arguments.weights]
    every_run = config.model.lower() == "all"
    if every_run:
        if arguments.weights is not None:
            raise UserError("--model all: it takes every run's best.pt; leave --weights out")
        weights = finished_runs(runs_folder(config))
        given.pop("model")
        if not weights:
            raise UserError(f"--model all: no finished run in {runs_folder(config)}: train one (python train.py)")
    for path in weights:
        chosen = select(config, path, given)
        classes = chosen.checkpoint.classes
        if arguments.label not in (None, *classes):
            raise UserError(f"--label {arguments.label}: no class of the checkpoint (it has {', '.join(classes)})")
        part = chosen_images(chosen, arguments.image, arguments.count, config.seed, arguments.errors)
        name = chosen.run.name if chosen.run else chosen.checkpoint.path.stem
        folder = arguments.output or chosen.output_folder("cams")
        save = arguments.save
        if every_run:  # one folder per run, wherever they go
            folder = folder / name if arguments.output else folder
            save = save / name if isinstance(save, Path) else save
        rows = draw_maps(
            chosen.checkpoint,
            part,
            folder,
            folder if save is True else save,
            label=arguments.label,
            device=chosen.device,
            precision=chosen.precision,
            batch=config.train.eval_batch,
        )
        empty = sum(row["status"] == "empty" for row in rows)
        log.info(
            f"{name}: {len(rows)} maps" + (f", {empty} without positive evidence" if empty else "") + f" in {folder}"
        )
        tested = arguments.image is None and chosen.data.path is None
        record = {"weights": chosen.checkpoint.fingerprint, "kind": "test" if tested else None}
        write_json(folder / "cams.json", record)
        if tested and chosen.run and folder == chosen.run / "cams":
            _renew_report(chosen.run)
        summary = format_summary(summarise(rows))
        if summary:
            log.info(
                "Grad-CAM of correctly classified images, or of unlabelled ones (lift: 1 is chance; 95 % intervals):\n"
                + summary
            )


if __name__ == "__main__":
    run_verb(main)
