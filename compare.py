"""Compare runs on the same images: paired tests, intervals of the differences, and a forest plot.

python compare.py runs/A runs/B                             # their test splits; with more runs, every pair
python compare.py runs/A runs/B runs/C --baseline runs/A    # each with A alone
python compare.py runs/A/external-X other/predictions.csv   # any evaluation folder or table, another program's too
python compare.py --list                                    # the leaderboard of runs/; nothing is tested

A table of another program needs the columns path, label, and p_CLASS for every class; sha256 and group help.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from command_line import Parser, add_output_flag, add_split_flag, run_verb
from config import Config
from utils import UserError, log, make_folder, shown, write_csv

KEYS = ("save", "seed", "data.cache_dir")  # the last has no effect here, but every command may set it


def parser() -> Parser:
    parser = Parser(prog="compare.py", description=__doc__)
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="a run folder, an evaluation folder, or a predictions.csv"
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list every run in --save, and the trials of searches that still have weights; with --output as CSV too",
    )
    add_split_flag(parser, "test")
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="compare each run with this one alone")
    add_output_flag(parser, "runs/compare-A-vs-B, by the runs' names")
    parser.config_flag("--save", "save", help="the folder of runs, for --list and the default --output")
    parser.config_flag("--seed", "seed", help="seed of the bootstrap")
    return parser


def list_runs(arguments: Namespace, config: Config) -> None:
    """Print the leaderboard. Raises: `UserError` if there are no runs, or for flags of a comparison."""
    from evaluation.leaderboard import format_leaderboard, leaderboard_rows, read_runs
    from experiment.run_folder import runs_folder

    if arguments.runs or arguments.baseline:
        raise UserError(f"--list lists every run in --save DIR; leave {arguments.baseline or arguments.runs[0]} out")
    parent = runs_folder(config)
    entries = read_runs(parent, arguments.kind)
    if not entries:
        raise UserError(f"--list: no runs in {shown(parent)}; train one (python train.py), or name another --save DIR")
    log.info(format_leaderboard(entries, arguments.kind))
    for entry in entries:
        for warning in entry.warnings:
            log.warning(f"{entry.name}: {warning}")
    if arguments.output is not None:
        file = make_folder(arguments.output, "--output") / "leaderboard.csv"
        write_csv(file, leaderboard_rows(entries))
        log.info(f"\nwritten: {shown(file)}")


def compare_runs(arguments: Namespace, config: Config) -> None:
    """Compare, print and write. Raises: `UserError` for runs that cannot be compared, or an unsuitable --output."""
    from evaluation.comparison import compare, inputs, report
    from evaluation.figures.forest import plot_forest
    from evaluation.predictions import read_predictions
    from experiment.run_folder import runs_folder

    if not arguments.runs:
        raise UserError("no RUN given; name two or more, or pass --list to see them")
    paths, baseline = inputs.choose_files(arguments.runs, arguments.kind, arguments.baseline)
    distrusted = inputs.reasons_for_distrust(paths)
    runs = inputs.align({name: read_predictions(path) for name, path in paths.items()})
    default = inputs.default_folder(runs_folder(config), paths, arguments.kind, baseline)
    folder = inputs.prepare_folder(arguments.output or default)
    comparison = compare(runs, baseline, distrusted=distrusted, seed=config.seed)
    report.write_comparison(comparison, paths, folder)
    plot_forest(comparison, folder / "forest.png")
    log.info(f"{comparison.images}, 95 % intervals\n\n{report.format_tables(comparison)}\n")
    for warning in (f"{name}: {text}" for name, texts in comparison.distrusted.items() for text in texts):
        log.warning(warning)
    log.info("\n".join(report.conclusions(comparison)) + f"\n\nwritten: {shown(folder)}")


def main(argv: Sequence[str]) -> None:
    arguments, config, given = parser().read_command(argv)
    if unsuitable := [f"{key}={value}" for key, value in given.items() if key not in KEYS]:
        raise UserError(
            f"{unsuitable[0]}: a comparison only reads predictions; leave it out (save and seed may be set)"
        )
    (list_runs if arguments.list else compare_runs)(arguments, config)


if __name__ == "__main__":
    run_verb(main)
