"""Searches on a PostgreSQL server of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest

import search.study
from tests.helpers.searches import TINY, read_table
from tests.helpers.verbs import Verb

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), shutil.which("initdb"))


@dataclass
class Postgres:
    url: str
    start: Callable[[], object]
    stop: Callable[[], object]


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    """Start a PostgreSQL server for one test."""
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
    dead = study.ask()  # of a worker that dies immediately
    second = verb("tune.py", *words, "--save", tmp_path / "two", "--trials", 2)  # another machine
    assert second.code == 0, second.err
    states = [trial.state.name for trial in study.trials]
    assert states.count("COMPLETE") == 2 and states[dead.number] == "FAIL"
    assert study.trials[0].params == {"train.lr": 5e-4, "train.weight_decay": 0.01}
    assert sorted(p.name for p in (tmp_path / "one/tune-resnet18-rate/trials").iterdir()) == ["0000"]
    assert not (tmp_path / "two/tune-resnet18-rate/study.db").exists()


@pytest.mark.slow
def test_a_server_that_stops_during_a_trial_loses_nothing(
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
    assert [row["state"] for row in read_table(tmp_path / "tune-resnet18-rate")] == ["cut short", "complete"]
