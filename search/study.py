"""The study: its database, the workers' heartbeats, which trials count, and what becomes of trials that are cut short.

Everything that workers need to know of each other is in the study, so any number of them on any machines may work on
one, be killed, and continue. Optuna notices a worker whose heartbeat stops and queues its trial's parameters again.
A trial *counts* if it waits, runs, is complete, was pruned, or failed for a reason. One that failed without a reason
was cut short: it does not count, because its parameters are queued again.
"""

from __future__ import annotations

import contextlib
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from search.request import Search
from utils import UserError, atomic_write, derived_seed

warnings.simplefilter("ignore", ExperimentalWarning)  # Optuna's heartbeats and retries

STARTUP = 6  # random trials before the sampler and the pruner have enough to learn from
MOST_DEATHS = 3  # processes that one set of parameters may end (by its memory) before it counts as failed
ALIVE = 3  # missed heartbeats after which a process counts as dead
ATTEMPTS = 5  # at opening a database, whose tables other workers may be creating
# Attributes of the study: what all its trials share, the precision measured for them, and its identity.
MADE_WITH, PRECISION, IDENTITY = "made_with", "precision", "identity"
# Attributes of a trial: why it failed, and that something ended it which says nothing against its parameters.
REASON, INTERRUPTED = "reason", "interrupted"


class SeededTPE(TPESampler):
    """TPE whose random numbers depend only on the seed and the trial's number, so that no two workers draw the same."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed, n_startup_trials=STARTUP)
        self._search_seed = seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        super().__init__(seed=derived_seed(self._search_seed, trial.number) % 2**32, n_startup_trials=STARTUP)
        super().before_trial(study, trial)


class _Storage(RDBStorage):
    def record_heartbeat(self, trial_id: int) -> None:
        """Skip a heartbeat that fails: otherwise it would end Optuna's thread, and the process would seem dead."""
        with contextlib.suppress(StorageInternalError, SQLAlchemyError):
            super().record_heartbeat(trial_id)


def open_storage(url: str, heartbeat: int) -> RDBStorage:
    """Open any database that Optuna supports, with a heartbeat every so many seconds.

    Raises: `UserError` that names `--storage`, without the address, which may contain a password.
    """
    # Workers wait for each other's locks on an SQLite file; a server may have restarted since the last query.
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    patience = {"heartbeat_interval": heartbeat, "grace_period": ALIVE * heartbeat}
    retry = RetryHeartbeatStaleTrialCallback(max_retry=MOST_DEATHS - 1)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _Storage(url, engine_kwargs=options, heartbeat_stale_trial_callback=retry, **patience)
        except (ImportError, SQLAlchemyError, RuntimeError) as error:
            # Workers that start together all create the tables; all but one fail, and find them at the next attempt.
            reason = str(getattr(error, "orig", None) or error.__cause__ or error).strip().splitlines()[0]
            if not any(word in str(error).lower() for word in ("exists", "unique")):
                break
            time.sleep(0.1 * attempt)
    example = "postgresql+psycopg://user@host/name, with its driver installed by pip"
    raise UserError(f"--storage: the database cannot be opened ({reason}); expected, e.g., {example}")


def open_study(storage: RDBStorage, search: Search, fixed: dict[str, Any], precision: str) -> Study:
    """Open the study of a search; if there is none, create it with trial 0 in its queue.

    Args:
        fixed: everything besides the space that all trials share, by key.
        precision: of all trials; workers on other machines use what the first worker has measured.

    Raises: `UserError` for a study with another space or other fixed keys, which names the difference.
    """
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=2)
    sampler = SeededTPE(search.config.seed)
    options = {"study_name": search.name, "storage": storage, "sampler": sampler, "pruner": pruner}
    try:
        study = optuna.create_study(direction=search.metric.direction, **options)
    except DuplicatedStudyError:
        study = optuna.load_study(**options)
        stop = time.monotonic() + ALIVE * storage.heartbeat_interval
        while MADE_WITH not in study.user_attrs and time.monotonic() < stop:  # its creator completes it
            time.sleep(0.1)
    space = {key: distribution_to_json(distribution) for key, distribution in search.space.items()}
    if MADE_WITH not in study.user_attrs:  # this worker created it, or its creator died
        study.enqueue_trial(search.default, skip_if_exists=True)
        study.set_user_attr(IDENTITY, uuid.uuid4().hex)
        study.set_user_attr(PRECISION, precision)
        study.set_user_attr(MADE_WITH, {"space": space, "fixed": fixed})
    if IDENTITY not in study.user_attrs:
        raise UserError(f"--study {search.name}: an older version of tune.py created it; choose another --study")
    before = study.user_attrs[MADE_WITH]
    keys = [key for key in {**before["space"], **space} if before["space"].get(key) != space.get(key)]
    differences = [f"another space ({', '.join(keys)})"] * bool(keys)
    for key, old in before["fixed"].items():
        if old != (new := fixed.get(key, old)):  # keys that only one version of the project has do not count
            differences.append(f"{key}={old}, now it is {new}")
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise UserError(
            f"--study {search.name}: created with {differences[0]}{more}, so its trials are not comparable; choose "
            "another --study, or use the same settings"
        )
    return study


def claim(folder: Path, study: Study) -> None:
    """Mark a study's folder as its own: the names of its run folders are the numbers of this study's trials.

    Raises: `UserError` if the folder belongs to another study, such as one of the same name in another database.
    """
    file, identity = folder / "study.id", study.user_attrs[IDENTITY]
    unclaimed = "" if any((folder / "trials").iterdir()) else identity
    if (file.read_text().strip() if file.is_file() else unclaimed) != identity:
        raise UserError(f"{folder}: belongs to another study of this name; move it, or choose another --study")
    with atomic_write(file) as out:
        out.write(f"{identity}\n")


def failure(trial: FrozenTrial) -> str | None:
    """Return the reason why a trial failed; None for one that did not fail, or was cut short."""
    if trial.state != TrialState.FAIL:
        return None
    if REASON in trial.user_attrs:
        return trial.user_attrs[REASON]
    deaths = len(RetryHeartbeatStaleTrialCallback.retry_history(trial)) + (INTERRUPTED not in trial.user_attrs)
    return f"ended its process {deaths} times: too little memory?" if deaths >= MOST_DEATHS else None


def first_number(trial: FrozenTrial) -> int:
    """Return the number of the trial that first had these parameters; 0 is the default."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if first is None else first


def counting(study: Study) -> list[FrozenTrial]:
    """Return the trials that count, in the order of their numbers."""
    return [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.FAIL or failure(t)]


def queue_again(study: Study, number: int) -> None:
    """Queue the parameters of a trial again that was interrupted; this is not counted as a death of its process."""
    trial = study.get_trials(deepcopy=False)[number]
    parameters = {"params": trial.params, "distributions": trial.distributions}
    history = {"failed_trial": number, **trial.system_attrs}
    study.add_trial(optuna.create_trial(state=TrialState.WAITING, system_attrs=history, **parameters))
