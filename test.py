"""Evaluate a trained classifier: predictions, metrics with 95 % intervals, figures, and report.html.

python test.py                                  # the newest finished run, its test split
python test.py --weights runs/NAME/best.pt      # one checkpoint; several are an ensemble
python test.py --external DIR --map flu="Viral Pneumonia"     # another hospital's folder
python test.py --weights FILE --data DIR        # a checkpoint away from its run, or images that were moved
python test.py --predictions FILE.csv           # predictions of another program: path, label, p_CLASS…
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from command_line import (
    Parser,
    add_checkpoint_flags,
    add_data_flags,
    add_output_flag,
    add_runs_flag,
    add_split_flag,
    run_verb,
)
from utils import UserError


def parser() -> Parser:
    parser = Parser(prog="test.py", description=__doc__)
    add_data_flags(parser)
    add_checkpoint_flags(parser, several="several are averaged as an ensemble")
    add_split_flag(parser, default=None)
    add_output_flag(parser, default="a folder in the run")
    add_runs_flag(parser)
    add = parser.add_argument
    add("--external", type=Path, metavar="DIR", help="evaluate all images of another folder instead of a split")
    add(
        "--map",
        action="append",
        default=[],
        metavar="THEIRS=OURS",
        help="rename a class of --external to one of the model's; or a YAML file of such pairs; may be repeated",
    )
    add("--predictions", type=Path, metavar="FILE", help="evaluate this table of predictions instead of a model")
    add("--validation", type=Path, metavar="FILE", help="with --predictions: the predictions for validation images")
    add("--tta", action="store_true", help="test-time augmentation: average each image with its mirror image")
    add("--calibrated", action="store_true", help="divide the logits by the temperature fitted on validation images")
    add("--allow-overlap", action="store_true", help="evaluate training images too; the report warns about them")
    add(
        "--sensitivity",
        type=float,
        nargs="+",
        metavar="S",
        help="target sensitivities of the operating points, in (0, 1] (default 0.9 0.95)",
    )
    add(
        "--prevalence",
        action="append",
        default=[],
        metavar="CLASS=P",
        help="prevalence for PPV and NPV, in (0, 1); default: the class's share of the images; may be repeated",
    )
    add("--quick", action="store_true", help="predictions, metrics and confusion matrix only: no validation, no report")
    add("--classes", type=int, metavar="N", help="check that the checkpoint has N classes")
    return parser


def main(argv: Sequence[str]) -> None:
    arguments, config, given = parser().read_command(argv)
    check_flags(arguments, given)
    from evaluation.results import log_results, table_evaluation, write_results
    from report.page import try_report

    shared = {name: getattr(arguments, name) for name in ("sensitivity", "prevalence", "output")}
    if arguments.predictions is not None:
        evaluation = table_evaluation(arguments.predictions, validation=arguments.validation, **shared)
    else:
        from inference.evaluate import Request, evaluate_model  # loads torch, which a table does not need

        names = ("external", "classes", "tta", "calibrated", "allow_overlap", "quick")
        request = Request(
            config=config,
            given=given,
            weights=arguments.weights or (),
            split=arguments.kind or "test",
            class_map=arguments.map,
            **{name: getattr(arguments, name) for name in names},
            **shared,
        )
        evaluation = evaluate_model(request)
    metrics = write_results(evaluation, arguments.quick)
    report = None if arguments.quick else try_report(evaluation.folder, evaluation.run)
    log_results(evaluation, metrics, report)


def check_flags(arguments: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Raise `UserError` for flags that contradict each other."""
    if arguments.external is not None:
        if arguments.kind is not None or "data.path" in given or "data.subset" in given:
            raise UserError(
                f"--external {arguments.external}: all its images are evaluated; drop --kind, --data and --subset"
            )
    elif arguments.map:
        raise UserError("--map: it renames classes of --external DIR; pass --external too")
    if arguments.predictions is not None:
        names = ("weights", "kind", "external", "tta", "calibrated", "allow_overlap", "classes")
        unfit = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name)]
        unfit += [key for key in given if key != "data.cache_dir"]  # this key does not matter here
        if unfit:
            raise UserError(f"--predictions {arguments.predictions}: a table has no model; drop {unfit[0]}")
    elif arguments.validation is not None:
        raise UserError("--validation: it is for --predictions only; a run has its own validation images")
    for value in arguments.sensitivity or ():
        if not 0 < value <= 1:
            raise UserError(f"--sensitivity {value:g}: it must be in (0, 1]")


if __name__ == "__main__":
    run_verb(main)
