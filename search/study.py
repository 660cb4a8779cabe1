"""The study: where it is kept, who works on it, which trials count, and what becomes of those whose process died.

All that workers must know of each other stands in the study, so any number of them on any machines may work on one, be
killed, and go on. A trial *counts* while it waits or runs, when it is complete, when it was pruned, and when it failed
for a `reason`. One that has failed for none was cut short: it does not count, and its parameters stand in the study
once more: in the queue, or, where they have ended too many processes, as failed for that reason.
"""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from utils import UserError, atomic_write, derived_seed, log

STARTUP = 6  # trials drawn at random before the sampler and the pruner have something to learn from
MOST_DEATHS = 3  # without a word, at one set of parameters: what ends its process (memory) is not tried for ever
ALIVE = 3  # heartbeats without which a process counts as dead
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
# The study's attributes: what all its trials share, the precision that was measured for them, and its identity.
MADE_WITH, PRECISION, IDENTITY = "made_with", "precision", "identity"
DEATHS = "deaths"  # a trial's attribute: how many processes its parameters have ended


class TPEByPlace(BaseSampler):
    """TPE whose random numbers are a function of (seed, the trial's `place`): a search that was interrupted draws what
    it would have drawn, and workers never draw the same.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._tpe = TPESampler(seed=seed, n_startup_trials=STARTUP)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        seed = derived_seed(self._seed, place(study, trial)) % 2**32
        self._tpe = TPESampler(seed=seed, n_startup_trials=STARTUP)
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)


class _Storage(RDBStorage):
    def record_heartbeat(self, trial_id: int) -> None:
        """A beat that does not get through is left out: Optuna's thread would end, and so pass for a death."""
        try:
            super().record_heartbeat(trial_id)
        except (StorageInternalError, SQLAlchemyError) as error:
            log.debug(f"no heartbeat: {_first_line(error)}")


def open_storage(url: str, heartbeat: int) -> RDBStorage:
    """Any database that Optuna knows, with a heartbeat every so many seconds.

    Raises: `UserError` that names `--storage` and the address, without its password.
    """
    try:
        address = make_url(url)
    except ArgumentError:
        raise UserError("--storage: no database's address; one is postgresql+psycopg://user@host/name") from None
    shown = hide_password(url)
    # Workers of one SQLite file wait for each other; a server may have been started anew since we last spoke.
    sqlite = address.get_backend_name() == "sqlite"
    options = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
    for attempt in range(5):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats
                return _Storage(
                    url,
                    engine_kwargs=options,
                    heartbeat_interval=heartbeat,
                    grace_period=ALIVE * heartbeat,
                    heartbeat_stale_trial_callback=queue_again,
                )
        except ImportError as error:
            raise UserError(f"--storage {shown}: {error.__cause__ or error}: pip install it") from None
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            # Two workers that start at once both make the tables; the second finds them at its next attempt.
            if attempt == 4 or not any(word in str(error) for word in ("already exists", "UNIQUE", "unique")):
                raise UserError(f"--storage {shown}: {_first_line(error)}") from None
            time.sleep(0.2 * (attempt + 1))
        except (SQLAlchemyError, RuntimeError) as error:
            raise UserError(f"--storage {shown}: {_first_line(error)}") from None
    raise AssertionError("the last attempt returns or raises")


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


def open_study(
    storage: RDBStorage,
    name: str,
    direction: str,
    seed: int,
    own: dict[str, Any],
    made_with: dict[str, Any],
    precision: str = "auto",
) -> Study:
    """The study `name`, made with trial 0 in its queue if it is not there yet.

    Args:
        own: parameters of trial 0.
        made_with: what all trials share; a study that was made with something else is refused.
        precision: of all trials, if this makes the study: workers on other machines take what the first has measured.

    Raises: `UserError` that says what differs.
    """
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=2)
    options = {"study_name": name, "storage": storage, "sampler": TPEByPlace(seed), "pruner": pruner}
    try:
        study = optuna.create_study(direction=direction, **options)
    except DuplicatedStudyError:
        study = optuna.load_study(**options)
        _wait(lambda: MADE_WITH in study.user_attrs, ALIVE * storage.heartbeat_interval)
    if MADE_WITH not in study.user_attrs:  # we have made it, or who has died at it
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(own)
        study.set_user_attr(IDENTITY, uuid.uuid4().hex)
        study.set_user_attr(PRECISION, precision)
        study.set_user_attr(MADE_WITH, made_with)
    if IDENTITY not in study.user_attrs:
        raise UserError(f"--study {name}: an earlier version of tune.py made it; name another")
    if differences := _differences(study.user_attrs[MADE_WITH], made_with):
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise UserError(
            f"--study {name}: it was made with {differences[0]}{more}: its trials could not be compared with these; "
            "name another study, or ask for the same"
        )
    return study


def _wait(until: Callable[[], bool], seconds: float) -> None:
    stop = time.monotonic() + seconds
    while not until() and time.monotonic() < stop:
        time.sleep(0.1)


def describe_space(space: dict[str, BaseDistribution]) -> dict[str, str]:
    """The space as text that is equal for equal spaces."""
    return {key: distribution_to_json(distribution) for key, distribution in space.items()}


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs between two `made_with`, in words: first in the space, then in what is fixed."""
    found = []
    for key in {**before["space"], **after["space"]}:
        old, new = before["space"].get(key), after["space"].get(key)
        if old != new:
            how = "was not" if old is None else "is no more" if new is None else "was otherwise"
            found.append(f"another space ({key} {how} in it)")
    for key, old in before["fixed"].items():
        if old != (new := after["fixed"].get(key, old)):  # a key that a later version does not know says nothing
            found.append(f"{key}={old}, now it is {new}")
    return found


def counting(study: Study) -> list[FrozenTrial]:
    """The trials that count (see above), in the order of their numbers."""
    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if t.state != TrialState.FAIL or "reason" in t.user_attrs]


def rank(study: Study, number: int) -> int:
    """How many counting trials have a smaller number."""
    return sum(trial.number < number for trial in counting(study))


def place(study: Study, trial: FrozenTrial) -> int:
    """How many came before, where one that is tried again stands where it stood at first."""
    others = [t for t in study.get_trials(deepcopy=False) if "surplus" not in t.user_attrs]
    return len({first for other in others if (first := first_number(other)) < first_number(trial)})


def first_number(trial: FrozenTrial) -> int:
    """The number that a trial's parameters had when they were drawn; 0 is the default."""
    return (trial.system_attrs.get("retry_history") or [trial.number])[0]


def queue_again(study: Study, trial: FrozenTrial, died: bool = True) -> None:
    """Put the parameters of a trial that was cut short into the queue again, for whichever worker comes first.

    Args:
        died: its process ended without a word (Optuna calls this so), or by an error of its own; False: what ended it
            says nothing against the parameters, such as Ctrl-C.
    """
    history = trial.system_attrs.get("retry_history", [])  # Optuna's name for the trials that were cut short before
    if any(t.system_attrs.get("retry_history", [None])[-1] == trial.number for t in study.get_trials(deepcopy=False)):
        return  # another worker, which took this one for dead, was quicker
    deaths = trial.system_attrs.get(DEATHS, 0) + died
    reason = f"ended its process {deaths} times: too little memory?"
    gives_up = deaths >= MOST_DEATHS
    study.add_trial(
        create_trial(
            state=TrialState.FAIL if gives_up else TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={"reason": reason} if gives_up else {},
            system_attrs={**trial.system_attrs, "retry_history": [*history, trial.number], DEATHS: deaths},
        )
    )
    fate = f"are given up: {reason}" if gives_up else "are tried again"
    log.info(f"trial {trial.number} was cut short: its parameters {fate}")


def fail_dead_trials(study: Study) -> None:
    """Find the running trials whose process gives no sign of life any more, and queue them again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)


class Silent:
    """Running trials without any heartbeat: their process died before the first, and Optuna would wait for ever.

    One that has been seen running for so long that it would be dead by its heartbeat is given one, and is then found
    like any other. A live trial's own heartbeat is only refreshed by that.
    """

    def __init__(self, storage: RDBStorage) -> None:
        self._storage, self._since = storage, {}

    def look(self, study: Study) -> None:
        now, patience = time.monotonic(), ALIVE * self._storage.heartbeat_interval
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if now - self._since.setdefault(trial.number, now) > patience:
                study_id = self._storage.get_study_id_from_name(study.study_name)
                self._storage.record_heartbeat(
                    self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
                )
                self._since[trial.number] = float("inf")  # once


def hide_password(url: str) -> str:
    """A database's address for screens and logs. What no address can be read in is not shown at all."""
    try:
        address = make_url(url)
    except ArgumentError:
        return "…"
    secret = {name: "***" for name in address.query if "pass" in name.lower()}
    return address.update_query_dict(secret).render_as_string(hide_password=True)


def claim(folder: Path, study: Study) -> None:
    """Mark a study's folder as its own: the numbers of its run folders are those of this study's trials.

    Raises: `UserError` where the folder belongs to another study, such as one of this name in another database.
    """
    file, own = folder / "study.id", study.user_attrs[IDENTITY]
    used = any(run.name.isdigit() for run in (folder / "trials").iterdir())
    owner = file.read_text().strip() if file.is_file() else "nobody" if used else own
    if owner != own:
        raise UserError(f"{folder}: of another study of this name; move it away, or name another --study")
    with atomic_write(file) as out:
        out.write(f"{own}\n")
