"""Draw where a trained classifier looks, and measure it: maps over images, scored against lung and lesion masks.

python draw_cam.py                                        # Grad-CAM of the newest run, 8 test images per class
python draw_cam.py --method all --score                   # every method that the architecture supports, with controls
python draw_cam.py --method gradcam,layercam --sanity     # sanity checks: can the maps be trusted?
python draw_cam.py --image FILE_OR_FOLDER --label COVID   # your own images, the evidence for COVID
python draw_cam.py --errors 12                            # add the most confident errors, for the report
python draw_cam.py --weights runs/A runs/B                # two models, and their differences
python draw_cam.py --model all --save                     # every run; keep the raw images and maps
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from command_line import Parser, add_checkpoint_flags, add_data_flags, add_output_flag, check_at_least, run_verb
from localization.methods.table import METHODS
from utils import UserError

NUMBERS = {  # flag → default, help
    "--count": (8, "images per class without --image"),
    "--errors": (0, "add the N most confident errors in test.py's predictions for the test split"),
    "--max-channels": (64, "channels used by Score-CAM and Ablation-CAM; limits run time"),
    "--score-count": (16, "images for faithfulness scores, and for costly methods with random weights"),
    "--sanity-count": (4, "images for the sanity checks"),
}
SWITCHES = {
    "--score": "controls and faithfulness too: scores.csv, scores.png, controls.csv",
    "--sanity": "sanity checks of every method, with verdicts: sanity.csv, sanity.png",
    "--strict": "with --sanity: exit code 1 if a method fails",
}
SAME = ("count", "errors", "label", "scale", "colormap", "tolerance", "score", "score_count", "sanity", "sanity_count")


def parser() -> Parser:
    parser = Parser(prog="draw_cam.py", description=__doc__)
    add = parser.add_argument
    add_data_flags(parser)
    add_checkpoint_flags(parser, "of two, the differences are drawn too", all_runs="; 'all': every finished run")
    fallback = "images of the test split"
    add("--image", type=Path, nargs="+", metavar="PATH", help=f"images or folders of images; default: {fallback}")
    methods = f"{', '.join(METHODS)} (default gradcam); all: every one that the architecture supports"
    add("--method", default="gradcam", metavar="A,B,C", help=methods)
    add("--label", metavar="CLASS", help="the class whose evidence is drawn (default: the predicted one)")
    add("--layer", metavar="NAME,NAME", help="the target layer; several are averaged (default: the architecture's own)")
    tops = "the value with the brightest colour: each map's own peak (default), the batch's, or that of all maps"
    add("--scale", choices=("image", "batch", "shared"), default="image", help=tops)
    add("--colormap", default="inferno", metavar="NAME", help="a matplotlib colormap (default inferno)")
    reach = "distance from the lesion that counts as a hit, as a share of the image's side (default 0.03)"
    add("--tolerance", type=float, default=0.03, metavar="SHARE", help=reach)
    for flag, (default, text) in NUMBERS.items():
        add(flag, type=int, default=default, metavar="N", help=f"{text} (default {default})")
    for flag, text in SWITCHES.items():
        add(flag, action="store_true", help=text)
    add_output_flag(parser, "the run's cams/")
    kept = "keep the raw images and the maps (.npy) too, in DIR (default: beside the overlays)"
    add("--save", nargs="?", type=Path, const=True, metavar="DIR", help=kept)
    for flag in ("--lung-masks", "--lesion-masks"):
        parser.config_flag(flag, f"data.{flag[2:].replace('-', '_')}")
    parser.config_flag("--boxes", "data.boxes", metavar="FILE")
    parser.config_flag("--seed", "seed", help="for the choice of images, noise and random weights")
    return parser


def main(argv: Sequence[str]) -> None:
    arguments, config, given = parser().read_command(argv)
    check_at_least(arguments, count=1, errors=0, score_count=0, sanity_count=2, max_channels=1)
    if arguments.strict and not arguments.sanity:
        raise UserError("--strict: depends on the sanity checks; add --sanity")
    from localization.methods.explanation import Settings
    from localization.request import ExplanationRequest
    from localization.run import explain_checkpoints
    from report.page import renew_report

    save, layers = arguments.save, arguments.layer
    request = ExplanationRequest(
        images=arguments.image or (),
        methods=arguments.method.split(","),
        every_method=arguments.method.strip().lower() == "all",
        layers=[name.strip() for name in layers.split(",")] if layers else (),
        settings=Settings(batch=config.train.eval_batch, seed=config.seed, max_channels=arguments.max_channels),
        folder=arguments.output,
        save=save is not None,
        save_folder=None if save is True else save,
        **{name: getattr(arguments, name) for name in SAME},
    )
    failed = False
    for maps, run in explain_checkpoints(config, given, arguments.weights or (), request):
        failed |= maps.failed
        if run is not None:
            renew_report(run)
    if arguments.strict and failed:
        raise SystemExit(1)


if __name__ == "__main__":
    run_verb(main)
