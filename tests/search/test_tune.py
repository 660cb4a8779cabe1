"""tune.py with real trainings: two workers, interruptions, failures, early stops, and what it leaves."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState, create_trial

import search.study
import tune
from config import compose_config
from search.request import read_search, words_beside_preset
from search.results import write_preset
from search.run import Worker
from search.space import default_values, read_space, with_values
from search.study import open_storage, open_study
from tests.helpers.searches import TINY, read_table, search_of, write_space
from tests.helpers.verbs import ROOT, Verb


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
    preset = write_preset(trial, replace(asked, folder=tmp_path / "own"))
    composed = compose_config([f"preset={preset}", *words_beside_preset(asked)], folder=tmp_path / "own")
    outputs = {"save": composed.save, "track": composed.track}
    assert composed == replace(with_values(asked.config, params), **outputs)


def _words(cache_dir: Path, phantom: Path, folder: Path, *argv: object) -> list[str]:
    words = ["--data", phantom, *TINY, f"data.cache_dir={cache_dir}", "--save", folder, "--heartbeat", 1, *argv]
    return [str(word) for word in words]


def _query(database: Path, query: str) -> list[tuple]:
    """Return the rows of a query of a study's database; none while there is no database."""
    if not database.is_file():
        return []
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20)) as connection:
        try:
            return connection.execute(query).fetchall()
        except sqlite3.OperationalError:  # no tables yet
            return []


def _running(study: Path, process: subprocess.Popen) -> list[Path]:
    """Return the run.json of the trials that a process runs."""
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
    """Return the folder of a study of 5 trials by two processes: this one, and one that was killed during a trial."""
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


@pytest.mark.slow
def test_no_trial_is_lost_when_one_of_two_workers_is_killed(shared_study: Path) -> None:
    table = read_table(shared_study)
    whole = [row for row in table if row["state"] in ("complete", "pruned")]
    dead = [row for row in table if row["state"] == "cut short"]
    assert len(whole) == 5 and len(dead) == 1 and len(table) == 6
    key = ("train.lr", "train.weight_decay")
    assert [dead[0][k] for k in key] in [[row[k] for k in key] for row in whole]
    assert len({tuple(row[k] for k in key) for row in whole}) == 5
    assert {"train.lr": "0.0005", "train.weight_decay": "0.01"}.items() <= table[0].items()  # the default
    assert len({row["worker"] for row in table}) == 2


@pytest.mark.slow
def test_a_search_leaves_the_best_weights_and_a_preset_that_reproduces_them(
    shared_study: Path, verb: Verb, phantom: Path, tmp_path: Path
) -> None:
    whole = [row for row in read_table(shared_study) if row["state"] == "complete"]
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
    made, stored = yaml.safe_load(out), yaml.safe_load((run / "config.yaml").read_text())
    outputs = {"save": "", "track": ""}  # outputs, not learning
    assert {**made, **outputs} == {**stored, **outputs}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--epochs", 2], "train.epochs=1, now it is 2"),
        (["--metric", "macro_f1"], "--metric=balanced_accuracy, now it is macro_f1"),
        (
            ["--space", "default", "--study", "resnet18-rate"],
            "created with another space (train.lr,",
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
def test_ctrl_c_leaves_a_study_that_can_continue(
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
def test_a_diverging_trial_fails_and_the_search_continues(verb: Verb, phantom: Path, tmp_path: Path) -> None:
    space = write_space(tmp_path, train__lr={"choices": [5e-4, 1e18]}, train__clip_norm={"choices": [None, 1.0]})
    words = ["--data", phantom, *TINY, "--space", space, "--study", "d", "--save", tmp_path, "train.lr=1e18"]
    result = verb("tune.py", *words, "--trials", 2, "--metric", "log_loss", "--seed", 1)
    assert result.code == 0, result.err
    table = read_table(tmp_path / "tune-d")
    assert table[0]["state"] == "failed" and "not finite" in table[0]["reason"]
    assert json.loads((tmp_path / "tune-d/trials/0000/run.json").read_text())["status"] == "failed"
    assert len(table) == 2 and table[1]["state"] in ("complete", "failed")


@pytest.mark.slow
def test_a_hopeless_trial_stops_early(phantom: Path, cache_dir: Path, tmp_path: Path) -> None:
    space = read_space(write_space(tmp_path, train__lr={"low": 1e-5, "high": 1e-2, "log": True}))
    words = ["data.size=32", f"data.cache_dir={cache_dir}", "data.split=0.6,0.2,0.2", "train.epochs=5"]
    keys = {"data.path": str(phantom), "init": "none", "precision": "fp32", "save": str(tmp_path / "trials")}
    config = compose_config(words, keys)
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}", 10)
    arguments = argparse.Namespace(trials=search.study.STARTUP + 1, timeout=None)
    given = {"config": config, "space": space, "arguments": arguments}
    asked = search_of(tmp_path, default_values(space, config, ""), **given)
    study = open_study(storage, asked, {}, "fp32")
    values = dict.fromkeys(range(1, 6), 0.1)
    for _ in range(search.study.STARTUP):  # trials far better than an untrained network
        params = {"train.lr": 1e-3}
        study.add_trial(create_trial(value=0.1, params=params, distributions=space, intermediate_values=values))
    (tmp_path / "trials").mkdir()
    Worker(study, storage, asked).work()
    trial = study.trials[0]
    assert trial.state == TrialState.PRUNED
    record = json.loads((tmp_path / "trials/0000/run.json").read_text())
    assert record["status"] == "pruned" and "median" in record["reason"]
    with (tmp_path / "trials/0000/history.csv").open() as file:
        losses = [float(row["valid_loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 2  # of 5: the first epoch decides nothing
    assert trial.intermediate_values == pytest.approx({1: losses[0], 2: min(losses)})
