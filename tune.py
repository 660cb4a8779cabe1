"""Search for a better configuration: trains many, drops the hopeless early, and keeps the best as a preset.

python tune.py                                             # 20 trials on the phantom; again: goes on
python tune.py preset=fast --data DIR --trials 50 --metric macro_auroc
python tune.py --space my.yaml                             # other keys: see configs/tune/
python tune.py --storage postgresql+psycopg://user@host/db # on each of many machines: all work on one study

Trial 0 is the configuration itself. The validation images decide; the test images are never looked at.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line import Parser, add_training_flags, run_verb, typed_command
from config import get_value
from utils import UserError, file_sha256, log, make_folder, sqlite_address

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from config import Config
    from dataset.loading import Dataset
    from search.metric import Metric
    from search.space import Space

# What may differ between the workers of one study: where things are, on which machine. Of the data, its content counts.
OF_THE_MACHINE = {
    *("save", "device", "track", "data.path", "data.cache_dir", "data.workers", "data.device_memory"),
    *("data.lung_masks", "data.lesion_masks", "data.boxes", "data.group_pattern", "data.max_unreadable"),
}


def parser() -> Parser:
    parser = Parser(prog="tune.py", description=__doc__)
    add_training_flags(parser)
    add = parser.add_argument
    add("--space", default="default", metavar="NAME", help="a file of configs/tune/, or any .yaml (default: default)")
    add("--trials", type=int, default=20, metavar="N", help="in the whole study, all workers together (default 20)")
    add("--timeout", type=float, metavar="SECONDS", help="no new trial begins after so long")
    add(
        "--metric",
        default="balanced_accuracy",
        help="of metrics.json, on the validation images: macro_f1, log_loss, per_class.COVID.recall … (default "
        "balanced_accuracy)",
    )
    add("--study", metavar="NAME", help="its folder is runs/tune-NAME (default MODEL-SPACE)")
    add("--storage", metavar="URL", help="a database for many machines (default: SQLite, study.db in that folder)")
    add(
        "--heartbeat",
        type=int,
        default=20,
        metavar="SECONDS",
        help="a worker that gives no sign of life for 3 of these is dead (default 20)",
    )
    return parser


@dataclass
class Search:
    """What the command line asks for."""

    arguments: argparse.Namespace
    given: dict[str, Any]
    config: Config
    plain: Config
    metric: Metric
    space: Space
    file: Path  # of the space
    name: str
    folder: Path


def main(argv: Sequence[str]) -> None:
    arguments, config, given = parser().read_command(argv)
    search = _read(arguments, config, given)
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import OperationalError

    try:
        _search(search)
    except (StorageInternalError, OperationalError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(
            f"--storage: the study's database does not answer ({reason}); once it does, the same command goes on"
        ) from None


def _read(arguments: argparse.Namespace, config: Config, given: dict[str, Any]) -> Search:
    """Check everything that can be checked before data are read. Raises: `UserError`."""
    for flag, least in (("trials", 1), ("heartbeat", 1), ("timeout", 0)):
        if (value := getattr(arguments, flag)) is not None and value < least:
            raise UserError(f"--{flag} {value:g}: at least {least} is needed")
    from config import compose_config
    from experiment.run_folder import runs_folder
    from pretrained_models import canonical_name
    from search.metric import read_metric
    from search.space import find_space, own_values, read_space

    metric = read_metric(arguments.metric)
    file = find_space(arguments.space)
    space = read_space(file)
    config.model = canonical_name(config.model)
    own_values(space, config, str(file))
    name = arguments.study or f"{config.model}-{file.stem}".replace("/", "-")
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"--study {name}: letters, digits and . + - _ only: it names a folder and a preset")
    # What the printed command's preset and words are added to; an image folder chooses a group of its own.
    plain = compose_config((), {"data.path": config.data.path} if config.data.path else {}, arguments.config)
    return Search(arguments, given, config, plain, metric, space, file, name, runs_folder(config) / f"tune-{name}")


def _search(search: Search) -> None:
    """Prepare what all trials share, work on the study, and show what came out, also of a part of it."""
    import optuna

    from search.space import own_values
    from search.study import PRECISION, claim, open_storage, open_study
    from search.worker import Worker
    from training.trainer import prepare

    arguments, config = search.arguments, search.config
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = None
    if url := arguments.storage:
        storage = open_storage(url, arguments.heartbeat)
    own = own_values(search.space, config, str(search.file))
    made_with = _made_with(search)
    learner, dataset, _ = prepare(config)  # data are decoded once, and what every trial would fail for is found out now
    made_with["fixed"]["the images and their split"] = _images(dataset)
    search.metric.check_class(dataset.classes)
    make_folder(search.folder / "trials", "--save")
    storage = storage or open_storage(sqlite_address(search.folder / "study.db"), arguments.heartbeat)
    precision = config.precision if "model" in search.space else learner.precision
    study = open_study(storage, search.name, search.metric.direction, config.seed, own, made_with, precision)
    claim(search.folder, study)
    config.precision = study.user_attrs[PRECISION]  # measured once
    if "track" not in search.given:
        config.track = "none"  # the study knows the course of every trial; --track for more
    config.save = str(search.folder / "trials")
    del learner
    log.info(
        f"study {search.name}: {search.metric.words} of {len(dataset.images('val'))} validation images, "
        f"{len(search.space)} keys ({search.file})"
    )
    try:
        Worker(study, storage, config, search.space, search.metric, search.folder, arguments.trials).work(
            arguments.timeout
        )
    except BaseException:
        log.info(f"go on with: {typed_command()}")
        raise
    finally:
        _show(search, study)


def _made_with(search: Search) -> dict[str, Any]:
    """What all trials of the study share, to be refused where it differs."""
    from config import all_keys
    from search.study import describe_space

    keys = [key for key in all_keys() if key not in search.space and key not in OF_THE_MACHINE]
    fixed = {key: get_value(search.config, key) for key in keys}
    if "init" in fixed and Path(fixed["init"]).is_file():  # it may lie elsewhere on another machine
        fixed["init"] = f"a file with the SHA-256 {file_sha256(fixed['init'])[:16]}…"
    return {"space": describe_space(search.space), "fixed": {"--metric": search.metric.name, **fixed}}


def _images(dataset: Dataset) -> str:
    """16 hexadecimal digits that tell apart what is trained on and what decides. Raises: `UserError` for neither."""
    import hashlib

    digest = hashlib.sha256()
    for split in ("train", "val"):
        records = dataset.images(split).records
        if not len(records):
            raise UserError(f"--data: no {'validation' if split == 'val' else 'training'} images; change data.split")
        digest.update(
            "".join(
                sorted(f"{split}{h}{label}" for h, label in zip(records["sha256"], records["label"], strict=True))
            ).encode()
        )
    return digest.hexdigest()[:16]


def _show(search: Search, study: Study) -> None:
    """Write and print the table, the plots and the preset, as far as the search has come."""
    from search.plots import write_plots
    from search.results import best_trial, default_trial, format_table, write_preset, write_table
    from search.space import with_values
    from utils import shown

    keys, folder = list(search.space), search.folder
    found = write_table(study, keys, folder)
    log.info(f"\n{format_table(study, found, keys)}\n")
    best = best_trial(study)
    if best is None:
        log.info("no trial is complete yet")
        return
    files = ["trials.csv", *write_plots(study, search.metric, folder, search.config.seed)]
    config = with_values(search.config, best.params)
    name = write_preset(best, config, search.plain, search.metric, folder)
    default = default_trial(study)
    log.info(
        f"best: trial {best.number}, {search.metric.words} {best.value:.4f} on validation"
        + (f" (the default: {default.value:.4f})" if default is not None else "")
        + f"\nwritten: {', '.join(files)}, preset/{name}.yaml in {shown(folder)}"
    )
    train = ["python", "train.py", "--config-dir", shown(folder), f"preset={name}", *_words_beside_the_preset(search)]
    lines = [shlex.join(train), *_judged([best] if default is None else [best, default], folder)]
    log.info("next:\n  " + "\n  ".join(lines))


def _words_beside_the_preset(search: Search) -> list[str]:
    """What `train.py` must be told beside the preset: on which images, how they are split, with which seed."""
    from config import all_keys
    from search.space import says_how_it_learns

    words = ["--config", str(search.arguments.config)] if search.arguments.config else []
    for key in all_keys():
        value, plain = (get_value(config, key) for config in (search.config, search.plain))
        if says_how_it_learns(key) or key in ("save", "track"):
            continue
        if value != (None if key == "data.path" else plain):  # no preset and no file names the images
            text = ",".join(map(str, value)) if isinstance(value, list) else "null" if value is None else str(value)
            words.append(f"{key}={text}")
    return words


def _judged(trials: list[FrozenTrial], folder: Path) -> list[str]:
    """The commands that judge the best trial on the test images, beside the default."""
    from utils import shown

    runs = {folder / "trials" / f"{trial.number:04d}": trial for trial in trials}
    if far := [trial for run, trial in runs.items() if not (run / "best.pt").is_file()]:
        return [f"the weights of trial {t.number} are where it was trained, {t.user_attrs.get('worker')}" for t in far]
    lines = [shlex.join(["python", "test.py", "--weights", shown(run)]) for run in runs]
    return lines + [shlex.join(["python", "compare.py", *map(shown, runs)])] * (len(runs) > 1)


if __name__ == "__main__":
    run_verb(main)
