"""Search for a better configuration: train many, stop the hopeless early, and keep the best as a preset.

python tune.py                                             # 20 trials on the phantom; again: continue
python tune.py preset=fast --data DIR --trials 50 --metric macro_auroc
python tune.py --space my.yaml                             # other keys: see configs/tune/
python tune.py --storage postgresql+psycopg://user@host/db # run on many machines: all work on one study

Trial 0 is the configuration itself. Validation images decide; test images are never used.
"""

from __future__ import annotations

from collections.abc import Sequence

from command_line import Parser, add_training_flags, check_at_least, run_verb


def parser() -> Parser:
    parser = Parser(prog="tune.py", description=__doc__)
    add_training_flags(parser)
    add = parser.add_argument
    add("--space", default="default", metavar="NAME", help="a file of configs/tune/, or any .yaml (default: default)")
    add("--trials", type=int, default=20, metavar="N", help="trials of the study, all workers together (default 20)")
    add("--timeout", type=float, metavar="SECONDS", help="begin no new trial after this long")
    metric_help = "a metric of metrics.json, on the validation images: macro_f1, log_loss, per_class.COVID.recall … "
    add("--metric", default="balanced_accuracy", help=metric_help + "(default balanced_accuracy)")
    add("--study", metavar="NAME", help="the study's name; its folder is runs/tune-NAME (default MODEL-SPACE)")
    add("--storage", metavar="URL", help="a database for many machines (default: study.db, SQLite, in that folder)")
    heartbeat_help = "time between signs of life; a worker that misses 3 counts as dead (default 20)"
    add("--heartbeat", type=int, default=20, metavar="SECONDS", help=heartbeat_help)
    return parser


def main(argv: Sequence[str]) -> None:
    command = parser().read_command(argv)
    check_at_least(command.arguments, trials=1, heartbeat=1, timeout=0)
    from search.request import read_search
    from search.run import run_search

    run_search(read_search(command))


if __name__ == "__main__":
    run_verb(main)
