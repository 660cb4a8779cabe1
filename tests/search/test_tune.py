"""The search: its space, its study that outlives its workers, and what it leaves. Optuna and the trainings are real."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

import search.study
import tune
from config import Config, compose_config, get_value
from search.metric import read_metric
from search.results import rows, tidy, write_preset
from search.run import read_search, words_beside_preset
from search.space import SPACES, default_values, find_space, read_space, suggest, with_values
from search.study import INTERRUPTIONS, Terms, claim, counting, open_storage, open_study
from search.worker import Worker
from tests.helpers.verbs import ROOT, Result
from utils import UserError, sqlite_address

Verb = Callable[..., Result]
TINY = ("--init", "none", "--precision", "fp32", "--batch", 16, "--epochs", 1, "data.size=32", "data.split=0.6,0.2,0.2")
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), shutil.which("initdb"))


def _space(folder: Path, **keys: object) -> Path:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({name.replace("__", "."): said for name, said in keys.items()}))
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.learning_rate: {low: 1.0e-5, high: 1.0e-2}", ["train.learning_rate", "did you mean train."]),
        ("train.weight_decy: {low: 0, high: 1}", ["did you mean train.weight_decay"]),
        ("train.warmup: {low: 0, high: 2}", ["train.warmup=2", "from 0 to 1"]),
        ("train.warmup: {low: -1, high: 1}", ["train.warmup=-1", "from 0 to 1"]),
        ("train.batch: {low: 1.5, high: 8}", ["train.batch=1.5", "wrong type", "int"]),
        ("train.optimizer: {choices: [adamw, sdg]}", ["train.optimizer=sdg", "did you mean sgd"]),
        ("train.lr: {low: 1.0e-5, hihg: 1}", ["train.lr", "'hihg'", "did you mean high"]),
        ("train.lr: {low: 1.0e-5}", ["train.lr", "'high' is missing"]),
        ("train.lr: {low: 1, high: 1}", ["train.lr", "not below"]),
        ("train.lr: {low: 0, high: 1, log: true}", ["train.lr", "above 0"]),
        ("train.lr: {low: 0, high: 1, step: 0.3}", ["train.lr", "not a whole number of steps"]),
        ("train.lr: {low: 1, high: 2, log: true, step: 1}", ["train.lr", "log scale"]),
        ("train.optimizer: {low: adam, high: sgd}", ["train.optimizer", "choices"]),
        ("train.batch: {choices: [16, 16]}", ["train.batch", "different"]),
        ("train.lr: {low: 1.0e-5, high: .inf}", ["train.lr", "inf", "finite"]),
        ("train.lr: {choices: [.nan, 1.0e-3]}", ["train.lr", "nan"]),
        ("train.warmup: {low: 0, high: 1, step: .nan}", ["train.warmup", "step nan"]),
        ("train.lr: 0.1", ["train.lr", "range"]),
        ("train: {lr: {low: 0, high: 1}}", ["train: unknown word 'lr'"]),
        ("model: {choices: [resnet18, resnt50]}", ["resnt50", "resnet50"]),
        ("seed: {low: 0, high: 9}", ["seed", "luck"]),
        ("data.split_seed: {low: 0, high: 9}", ["data.split_seed", "same"]),
        ("[1, 2", ["YAML"]),
        ("- a", ["mapping"]),
    ],
)
def test_a_bad_space_names_file_and_key(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        default_values(read_space(path), Config(), str(path))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in [str(path), *words]), error.value


@pytest.mark.parametrize("name", [path.stem for path in SPACES.glob("*.yaml")])
def test_every_space_of_ours_draws_what_the_schema_allows(name: str) -> None:
    space, config = read_space(find_space(name)), compose_config()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    default = default_values(space, config, name)
    study.enqueue_trial(default)
    assert suggest(study.ask(), space) == default
    for _ in range(20):
        drawn = suggest(study.ask(), space)
        assert {key: get_value(with_values(config, drawn), key) for key in space} == drawn  # refused where out of range


def test_trial_0_must_lie_in_the_space(tmp_path: Path) -> None:
    space = read_space(_space(tmp_path, train__lr={"low": 1e-3, "high": 1e-2}))
    with pytest.raises(
        UserError, match=r"space.yaml: train.lr: the configuration's value, 0.0005, is not in the space"
    ):
        default_values(space, Config(), "space.yaml")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("test.accuracy", ["test.accuracy", "only validation images", "could not judge"]),
        ("test_macro_f1", ["only validation images"]),
        ("train/accuracy", ["memorised"]),
        ("macro_f2", ["did you mean macro_f1"]),
        ("per_class.COVID.recal", ["per_class.CLASS.NAME"]),
    ],
)
def test_a_metric_of_other_images_or_of_none_is_refused(verb: Verb, metric: str, words: list[str]) -> None:
    result = verb("tune.py", "--metric", metric)
    assert result.code == 2
    assert len(result.err.strip().splitlines()) == 1
    assert all(word in result.err for word in words), result.err


def _terms(default: dict[str, float], seed: int = 0) -> Terms:
    return Terms(direction="minimize", seed=seed, default=default, space={}, fixed={})


def _open(folder: Path, default: dict[str, float], seed: int = 0) -> tuple[optuna.Study, RDBStorage]:
    storage = open_storage(f"sqlite:///{folder / 'study.db'}", 1)
    return open_study(storage, "s", _terms(default, seed)), storage


def _worker(study: optuna.Study, storage: RDBStorage, folder: Path, **fields: object) -> Worker:
    defaults = {"config": Config(), "space": {}, "metric": read_metric("log_loss"), "trials": 2}
    return Worker(study=study, storage=storage, folder=folder, **{**defaults, **fields})


def _bowl(trial: optuna.Trial) -> float:
    return (trial.suggest_float("x", -5, 5) - 1) ** 2 + trial.suggest_float("y", -5, 5) ** 2


def test_an_interrupted_search_draws_what_it_would_have_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a trial died on the way: its parameters come again, and those after it are as they would have been."""
    monkeypatch.setattr(search.study, "STARTUP", 2)
    drawn = []
    for interrupted in (False, True):
        folder = tmp_path / str(interrupted)
        folder.mkdir()
        study, _ = _open(folder, {"x": 0.0, "y": 0.0}, seed=5)
        if interrupted:
            study.optimize(_bowl, n_trials=4)
            study, _ = _open(folder, {"x": 0.0, "y": 0.0}, seed=5)
            trial = study.ask()
            suggested = _bowl(trial)
            study.tell(trial, state=TrialState.FAIL)
            search.study.retry(study, study.get_trials()[trial.number])
            assert len(counting(study)) == 5
        study.optimize(_bowl, n_trials=6 - 4 * interrupted)
        drawn.append([trial.params for trial in counting(study)])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] == {"x": 0, "y": 0}
    assert suggested in [_value(params) for params in drawn[0]]


def _value(params: dict[str, float]) -> float:
    return (params["x"] - 1) ** 2 + params["y"] ** 2


def test_a_dead_trial_is_found_with_and_without_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.study, "ALIVE", 1)
    study, storage = _open(tmp_path, {"x": 3.0, "y": 1.0})
    for _ in range(2):
        _bowl(study.ask())
    first = study.get_trials()[0]
    storage.record_heartbeat(first._trial_id)
    worker, stop = _worker(study, storage, tmp_path), time.monotonic() + 15
    while len(study.trials) < 4 and time.monotonic() < stop:
        worker._retry_dead_trials()
        time.sleep(0.2)
    before, after = study.trials[:2], study.trials[2:]
    assert [trial.state for trial in before] == [TrialState.FAIL] * 2
    assert [trial.state for trial in after] == [TrialState.WAITING] * 2
    assert [trial.params for trial in before] == [trial.params for trial in after]
    assert after[0].params == {"x": 3, "y": 1}
    assert [trial.number for trial in counting(study)] == [2, 3]


@pytest.mark.parametrize(
    "argv",
    [
        ["--config-dir", "own", "preset=mine"],
        ["preset=seed", "--seed", "4", "train.weight_decay=0.01"],
        ["preset=demo", "data=phantom", "data.phantom_count=77", "augment=none"],
        ["--data", "own", "data.split=0.6,0.2,0.2", "data.group_pattern=^(a|b), ", "--precision", "fp32"],
    ],
    ids=lambda argv: " ".join(argv),
)
def test_the_printed_command_trains_the_best_on_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own/preset").mkdir(parents=True)
    (tmp_path / "own/preset/mine.yaml").write_text(
        "# @package _global_\nseed: 3\ntrain: {epochs: 2}\ndata: {phantom_count: 120, val_per_class: 2}\n"
    )
    asked = read_search(tune.parser().read_command([*argv, "--space", "rate"]))
    params = {"train.lr": 1e-3, "train.weight_decay": 0.1}
    trial = create_trial(value=0.5, params=params, distributions=asked.space)
    config = with_values(asked.config, params)
    preset = write_preset(trial, config, asked.plain, asked.metric, tmp_path / "own")
    words = words_beside_preset(asked)
    assert compose_config([f"preset={preset}", *words], folder=tmp_path / "own") == config


def test_parameters_that_keep_ending_their_process_fail_for_that_and_interruptions_do_not_count(
    tmp_path: Path,
) -> None:
    """Whatever is cut short stands in the study once more: nothing is lost, the default least of all."""
    study, _ = _open(tmp_path, {"x": 3.0, "y": 1.0})

    def cut_short(died: bool) -> None:
        trial = study.ask()
        _bowl(trial)
        if not died:
            trial.set_user_attr(INTERRUPTIONS, trial.user_attrs.get(INTERRUPTIONS, 0) + 1)
        study.tell(trial, state=TrialState.FAIL)
        search.study.retry(study, study.get_trials()[trial.number])

    for died in (False, False, True, False, True, False):
        cut_short(died)
        (waiting,) = counting(study)
        assert waiting.state == TrialState.WAITING and waiting.params == {"x": 3, "y": 1}
    cut_short(True)
    (given_up,) = counting(study)
    assert given_up.state == TrialState.FAIL and given_up.params == {"x": 3, "y": 1}
    assert [row["state"] for row in rows(study, ["x"])] == ["cut short"] * 6 + ["failed"]
    assert "ended its process 3 times" in rows(study, ["x"])[-1]["reason"]
    assert study.ask().number == 7  # and the search goes on


def test_the_winners_weights_stay_when_another_worker_ends_its_trial_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = _open(tmp_path, {"x": 3.0, "y": 1.0})
    study.optimize(_bowl, n_trials=2)
    trial = study.ask()
    for number in range(3):
        (tmp_path / f"trials/{number:04d}").mkdir(parents=True)
        (tmp_path / f"trials/{number:04d}/best.pt").write_bytes(b"")
    read = study.get_trials

    def read_and_then_it_ends(*args: object, **kwargs: object) -> list[optuna.trial.FrozenTrial]:
        found = read(*args, **kwargs)
        if not found[2].state.is_finished():
            trial.storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [-1.0])
        return found

    monkeypatch.setattr(study, "get_trials", read_and_then_it_ends)
    tidy(study, tmp_path)
    assert (tmp_path / "trials/0002/best.pt").exists()
    monkeypatch.undo()
    tidy(study, tmp_path)
    assert [path.parent.name for path in sorted(tmp_path.glob("trials/*/best.pt"))] == ["0000", "0002"]


def test_a_folder_belongs_to_one_study(tmp_path: Path) -> None:
    """A study of the same name in another database must not take up, or delete, what this one has trained."""
    for name in ("a", "b"):
        (tmp_path / name / "trials").mkdir(parents=True)
    study, other = (_open(tmp_path / name, {"x": 0.0, "y": 0.0})[0] for name in ("a", "b"))
    claim(tmp_path / "a", study)
    (tmp_path / "a/trials/0000").mkdir()
    claim(tmp_path / "a", _open(tmp_path / "a", {"x": 0.0, "y": 0.0})[0])  # it goes on
    for _ in range(2):
        with pytest.raises(UserError, match="belongs to another study of this name"):
            claim(tmp_path / "a", other)
    (tmp_path / "b/trials/0000").mkdir()  # of nobody knows what
    with pytest.raises(UserError, match="belongs to another study of this name"):
        claim(tmp_path / "b", other)


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b c", "é"])
def test_a_study_lies_in_its_folder_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    study = open_study(open_storage(sqlite_address(tmp_path / name / "study.db"), 1), "s", _terms({}))
    assert (tmp_path / name / "study.db").is_file() and study.study_name == "s"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_storage_that_cannot_be_opened_is_refused_without_its_password() -> None:
    for url in ("postgresql:secret", "nothing://user:secret@host/db"):
        with pytest.raises(UserError, match="--storage") as error:
            open_storage(url, 1)
        assert "secret" not in str(error.value) and "\n" not in str(error.value)


def _words(cache_dir: Path, phantom: Path, folder: Path, *argv: object) -> list[str]:
    words = ["--data", phantom, *TINY, f"data.cache_dir={cache_dir}", "--save", folder, "--heartbeat", 1, *argv]
    return [str(word) for word in words]


def _query(database: Path, query: str) -> list[tuple]:
    """What SQLite itself reads in a study's database; nothing while there is none."""
    if not database.is_file():
        return []
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20)) as connection:
        try:
            return connection.execute(query).fetchall()
        except sqlite3.OperationalError:  # no tables yet
            return []


def _running(study: Path, process: subprocess.Popen) -> list[Path]:
    """The run.json of the trial that a process runs."""
    query = f"""select number from trials join trial_user_attributes using (trial_id)
                where state = 'RUNNING' and key = 'worker' and value_json like '%:{process.pid}"'"""
    return [study / f"trials/{number:04d}/run.json" for (number,) in _query(study / "study.db", query)]


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    stop = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < stop and process.poll() is None
        time.sleep(0.05)


@pytest.fixture(scope="module")
def shared_study(phantom: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of 5 trials that two processes worked on, this one and one that was killed in mid-trial."""
    folder = tmp_path_factory.mktemp("two")
    words = _words(cache_dir, phantom, folder, "--space", "rate", "--trials", 5)
    study = folder / "tune-resnet18-rate"
    with (folder / "log").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        other = subprocess.Popen([sys.executable, ROOT / "tune.py", *words], env=environment, stdout=log, stderr=log)

    def trains() -> bool:
        return any(path.is_file() for path in _running(study, other))

    def kill() -> None:
        both = "select count(*) from trials where state = 'RUNNING'"
        _wait_for(lambda: trains() and _query(study / "study.db", both) == [(2,)], other)
        other.kill()

    _wait_for(trains, other)
    killer = threading.Thread(target=kill)
    killer.start()
    tune.main(words)
    killer.join()
    assert other.wait() == -signal.SIGKILL, (folder / "log").read_text()
    return study


def _table(study: Path) -> list[dict[str, str]]:
    with (study / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_no_trial_is_lost_when_one_of_two_workers_is_killed(shared_study: Path) -> None:
    table = _table(shared_study)
    whole = [row for row in table if row["state"] in ("complete", "pruned")]
    dead = [row for row in table if row["state"] == "cut short"]
    assert len(whole) == 5 and len(dead) == 1 and len(table) == 6
    key = ("train.lr", "train.weight_decay")
    assert [dead[0][k] for k in key] in [[row[k] for k in key] for row in whole]
    assert len({tuple(row[k] for k in key) for row in whole}) == 5
    assert {"train.lr": "0.0005", "train.weight_decay": "0.01"}.items() <= table[0].items()  # the default
    assert len({row["worker"] for row in table}) == 2


@pytest.mark.slow
def test_a_search_leaves_the_best_weights_alone_and_a_preset_that_makes_them(
    shared_study: Path, verb: Verb, phantom: Path, tmp_path: Path
) -> None:
    whole = [row for row in _table(shared_study) if row["state"] == "complete"]
    best = max(whole, key=lambda row: float(row["value"]))
    run = shared_study / "trials" / f"{int(best['number']):04d}"
    default = next(row for row in whole if row["train.lr"] == "0.0005")
    kept = {int(best["number"]), int(default["number"])}
    assert {path.name for path in shared_study.glob("trials/*/*.pt")} == {"best.pt"}
    assert {int(path.parent.name) for path in shared_study.glob("trials/*/best.pt")} == kept
    for name in ("history.png", "importance.png"):
        assert (shared_study / name).read_bytes().startswith(b"\x89PNG")
    result = verb("test.py", "--weights", run, "--kind", "val", "--quick")
    assert result.code == 0, result.err
    metrics = json.loads((run / "val" / "metrics.json").read_text())
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(float(best["value"]), abs=1e-12)
    words = ["--config-dir", shared_study, f"preset={shared_study.name}", "--data", phantom, "data.split=0.6,0.2,0.2"]
    out = verb("train.py", *words, "--precision", "fp32", "--print-config").out
    made, found = yaml.safe_load(out), yaml.safe_load((run / "config.yaml").read_text())
    own = {"save": "", "track": ""}  # where things go, not how it learns
    assert {**made, **own} == {**found, **own}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--epochs", 2], "train.epochs=1, now it is 2"),
        (["--metric", "macro_f1"], "--metric=balanced_accuracy, now it is macro_f1"),
        (
            ["--space", "default", "--study", "resnet18-rate"],
            "another space (train.lr had another range)",
        ),
        (["data.split_seed=1"], "data.split_seed=0, now it is 1 (and 1 more)"),
    ],
)
def test_a_study_of_other_trials_is_refused(
    shared_study: Path, verb: Verb, phantom: Path, argv: list[object], word: str
) -> None:
    words = ["--data", phantom, *TINY, "--space", "rate", "--save", shared_study.parent, *argv]
    result = verb("tune.py", *words)
    assert result.code == 2
    lines = [line for line in result.err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    assert len(lines) == 1 and "--study resnet18-rate" in lines[0] and word in lines[0], lines


@pytest.mark.slow
def test_ctrl_c_leaves_a_study_that_goes_on(
    verb: Verb, phantom: Path, tmp_path: Path, ctrl_c: Callable[[], None]
) -> None:
    run = tmp_path / "tune-c" / "trials" / "0000"

    def interrupt() -> None:
        while not (run / "last.pt").is_file():
            time.sleep(0.02)
        ctrl_c()

    threading.Thread(target=interrupt, daemon=True).start()
    words = ["--data", phantom, *TINY, "--space", "rate", "--study", "c", "--save", tmp_path, "--trials", 1]
    result = verb("tune.py", *words, "--epochs", 200)
    assert result.code == 130 and "continue with: python" in result.out and "Traceback" not in result.err
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    states = _query(tmp_path / "tune-c" / "study.db", "select state from trials order by number")
    assert states == [("FAIL",), ("WAITING",)]  # the default's parameters wait
    assert not (run / "last.pt").exists()


@pytest.mark.slow
def test_a_diverging_trial_fails_and_the_search_goes_on(verb: Verb, phantom: Path, tmp_path: Path) -> None:
    space = _space(tmp_path, train__lr={"choices": [5e-4, 1e18]}, train__clip_norm={"choices": [None, 1.0]})
    words = ["--data", phantom, *TINY, "--space", space, "--study", "d", "--save", tmp_path, "train.lr=1e18"]
    result = verb("tune.py", *words, "--trials", 2, "--metric", "log_loss", "--seed", 1)
    assert result.code == 0, result.err
    table = _table(tmp_path / "tune-d")
    assert table[0]["state"] == "failed" and "not finite" in table[0]["reason"]
    assert json.loads((tmp_path / "tune-d/trials/0000/run.json").read_text())["status"] == "failed"
    assert len(table) == 2 and table[1]["state"] in ("complete", "failed")


@pytest.mark.slow
def test_a_hopeless_trial_stops_early(phantom: Path, cache_dir: Path, tmp_path: Path) -> None:
    space = read_space(_space(tmp_path, train__lr={"low": 1e-5, "high": 1e-2, "log": True}))
    words = ["data.size=32", f"data.cache_dir={cache_dir}", "data.split=0.6,0.2,0.2", "train.epochs=5"]
    keys = {"data.path": str(phantom), "init": "none", "precision": "fp32", "save": str(tmp_path / "trials")}
    config = compose_config(words, keys)
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}", 10)
    study = open_study(storage, "s", _terms(default_values(space, config, "")))
    values = dict.fromkeys(range(1, 6), 0.1)
    for _ in range(search.study.STARTUP):  # trials that no untrained network comes near
        params = {"train.lr": 1e-3}
        study.add_trial(create_trial(value=0.1, params=params, distributions=space, intermediate_values=values))
    (tmp_path / "trials").mkdir()
    _worker(study, storage, tmp_path, config=config, space=space, trials=len(study.trials)).work()
    trial = study.trials[0]
    assert trial.state == TrialState.PRUNED
    record = json.loads((tmp_path / "trials/0000/run.json").read_text())
    assert record["status"] == "pruned" and "median" in record["reason"]
    with (tmp_path / "trials/0000/history.csv").open() as file:
        losses = [float(row["valid_loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 2  # of 5: the first epoch decides nothing
    assert trial.intermediate_values == pytest.approx({1: losses[0], 2: min(losses)})


def test_a_trial_too_many_is_none(tmp_path: Path) -> None:
    """Two workers may both begin the last one: the second gives it up before it trains."""
    study, storage = _open(tmp_path, {"x": 0.0, "y": 0.0})
    study.optimize(_bowl, n_trials=2)
    _worker(study, storage, tmp_path)._run_trial()
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2 + [TrialState.FAIL]
    assert [trial.number for trial in counting(study)] == [0, 1]
    assert [row["number"] for row in rows(study, [])] == [0, 1]


@dataclass
class Postgres:
    url: str
    start: Callable[[], object]
    stop: Callable[[], object]


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A PostgreSQL server of our own."""
    if POSTGRES is None and os.environ.get("CXR_POSTGRES") == "required":
        pytest.fail("CXR_POSTGRES=required, and there is no PostgreSQL (apt-get install postgresql)")
    if POSTGRES is None:
        pytest.skip("no PostgreSQL on this machine")
    folder, programs = tmp_path / "postgres", Path(POSTGRES).resolve().parent
    folder.mkdir()
    user: dict[str, object] = {}
    if os.getuid() == 0:  # the server refuses to be root
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        for part in [folder, *folder.parents]:
            if part == Path("/tmp"):
                break
            part.chmod(0o755)
        shutil.chown(folder, "nobody", "nogroup")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    run = {"check": True, "cwd": folder, "stdout": subprocess.DEVNULL, **user}
    initdb = [programs / "initdb", "-D", data, "-U", "cxr", "--auth=trust", "--no-sync", "--no-instructions"]
    subprocess.run(initdb, **run)
    pg_ctl = [programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-m", "immediate"]
    options = ["-o", f"-p {port} -k '' -c listen_addresses=127.0.0.1 -F"]
    server = Postgres(
        f"postgresql+psycopg://cxr@127.0.0.1:{port}/postgres",
        start=lambda: subprocess.run([*pg_ctl[:-2], *options, "start"], **run),
        stop=lambda: subprocess.run([*pg_ctl, "stop"], **run),
    )
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
def test_postgresql_holds_a_study_of_several_workers(
    postgres: Postgres, verb: Verb, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study, "ALIVE", 1)
    words = ["--data", phantom, *TINY, "--space", "rate", "--storage", postgres.url, "--heartbeat", 1]
    first = verb("tune.py", *words, "--save", tmp_path / "one", "--trials", 1)
    assert first.code == 0, first.err
    study = optuna.load_study(study_name="resnet18-rate", storage=postgres.url)
    dead = study.ask()  # of a worker that dies at once
    second = verb("tune.py", *words, "--save", tmp_path / "two", "--trials", 2)  # another machine
    assert second.code == 0, second.err
    states = [trial.state.name for trial in study.trials]
    assert states.count("COMPLETE") == 2 and states[dead.number] == "FAIL"
    assert study.trials[0].params == {"train.lr": 5e-4, "train.weight_decay": 0.01}
    assert sorted(p.name for p in (tmp_path / "one/tune-resnet18-rate/trials").iterdir()) == ["0000"]
    assert not (tmp_path / "two/tune-resnet18-rate/study.db").exists()


@pytest.mark.slow
def test_a_server_that_stops_in_mid_trial_loses_nothing(
    postgres: Postgres, verb: Verb, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study, "ALIVE", 1)
    words = ["--data", phantom, *TINY, "--epochs", 8, "--space", "rate", "--storage", postgres.url, "--heartbeat", 1]
    words += ["--save", tmp_path, "--trials", 1]
    history = tmp_path / "tune-resnet18-rate/trials/0000/history.csv"

    def stop() -> None:
        while not history.is_file():
            time.sleep(0.02)
        postgres.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    cut = verb("tune.py", *words)
    stopper.join()
    assert cut.code == 2 and "Traceback" not in cut.err
    (line,) = [line for line in cut.err.replace("\r", "\n").splitlines() if "--storage" in line]
    assert "does not answer" in line and postgres.url not in line
    postgres.start()
    again = verb("tune.py", *words)
    assert again.code == 0, again.err
    assert [row["state"] for row in _table(tmp_path / "tune-resnet18-rate")] == ["cut short", "complete"]
