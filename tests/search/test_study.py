"""The study: what survives interruptions, dead workers and other studies. Optuna is real, the trials are a function."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

import search.results
import search.run
import search.study
from search.metric import Metric
from search.results import format_table, tidy, trial_table
from search.run import Worker
from search.study import (
    INTERRUPTED,
    MADE_WITH,
    claim,
    counting,
    failure,
    first_number,
    open_storage,
    open_study,
    queue_again,
)
from tests.helpers.searches import bowl, open_study_of_bowl, search_of
from utils import UserError, log, sqlite_address


def test_a_continued_search_draws_what_it_would_have_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.study, "STARTUP", 2)
    drawn = []
    for steps in ((6,), (4, 2)):
        folder = tmp_path / str(steps)
        folder.mkdir()
        for trials in steps:
            study, _ = open_study_of_bowl(folder, {"x": 0.0, "y": 0.0}, seed=5)
            study.optimize(bowl, n_trials=trials)
        drawn.append([trial.params for trial in study.trials])
    assert drawn[0] == drawn[1] and drawn[0][0] == {"x": 0, "y": 0}
    assert len({tuple(params.values()) for params in drawn[0]}) == 6


def test_a_dead_trial_is_retried_with_and_without_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.study, "ALIVE", 1)
    study, storage = open_study_of_bowl(tmp_path, {"x": 3.0, "y": 1.0})
    for _ in range(2):
        bowl(study.ask())
    first = study.get_trials()[0]
    storage.record_heartbeat(first._trial_id)
    worker, seen, stop = Worker(study, storage, search_of(tmp_path, {})), set(), time.monotonic() + 15
    while len(study.trials) < 4 and time.monotonic() < stop:
        worker.retry_dead_trials(seen)
        time.sleep(0.2)
    before, after = study.trials[:2], study.trials[2:]
    assert [trial.state for trial in before] == [TrialState.FAIL] * 2
    assert [trial.state for trial in after] == [TrialState.WAITING] * 2
    assert [trial.params for trial in before] == [trial.params for trial in after]
    assert after[0].params == {"x": 3, "y": 1}
    assert [trial.number for trial in counting(study)] == [2, 3]


def test_parameters_that_keep_ending_their_process_fail_for_that_and_interruptions_do_not_count(
    tmp_path: Path,
) -> None:
    """Parameters that are cut short are queued again: none are lost, those of the default least of all."""
    study, storage = open_study_of_bowl(tmp_path, {"x": 3.0, "y": 1.0})

    def cut_short(died: bool) -> None:
        trial = study.ask()
        bowl(trial)
        if not died:
            trial.set_user_attr(INTERRUPTED, True)
            queue_again(study, trial.number)
        study.tell(trial, state=TrialState.FAIL)
        if died:  # as Optuna does when the heartbeat has stopped
            storage.get_heartbeat_stale_trial_callback()(study, study.get_trials()[trial.number])

    for died in (False, False, True, False, True, False):
        cut_short(died)
        (waiting,) = counting(study)
        assert waiting.state == TrialState.WAITING and waiting.params == {"x": 3, "y": 1}
    cut_short(True)
    (given_up,) = counting(study)
    assert given_up.state == TrialState.FAIL and given_up.params == {"x": 3, "y": 1} and first_number(given_up) == 0
    table = trial_table(study, ["x"])
    assert [*table["state"]] == ["cut short"] * 6 + ["failed"]
    assert "ended its process 3 times" in table["reason"][6]
    assert study.ask().number == 7  # the search continues


def test_the_best_weights_stay_when_another_worker_ends_its_trial_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = open_study_of_bowl(tmp_path, {"x": 3.0, "y": 1.0})
    study.optimize(bowl, n_trials=2)
    trial = study.ask()
    for number in range(3):
        (tmp_path / f"trials/{number:04d}").mkdir(parents=True)
        (tmp_path / f"trials/{number:04d}/best.pt").write_bytes(b"")
    read = study.get_trials

    def read_while_it_ends(*args: object, **kwargs: object) -> list[optuna.trial.FrozenTrial]:
        trials = read(*args, **kwargs)
        if not trials[2].state.is_finished():
            trial.storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [-1.0])
        return trials

    monkeypatch.setattr(study, "get_trials", read_while_it_ends)
    tidy(study, tmp_path)
    assert (tmp_path / "trials/0002/best.pt").exists()
    monkeypatch.undo()
    tidy(study, tmp_path)
    assert [path.parent.name for path in sorted(tmp_path.glob("trials/*/best.pt"))] == ["0000", "0002"]


def test_a_folder_belongs_to_one_study(tmp_path: Path) -> None:
    """A study of the same name in another database must not use or delete what this one has trained."""
    for name in ("a", "b"):
        (tmp_path / name / "trials").mkdir(parents=True)
    study, other = (open_study_of_bowl(tmp_path / name, {"x": 0.0, "y": 0.0})[0] for name in ("a", "b"))
    claim(tmp_path / "a", study)
    (tmp_path / "a/trials/0000").mkdir()
    claim(tmp_path / "a", open_study_of_bowl(tmp_path / "a", {"x": 0.0, "y": 0.0})[0])  # the study continues
    for _ in range(2):
        with pytest.raises(UserError, match="belongs to another study of this name"):
            claim(tmp_path / "a", other)
    (tmp_path / "b/trials/0000").mkdir()  # of an unknown study
    with pytest.raises(UserError, match="belongs to another study of this name"):
        claim(tmp_path / "b", other)


def test_a_trial_too_many_does_not_count(tmp_path: Path) -> None:
    """Two workers may both begin the last trial: the second gives it up before it trains."""
    study, storage = open_study_of_bowl(tmp_path, {"x": 0.0, "y": 0.0})
    study.optimize(bowl, n_trials=2)
    (tmp_path / "trials").mkdir()
    Worker(study, storage, search_of(tmp_path, {})).run_trial()
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2 + [TrialState.FAIL]
    assert [trial.number for trial in counting(study)] == [0, 1]


def test_a_trial_that_another_worker_has_taken_over_ends_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study, storage = open_study_of_bowl(tmp_path, {"x": 0.0, "y": 0.0})

    def train(config: object, name: str, report: Callable[[dict, object], None]) -> None:
        storage.set_trial_state_values(study.trials[int(name)]._trial_id, TrialState.FAIL)
        report({"epoch": 1, "valid_loss": 1.0}, None)

    monkeypatch.setattr(search.run, "train", train)
    monkeypatch.setattr(Metric, "value", lambda self, predictions: 0.5)
    log.addHandler(caplog.handler)
    Worker(study, storage, search_of(tmp_path, {})).run_trial()
    log.removeHandler(caplog.handler)
    assert "took its parameters over" in caplog.text
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] and failure(study.trials[0]) is None


def test_a_long_table_is_that_of_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, _ = open_study_of_bowl(tmp_path, {"x": 0.0, "y": 0.0})
    study.optimize(bowl, n_trials=4)
    assert len(format_table(study, ["x", "y"]).splitlines()) == 1 + 4
    monkeypatch.setattr(search.results, "MOST_ROWS", 2)
    _, first, second, note = format_table(study, ["x", "y"]).splitlines()
    best = sorted(study.trials, key=lambda trial: trial.value)
    assert [int(line.split()[0]) for line in (first, second)] == [trial.number for trial in best[:2]]
    assert note == "the best 2 of 4 trials; trials.csv has all of them"


def test_a_study_of_an_older_version_is_refused(tmp_path: Path) -> None:
    study, storage = open_study_of_bowl(tmp_path, {"x": 0.0, "y": 0.0})
    stored = study.user_attrs[MADE_WITH]
    old = optuna.create_study(study_name="old", storage=storage)
    old.set_user_attr(MADE_WITH, stored)
    with pytest.raises(UserError, match="--study old: an older version"):
        open_study(storage, search_of(tmp_path, {}, name="old"), {}, "auto")


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b c", "é"])
def test_a_study_is_stored_in_its_folder_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    storage = open_storage(sqlite_address(tmp_path / name / "study.db"), 1)
    study = open_study(storage, search_of(tmp_path, {}), {}, "auto")
    assert (tmp_path / name / "study.db").is_file() and study.study_name == "s"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_storage_that_cannot_be_opened_is_refused_without_its_password() -> None:
    for url in ("postgresql:secret", "nothing://user:secret@host/db"):
        with pytest.raises(UserError, match="--storage") as error:
            open_storage(url, 1)
        assert "secret" not in str(error.value) and "\n" not in str(error.value)
