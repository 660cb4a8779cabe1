"""Evaluate a trained classifier: predictions, metrics and the confusion matrix.

python test.py                                  # the newest finished run, its test split
python test.py --weights runs/NAME/best.pt      # one checkpoint
python test.py --weights FILE --data DIR        # a checkpoint away from its run, or other images
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config import Parser, compose_config
from dataset.data import add_data_flags
from utils import UserError, log, run_verb

KINDS = ("train", "val", "test")


def parser() -> Parser:
    parser = Parser(prog="test.py", description=__doc__)
    add_data_flags(parser)
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a checkpoint, or a run folder (its best.pt); default: the newest finished run",
    )
    parser.add_argument("--kind", choices=KINDS, default="test", help="which split (default test)")
    parser.add_argument("--classes", type=int, metavar="N", help="check that the checkpoint has N classes")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: a folder in the run)")
    parser.config_flag(
        "--model", "model", help="check that the checkpoint is of this model; without --weights, take its newest run"
    )
    parser.config_flag("--batch", "train.eval_batch", type=int)
    parser.config_flag("--device", "device")
    parser.config_flag("--precision", "precision", help="auto: as trained", choices=("auto", "fp32", "bf16"))
    parser.config_flag("--save", "save", metavar="DIR", help="the folder that run folders are in (default runs)")
    return parser


def main(argv: Sequence[str]) -> None:
    arguments, words, flags = parser().parse_command(argv)
    config = compose_config(words, flags, arguments.config)
    from evaluation.metrics import compute_metrics, format_metrics, write_metrics
    from evaluation.plots import plot_confusion
    from evaluation.predictions import predict_logits, prediction_table, read_predictions, write_predictions
    from training.selection import select
    from utils import make_folder

    chosen = select(config, arguments.weights, {**dict(w.split("=", 1) for w in words), **flags})
    checkpoint = chosen.checkpoint
    if arguments.classes not in (None, len(checkpoint.classes)):
        raise UserError(
            f"--classes {arguments.classes}: the checkpoint has {len(checkpoint.classes)} "
            f"({', '.join(checkpoint.classes)})"
        )
    dataset = chosen.dataset()
    part = dataset.part(arguments.kind)
    if not len(part):
        raise UserError(f"--kind {arguments.kind}: this split has no images")
    chosen.warn_of_overlap(part, arguments.kind)
    folder = make_folder(arguments.output or chosen.output_folder(arguments.kind), "--output")
    if (folder / "metrics.json").exists():
        log.info(f"replacing the earlier results in {folder}")
    logits = predict_logits(
        checkpoint.model().to(chosen.device),
        part,
        chosen.device,
        precision=chosen.precision,
        batch=config.train.eval_batch,
        mean=checkpoint.architecture.mean,
        std=checkpoint.architecture.std,
        title=arguments.kind,
    )
    write_predictions(prediction_table(part.records, logits, checkpoint.classes), folder / "predictions.csv")
    metrics = compute_metrics(read_predictions(folder / "predictions.csv"), checkpoint.classes)
    write_metrics(metrics, folder)
    plot_confusion(metrics, folder / "confusion_matrix.png", f"{checkpoint.architecture.name}, {arguments.kind} split")
    log.info(
        f"{checkpoint.architecture.name}, {arguments.kind} split, {len(part)} images, {chosen.precision}\n\n"
        + format_metrics(metrics)
        + f"\n\nwritten: {folder}"
    )


if __name__ == "__main__":
    run_verb(main)
