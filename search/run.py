"""A search from its command to its results: check it, prepare what its trials share, work on it, show the results."""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial
from sqlalchemy.exc import OperationalError

from command_line import Command, typed_command
from config import Config, all_keys, compose_config, get_value
from dataset.loading import Dataset
from experiment.run_folder import runs_folder
from pretrained_models import canonical_name
from search.metric import Metric, read_metric
from search.plots import write_plots
from search.results import best_trial, default_trial, format_table, write_preset, write_table
from search.space import Space, default_values, describes_learning, find_space, read_space, with_values
from search.study import PRECISION, Terms, claim, describe_space, open_storage, open_study
from search.worker import Worker
from training.trainer import prepare
from utils import UserError, count, file_sha256, log, make_folder, shown, sqlite_address

# Keys that may differ between the workers of one study: paths and the machine. Data are compared by their content.
OF_THE_MACHINE = {
    *("save", "device", "track", "data.path", "data.cache_dir", "data.workers", "data.device_memory"),
    *("data.lung_masks", "data.lesion_masks", "data.boxes", "data.group_pattern", "data.max_unreadable"),
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search that was asked for.

    Attributes:
        name: of the study.
        folder: of the study, for its table, its plots, its preset and the trials' run folders.
        arguments: the flags of tune.py.
        config: what the trials share.
        plain: the configuration that the printed command's preset and `key=value` words are added to.
        tracked: whether `--track` was given. Otherwise trials have no tracker, as the study records their course.
    """

    name: str
    folder: Path
    arguments: argparse.Namespace
    config: Config
    plain: Config
    metric: Metric
    space: Space
    space_file: Path
    tracked: bool


def read_search(command: Command) -> Search:
    """Check a command and return its search. Raises: `UserError`."""
    arguments, config, given = command
    metric = read_metric(arguments.metric)
    space_file = find_space(arguments.space)
    space = read_space(space_file)
    config = replace(config, model=canonical_name(config.model))
    default_values(space, config, str(space_file))
    name = arguments.study or f"{config.model}-{space_file.stem}".replace("/", "-")
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"--study {name}: it names a folder and a preset, so use only letters, digits and . + - _")
    return Search(
        name=name,
        folder=runs_folder(config) / f"tune-{name}",
        config=config,
        arguments=arguments,
        # Naming an image folder chooses its own file of the data group.
        plain=compose_config((), {"data.path": config.data.path} if config.data.path else {}, arguments.config),
        metric=metric,
        space=space,
        space_file=space_file,
        tracked="track" in given,
    )


def run_search(search: Search) -> None:
    """Work on the study until it is complete; write and show its results even if that ends early.

    Raises: `UserError`.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        _run_search(search)
    except (StorageInternalError, OperationalError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"--storage: the study's database does not answer ({reason}); try again later") from None


def _run_search(search: Search) -> None:
    arguments = search.arguments
    storage = open_storage(arguments.storage, arguments.heartbeat) if arguments.storage else None
    # Decode the data once for all trials, and fail early for what every trial would fail for.
    training = prepare(search.config)
    dataset, config, precision = training.dataset, training.learner.config, training.learner.precision
    search.metric.check_class(dataset.classes)
    terms = Terms(
        direction=search.metric.direction,
        seed=config.seed,
        default=default_values(search.space, config, str(search.space_file)),
        space=describe_space(search.space),
        fixed=_fixed(search) | {"the images and their split": images_digest(dataset)},
        precision=config.precision if "model" in search.space else precision,
    )
    del training
    make_folder(search.folder / "trials", "--save")
    storage = storage or open_storage(sqlite_address(search.folder / "study.db"), arguments.heartbeat)
    study = open_study(storage, search.name, terms)
    claim(search.folder, study)
    images, keys = count(len(dataset.images("val")), "validation image"), count(len(search.space), "key")
    log.info(f"study {search.name}: {search.metric.words} of {images}, {keys} ({search.space_file})")
    config = replace(config, precision=study.user_attrs[PRECISION])
    worker = Worker(
        study=study,
        storage=storage,
        config=replace(config, track=config.track if search.tracked else "none", save=str(search.folder / "trials")),
        space=search.space,
        metric=search.metric,
        folder=search.folder,
        trials=arguments.trials,
    )
    try:
        worker.work(arguments.timeout)
    except BaseException:
        log.info(f"continue with: {typed_command()}")
        raise
    finally:
        write_results(replace(search, config=config), study)


def _fixed(search: Search) -> dict[str, object]:
    """Return the keys that all trials of the study share, and their values."""
    keys = [key for key in all_keys() if key not in search.space and key not in OF_THE_MACHINE]
    fixed = {"--metric": search.metric.name} | {key: get_value(search.config, key) for key in keys}
    if "init" in fixed and Path(fixed["init"]).is_file():  # its path may differ on another machine
        fixed["init"] = f"a file with the SHA-256 {file_sha256(fixed['init'])[:16]}…"
    return fixed


def images_digest(dataset: Dataset) -> str:
    """Return 16 hexadecimal digits that identify the training and validation images. Raises: `UserError` for none."""
    digest = hashlib.sha256()
    for split, name in (("train", "training"), ("val", "validation")):
        records = dataset.images(split).records
        if not len(records):
            raise UserError(f"--data: there are no {name} images; change data.split")
        pairs = zip(records["sha256"], records["label"], strict=True)
        digest.update("".join(sorted(f"{split}{sha256}{label}" for sha256, label in pairs)).encode())
    return digest.hexdigest()[:16]


def write_results(search: Search, study: Study) -> None:
    """Write and print the table, the plots and the preset of a search, complete or not."""
    keys, folder = list(search.space), search.folder
    table = write_table(study, keys, folder)
    log.info(f"\n{format_table(study, table, keys)}\n")
    best, default = best_trial(study), default_trial(study)
    if best is None:
        log.info("no trial is complete yet")
        return
    files = ["trials.csv", *write_plots(study, search.metric, folder, search.config.seed)]
    preset = write_preset(best, with_values(search.config, best.params), search.plain, search.metric, folder)
    log.info(
        f"best: trial {best.number}, {search.metric.words} {best.value:.4f} on validation"
        + (f" (the default: {default.value:.4f})" if default is not None else "")
        + f"\nwritten: {', '.join(files)}, preset/{preset}.yaml in {shown(folder)}"
    )
    train = ["python", "train.py", "--config-dir", shown(folder), f"preset={preset}", *words_beside_preset(search)]
    commands = [shlex.join(train), *_test_commands([best] if default is None else [best, default], folder)]
    log.info("next:\n  " + "\n  ".join(commands))


def words_beside_preset(search: Search) -> list[str]:
    """Return what train.py needs besides the preset: the images, their split, the seed and the machine's settings."""
    words = ["--config", str(search.arguments.config)] if search.arguments.config else []
    for key in all_keys():
        if describes_learning(key) or key in ("save", "track"):
            continue
        value = get_value(search.config, key)
        if value != (None if key == "data.path" else get_value(search.plain, key)):  # no file sets data.path
            text = ",".join(map(str, value)) if isinstance(value, list) else "null" if value is None else str(value)
            words.append(f"{key}={text}")
    return words


def _test_commands(trials: list[FrozenTrial], folder: Path) -> list[str]:
    """Return the commands that evaluate trials on the test images and compare them, or where their weights are."""
    runs = {folder / "trials" / f"{trial.number:04d}": trial for trial in trials}
    if elsewhere := [trial for run, trial in runs.items() if not (run / "best.pt").is_file()]:
        return [
            f"trial {t.number} was trained on {t.user_attrs.get('worker')}; its weights are there" for t in elsewhere
        ]
    commands = [shlex.join(["python", "test.py", "--weights", shown(run)]) for run in runs]
    return commands + [shlex.join(["python", "compare.py", *map(shown, runs)])] * (len(runs) > 1)
