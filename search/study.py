"""The study: its database, the workers' heartbeats, which trials count, and what becomes of trials that are cut short.

Everything that workers need to know of each other is in the study, so any number of them on any machines may work on
one, be killed, and continue. Optuna notices a worker whose heartbeat stops and queues its trial's parameters again.
A trial *counts* if it waits, runs, is complete, was pruned, or failed for a reason. One that failed without a reason
was cut short: it does not count, because its parameters are queued again.
"""

from __future__ import annotations

import time
import uuid
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from command_line import hide_password
from utils import UserError, atomic_write, derived_seed, log

warnings.simplefilter("ignore", ExperimentalWarning)  # Optuna's heartbeats and retries

STARTUP = 6  # random trials before the sampler and the pruner have enough to learn from
MOST_DEATHS = 3  # processes that one set of parameters may end (by its memory) before it counts as failed
ALIVE = 3  # missed heartbeats after which a process counts as dead
ATTEMPTS = 5  # at creating the tables of a database, while other workers do the same
# Attributes of the study: what all its trials share, the precision measured for them, and its identity.
MADE_WITH, PRECISION, IDENTITY = "made_with", "precision", "identity"
# Attributes of a trial: why it failed, that it is one too many, and how many attempts at its parameters were cut short
# by something that says nothing against them.
REASON, SURPLUS, INTERRUPTIONS = "reason", "surplus", "interruptions"


class TPEByPlace(TPESampler):
    """TPE whose random numbers depend only on the seed and the trial's `place`.

    An interrupted search therefore draws what it would have drawn, and no two workers draw the same.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed, n_startup_trials=STARTUP)
        self._search_seed = seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        seed = derived_seed(self._search_seed, place(study, trial)) % 2**32
        super().__init__(seed=seed, n_startup_trials=STARTUP)
        super().before_trial(study, trial)


class _Storage(RDBStorage):
    def record_heartbeat(self, trial_id: int) -> None:
        """Skip a heartbeat that fails: otherwise it would end Optuna's thread, and the process would seem dead."""
        try:
            super().record_heartbeat(trial_id)
        except (StorageInternalError, SQLAlchemyError) as error:
            log.debug(f"no heartbeat: {_first_line(error)}")


def open_storage(url: str, heartbeat: int) -> RDBStorage:
    """Open any database that Optuna supports, with a heartbeat every so many seconds.

    Raises: `UserError` that names `--storage` and the address, without its password.
    """
    try:
        sqlite = make_url(url).get_backend_name() == "sqlite"
    except ArgumentError:
        raise UserError("--storage: not a database URL; expected, e.g., postgresql+psycopg://user@host/name") from None
    # Workers wait for each other's locks on an SQLite file; a server may have restarted since the last query.
    options = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _Storage(
                url,
                engine_kwargs=options,
                heartbeat_interval=heartbeat,
                grace_period=ALIVE * heartbeat,
                heartbeat_stale_trial_callback=retry,
            )
        except ImportError as error:
            raise UserError(f"--storage {hide_password(url)}: {error.__cause__ or error}: pip install it") from None
        except (SQLAlchemyError, RuntimeError) as error:
            # Workers that start together all create the tables; all but one fail, and find them at the next attempt.
            raced = isinstance(error, IntegrityError | OperationalError | ProgrammingError)
            raced &= any(word in str(error).lower() for word in ("already exists", "unique"))
            if not raced or attempt == ATTEMPTS:
                raise UserError(f"--storage {hide_password(url)}: {_first_line(error)}") from None
            time.sleep(0.2 * attempt)
    raise AssertionError("the last attempt returns or raises")


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a study is created with.

    Attributes:
        direction: `minimize` or `maximize`.
        seed: of the sampler.
        default: parameters of trial 0.
        space: the search space, as `describe_space` gives it.
        fixed: everything else that all trials share, by key.
        precision: of all trials; workers on other machines use what the first worker has measured.
    """

    direction: str
    seed: int
    default: dict[str, Any]
    space: dict[str, str]
    fixed: dict[str, Any]
    precision: str = "auto"


def open_study(storage: RDBStorage, name: str, terms: Terms) -> Study:
    """Open the study `name`; if there is none, create it with trial 0 in its queue.

    Raises: `UserError` for a study with another space or other fixed keys, which names the difference.
    """
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=2)
    options = {"study_name": name, "storage": storage, "sampler": TPEByPlace(terms.seed), "pruner": pruner}
    try:
        study = optuna.create_study(direction=terms.direction, **options)
    except DuplicatedStudyError:
        study = optuna.load_study(**options)
        stop = time.monotonic() + ALIVE * storage.heartbeat_interval
        while MADE_WITH not in study.user_attrs and time.monotonic() < stop:  # its creator completes it
            time.sleep(0.1)
    made_with = {"space": terms.space, "fixed": terms.fixed}
    if MADE_WITH not in study.user_attrs:  # this worker created it, or its creator died
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(terms.default)
        study.set_user_attr(IDENTITY, uuid.uuid4().hex)
        study.set_user_attr(PRECISION, terms.precision)
        study.set_user_attr(MADE_WITH, made_with)
    if IDENTITY not in study.user_attrs:
        raise UserError(f"--study {name}: created by an earlier version of tune.py; choose another name")
    if differences := _differences(study.user_attrs[MADE_WITH], made_with):
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise UserError(
            f"--study {name}: it was created with {differences[0]}{more}, so its trials are not comparable; choose "
            "another --study, or use the same settings"
        )
    return study


def describe_space(space: dict[str, BaseDistribution]) -> dict[str, str]:
    """Return the space as text that is equal for equal spaces."""
    return {key: distribution_to_json(distribution) for key, distribution in space.items()}


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the differences of two `made_with` in words, those of the space first."""
    differences = []
    for key in {**before["space"], **after["space"]}:
        old, new = before["space"].get(key), after["space"].get(key)
        if old != new:
            how = "was not in it" if old is None else "is no longer in it" if new is None else "had another range"
            differences.append(f"another space ({key} {how})")
    for key, old in before["fixed"].items():
        if old != (new := after["fixed"].get(key, old)):  # keys that only one version of the project has do not count
            differences.append(f"{key}={old}, now it is {new}")
    return differences


def failure(trial: FrozenTrial) -> str | None:
    """Return the reason why a trial failed; None for one that did not fail, is surplus, or was cut short."""
    attributes = trial.user_attrs
    if trial.state != TrialState.FAIL or SURPLUS in attributes or REASON in attributes:
        return attributes.get(REASON)
    deaths = len([*_earlier_attempts(trial), trial]) - attributes.get(INTERRUPTIONS, 0)
    return f"ended its process {deaths} times: too little memory?" if deaths >= MOST_DEATHS else None


def _earlier_attempts(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the trials with the same parameters that were cut short before."""
    return trial.system_attrs.get("retry_history", [])  # the key of Optuna's RetryHeartbeatStaleTrialCallback


def counting(study: Study) -> list[FrozenTrial]:
    """Return the trials that count, in the order of their numbers."""
    return [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.FAIL or failure(t)]


def place(study: Study, trial: FrozenTrial) -> int:
    """Return how many parameters were drawn before a trial's. A retried trial keeps its place."""
    others = [t for t in study.get_trials(deepcopy=False) if SURPLUS not in t.user_attrs]
    return len({first for other in others if (first := first_number(other)) < first_number(trial)})


def first_number(trial: FrozenTrial) -> int:
    """Return the number of the trial that first had these parameters; 0 is the default."""
    return [*_earlier_attempts(trial), trial.number][0]


def retry(study: Study, trial: FrozenTrial) -> None:
    """Queue the parameters of a trial again that was cut short; after `MOST_DEATHS` ended processes, give them up."""
    reason = failure(trial)
    if reason is None:
        RetryHeartbeatStaleTrialCallback()(study, trial)
    log.info(f"trial {trial.number} was cut short: {f'it {reason}' if reason else 'its parameters are tried again'}")


def claim(folder: Path, study: Study) -> None:
    """Mark a study's folder as its own: the names of its run folders are the numbers of this study's trials.

    Raises: `UserError` if the folder belongs to another study, such as one of the same name in another database.
    """
    file, identity = folder / "study.id", study.user_attrs[IDENTITY]
    used = any(run.name.isdigit() for run in (folder / "trials").iterdir())
    owner = file.read_text().strip() if file.is_file() else "unknown" if used else identity
    if owner != identity:
        raise UserError(f"{folder}: belongs to another study of this name; move it, or choose another --study")
    with atomic_write(file) as out:
        out.write(f"{identity}\n")
