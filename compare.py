"""Compare runs on the same images: paired tests, intervals of the differences, and a forest plot.

python compare.py runs/A runs/B                             # their test splits; of more runs every pair
python compare.py runs/A runs/B runs/C --baseline runs/A    # each with A alone
python compare.py runs/A/external-X other/predictions.csv   # any evaluation folder or table, another program's too
python compare.py --list                                    # the leaderboard of runs/, nothing is tested

A table of another program needs the columns path, label, and p_CLASS for every class; sha256 and group help.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line import Parser, run_verb
from utils import UserError, log, read_json, shortened_name

if TYPE_CHECKING:
    from argparse import Namespace

    from config import Config
    from evaluation.comparison import Comparison, Difference, Pair

KINDS = ("train", "val", "test")
FILE = "predictions.csv"
COLUMNS = ("a", "b", "metric", "difference", "low", "high", "p", "p_holm")
KEYS = ("save", "seed", "data.cache_dir")  # the last changes nothing here, and may stand in anybody's command


def parser() -> Parser:
    parser = Parser(prog="compare.py", description=__doc__)
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help=f"a run folder, an evaluation folder, or a {FILE}"
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list every run of --save, of a search the trials whose weights it keeps; with --output as CSV too",
    )
    parser.add_argument("--kind", choices=KINDS, default="test", help="which split of the run folders (default test)")
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="compare each run with this one alone")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: runs/compare-A-vs-B, by the runs' names)"
    )
    parser.config_flag("--save", "save", metavar="DIR", help="the runs' folder: of --list and the default --output")
    parser.config_flag("--seed", "seed", type=int, help="of the bootstrap")
    return parser


def find(path: Path, kind: str) -> Path:
    """The predictions that an argument means. Raises: `UserError` that says what is missing and how to make it."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder or file")
    for file in (path / FILE, path / kind / FILE):
        if file.is_file():
            return file
    if any((path / name).exists() for name in ("config.yaml", "run.json", "best.pt")):
        run = shlex.quote(str(path))
        raise UserError(f"{path}: no {kind}/{FILE} yet: python test.py --weights {run} --kind {kind}")
    raise UserError(f"{path}: no run folder, and no {FILE} in it")


def name_files(files: Sequence[Path]) -> list[str]:
    """A name for each of these different files: as few of its last folders as tell it from the others.

    runs/X/test/predictions.csv is X, runs/X/predictions.csv too, and other/x.csv is x.
    """
    paths = [Path(os.path.abspath(file)) for file in files]
    whole = [(path.parent if path.name == FILE else path.with_suffix("")).parts for path in paths]
    short = [parts[:-1] if parts[-1] in KINDS and len(parts) > 2 else parts for parts in whole]
    trails = next(t for t in (short, whole, [path.parts for path in paths]) if len(set(t)) == len(t))
    depths = [1] * len(files)
    while True:
        names = ["/".join(parts[-depth:]) for parts, depth in zip(trails, depths, strict=True)]
        if len(set(names)) == len(names):
            return names
        depths = [depth + (names.count(name) > 1) for name, depth in zip(names, depths, strict=True)]


def choose(paths: Sequence[Path], kind: str, baseline: Path | None) -> tuple[dict[str, Path], str | None]:
    """The files to compare by name, and the baseline's name.

    Raises: `UserError` for fewer than two, one file twice, or what `find` refuses.
    """
    found: dict[Path, Path] = {}  # by what they are, so that a link counts as its file
    for path in paths:
        file = find(path, kind)
        if file.resolve() in found:
            raise UserError(f"{path}: given twice (both times {file.resolve()})")
        found[file.resolve()] = file
    base = None if baseline is None else find(baseline, kind)
    if base is not None:
        found.setdefault(base.resolve(), base)
    if len(found) < 2:
        raise UserError(f"{paths[0]}: one run alone; give two or more to compare")
    names = dict(zip(found, name_files(list(found.values())), strict=True))
    return {names[key]: file for key, file in found.items()}, None if base is None else names[base.resolve()]


def default_folder(names: Sequence[str], kind: str, baseline: str | None) -> str:
    """compare-A-vs-B, with what else tells it from other comparisons; short enough for a file system."""
    text = shortened_name("-vs-".join(name.replace("/", "-") for name in names))
    return f"compare-{text}" + ("" if kind == "test" else f"-{kind}") + ("" if baseline is None else "-baseline")


def prepare(folder: Path) -> Path:
    """Make the output folder. Raises: `UserError` where there are other things in it than an earlier comparison."""
    from utils import make_folder

    make_folder(folder, "--output")
    if (folder / "comparison.json").exists():
        log.info(f"replacing the earlier comparison in {folder}")
    elif any(folder.iterdir()):
        raise UserError(f"--output {folder}: there are other files in it; name another folder")
    return folder


def distrust(file: Path) -> list[str]:
    """The severe warnings in the metrics.json beside a predictions.csv; none where there is no such file.

    Raises: `UserError` for one that cannot be read.
    """
    beside = file.with_name("metrics.json")
    if file.name != FILE or not beside.is_file():
        return []
    metrics = read_json(beside, "remove it, or run python test.py again")
    return [warning["text"] for warning in metrics.get("warnings") or [] if warning.get("level") == "severe"]


def verdict(pair: Pair, distrusted: Collection[str] = ()) -> str:
    """What the corrected tests say of two runs, in a sentence, from the side of the one that is better.

    Of a run that is `distrusted` it says only that its scores are higher.
    """
    from evaluation.comparison import TESTS
    from evaluation.phrases import p_text, words

    apart = [metric for metric in TESTS if pair.differences[metric].told_apart]
    turned = bool(apart) and pair.differences[apart[0]].value < 0
    a, b = (pair.b, pair.a) if turned else (pair.a, pair.b)
    found = {metric: -pair.differences[metric] if turned else pair.differences[metric] for metric in TESTS}
    numbers = "; ".join(
        f"{words(metric)} differs by {d.text()}, " + (f"p {p_text(d.p_holm)}" if p_text(d.p_holm) else "not tested")
        for metric, d in found.items()
        if not math.isnan(d.value)
    )
    if not apart:
        return f"{a} and {b} cannot be told apart: {numbers}."
    better = " and ".join(words(metric) for metric in apart if found[metric].value > 0)
    worse = "".join(f" and worse in {words(metric)}" for metric in apart if found[metric].value < 0)
    if a in distrusted:
        return f"{a} scores higher than {b} in {better}{worse}, but do not trust {a} (see its warning): {numbers}."
    return f"{a} is better than {b} in {better}{worse}: {numbers}."


def caution(found: Comparison) -> list[str]:
    """What is too little to rank runs by, and what the tests assume and nobody knows, as sentences."""
    from evaluation.cautions import FEW
    from evaluation.metrics.table import SMALL

    small = ", ".join(f"{name} ({count})" for name, count in found.support.items() if count < SMALL)
    parts = [f"only {found.n} images"] * (found.n < FEW) + [f"fewer than {SMALL} images of {small}"] * bool(small)
    few = [f"Caution: {'; '.join(parts)}: too few to rank by, and DeLong's p is rough."] * bool(parts)
    whose = "the images" if found.unknown == found.n else f"{found.unknown} of {found.n} images"
    alone = f"Caution: nothing says which patients {whose} are of: p and intervals assume that they are independent."
    return few + [alone] * bool(found.unknown)


def warnings(found: Comparison) -> list[str]:
    """What makes runs worthless, a sentence each."""
    return [f"WARNING: {name}: {text}" for name, texts in found.distrusted.items() for text in texts]


def report(found: Comparison) -> str:
    """The comparison for a terminal: the runs, every pair, and what that means."""
    import pandas as pd

    from evaluation.phrases import p_text, with_limits, words

    several = len(found.pairs) > 1
    metrics = ("accuracy", "macro_f1", "macro_auroc")
    runs = {
        name: {"images": found.n, **{words(m): with_limits(run[m]) for m in metrics}}
        for name, run in found.runs.items()
    }
    blocks = [pd.DataFrame.from_dict(runs, orient="index").to_string()]
    for pair in found.pairs:
        table = pd.DataFrame(
            [[d.text(), *(p_text(p).removeprefix("= ") for p in (d.p, d.p_holm))] for d in pair.differences.values()],
            index=[words(metric) for metric in pair.differences],
            columns=["difference", "p", "p (Holm)"],
        )
        table = table if several else table.drop(columns="p (Holm)")
        head = f"{pair.a} - {pair.b}   (only the first is right: {pair.only_a} images, only the second: {pair.only_b})"
        blocks.append(f"{head}\n{table.to_string()}")
    corrected = [f"Each p below is Holm's, over {len(found.pairs)} pairs."] * several
    verdicts = [verdict(pair, found.distrusted) for pair in found.pairs]
    return "\n\n".join([*blocks, "\n".join([*corrected, *warnings(found), *verdicts, *caution(found)])])


def entry(found: Difference) -> dict[str, float | None]:
    """difference, low, high, z, p, p_holm, as JSON has them: None for NaN."""
    numbers = {"difference" if name == "value" else name: number for name, number in vars(found).items()}
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}


def write(found: Comparison, facts: dict[str, Any], folder: Path) -> None:
    """Write `comparison.csv` (a row per pair and metric), `comparison.json` (`facts` first) and `forest.png`."""
    from evaluation.comparison import METHODS
    from evaluation.figures.forest import plot_forest
    from utils import write_csv, write_json

    plot_forest(found, folder / "forest.png")
    pairs = [
        {
            "a": pair.a,
            "b": pair.b,
            "only_a_right": pair.only_a,
            "only_b_right": pair.only_b,
            "verdict": verdict(pair, found.distrusted),
            "differences": {metric: entry(d) for metric, d in pair.differences.items()},
        }
        for pair in found.pairs
    ]
    rows = [
        {"a": pair["a"], "b": pair["b"], "metric": metric, **numbers}
        for pair in pairs
        for metric, numbers in pair["differences"].items()
    ]
    write_csv(folder / "comparison.csv", [{name: row[name] for name in COLUMNS} for row in rows])
    summary = {
        "n": found.n,
        "images": found.images,
        "images_of_unknown_patients": found.unknown,
        "support": found.support,
        "warnings": found.distrusted,
        "caution": " ".join(caution(found)),
    }
    write_json(folder / "comparison.json", {**facts, **summary, "runs": found.runs, "pairs": pairs, "methods": METHODS})


def list_runs(arguments: Namespace, config: Config) -> None:
    """Print the leaderboard. Raises: `UserError` where there is no run, or with flags of a comparison."""
    from evaluation.leaderboard import format_leaderboard, leaderboard_rows, read_runs
    from experiment.run_folder import runs_folder
    from utils import make_folder, shown, write_csv

    if arguments.runs or arguments.baseline:
        raise UserError(f"--list: it lists all of --save DIR; leave {arguments.baseline or arguments.runs[0]} out")
    parent = runs_folder(config)
    entries = read_runs(parent, arguments.kind)
    if not entries:
        raise UserError(f"--list: no run in {shown(parent)}: train one (python train.py), or name its --save DIR")
    log.info(format_leaderboard(entries, arguments.kind))
    if arguments.output is not None:
        file = make_folder(arguments.output, "--output") / "leaderboard.csv"
        write_csv(file, leaderboard_rows(entries))
        log.info(f"\nwritten: {shown(file)}")


def main(argv: Sequence[str]) -> None:
    arguments, config, given = parser().read_command(argv)
    unfit = [f"{key}={value}" for key, value in given.items() if key not in KEYS]
    if unfit:
        raise UserError(f"{unfit[0]}: a comparison reads predictions alone; of the keys only save and seed count here")
    if arguments.list:
        list_runs(arguments, config)
        return
    if not arguments.runs:
        raise UserError("no RUN given: name two or more, or --list them")
    files, baseline = choose(arguments.runs, arguments.kind, arguments.baseline)
    from evaluation.comparison import align, compare
    from evaluation.predictions import read_predictions
    from experiment.run_folder import runs_folder
    from utils import shown

    distrusted = {name: texts for name, file in files.items() if (texts := distrust(file))}
    runs = align({name: read_predictions(file) for name, file in files.items()})
    folder = arguments.output or runs_folder(config) / default_folder(list(runs), arguments.kind, baseline)
    prepare(folder)
    found = compare(runs, baseline, distrusted=distrusted, seed=config.seed)
    paths = {name: str(file) for name, file in files.items()}
    write(found, {"files": paths, "baseline": baseline, "seed": config.seed}, folder)
    log.info(f"{found.images}, 95 % intervals\n\n{report(found)}\n\nwritten: {shown(folder)}")


if __name__ == "__main__":
    run_verb(main)
