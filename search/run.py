"""A search: prepare what its trials share, train one after another, and show the results."""

from __future__ import annotations

import hashlib
import math
import os
import socket
import time
from dataclasses import dataclass, replace
from typing import Any

import optuna
import torch
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from command_line import quiet_screen, typed_command
from dataset.loading import Dataset
from evaluation.predictions import Predictions
from search.request import Search, fixed_keys
from search.results import best_and_default, result_line, state_of, tidy, write_results
from search.space import suggest, with_values
from search.study import INTERRUPTED, PRECISION, REASON, claim, counting, open_storage, open_study, queue_again
from training.record import Pruned
from training.trainer import prepare, train
from utils import UserError, best_epoch, count, log, make_folder, sqlite_address

# What may end a worker and says nothing against the trial: Ctrl-C, a full disk, a database that is gone.
NOT_THE_TRIALS = (KeyboardInterrupt, OSError, StorageInternalError, SQLAlchemyError)


def run_search(search: Search) -> None:
    """Work on the study until it is complete; write and show its results even if that ends early.

    Raises: `UserError`.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        _run_search(search)
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"--storage: the study's database does not answer ({reason}); try again later") from None


def _run_search(search: Search) -> None:
    url, heartbeat = search.arguments.storage, search.arguments.heartbeat
    storage = open_storage(url, heartbeat) if url else None
    # Decode the data once for all trials, and fail early for what every trial would fail for.
    training = prepare(search.config)
    dataset, config, precision = training.dataset, training.learner.config, training.learner.precision
    del training
    search.metric.check_class(dataset.classes)
    fixed = fixed_keys(search) | {"the images and their split": images_digest(dataset)}
    make_folder(search.folder / "trials", "--save")
    storage = storage or open_storage(sqlite_address(search.folder / "study.db"), heartbeat)
    study = open_study(storage, search, fixed, config.precision if "model" in search.space else precision)
    claim(search.folder, study)
    images, keys = count(len(dataset.images("val")), "validation image"), count(len(search.space), "key")
    log.info(f"study {search.name}: {search.metric.words} of {images}, {keys}")
    search = replace(search, config=replace(config, precision=study.user_attrs[PRECISION]))
    try:
        Worker(study, storage, search).work()
    except BaseException:
        log.info(f"continue with: {typed_command()}")
        raise
    finally:
        write_results(study, search)


def images_digest(dataset: Dataset) -> str:
    """Return 16 hexadecimal digits that identify the training and validation images. Raises: `UserError` for none."""
    lines = []
    for split in ("train", "val"):
        records = dataset.images(split).records
        if not len(records):
            raise UserError(f"--data: there are no images in the split {split}; change data.split")
        lines += sorted(split + records["sha256"] + records["label"])
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Worker:
    """One process that works on a study."""

    study: Study
    storage: RDBStorage
    search: Search

    def work(self) -> None:
        """Run trials until all that count are done; none begins after `--timeout` seconds.

        At the end, wait for the trials of other workers, to take over those whose worker dies.
        """
        arguments, words = self.search.arguments, self.search.metric.words
        stop = time.monotonic() + (math.inf if arguments.timeout is None else arguments.timeout)
        seen: set[int] = set()
        with tqdm(total=arguments.trials, desc="trials", unit="trial") as bar:
            while time.monotonic() < stop:
                self.retry_dead_trials(seen)
                states = [trial.state for trial in counting(self.study)]
                bar.n = min(sum(state.is_finished() for state in states), arguments.trials)
                best, _ = best_and_default(self.study, self.study.get_trials(deepcopy=False))
                bar.set_postfix_str(f"best {words} {best.value:.4f}, trial {best.number}" if best else "")
                if len(states) < arguments.trials or TrialState.WAITING in states:
                    self.run_trial()
                elif waiting := states.count(TrialState.RUNNING):
                    bar.set_description(f"waiting for {count(waiting, 'trial')} of other workers")
                    time.sleep(self.storage.heartbeat_interval)
                else:
                    break

    def retry_dead_trials(self, seen: set[int]) -> None:
        """Fail the running trials whose heartbeat has stopped; Optuna then queues their parameters again.

        Optuna never looks at a trial whose process died before its first heartbeat. Each running trial is therefore
        given one when it is first `seen`, which changes nothing for a live trial.
        """
        fail_stale_trials(self.study)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in seen:
                self.storage.record_heartbeat(trial._trial_id)
                seen.add(trial.number)

    def run_trial(self) -> None:
        """Run one trial and log its result. Raises: what ends the worker."""
        failures = (UserError, torch.OutOfMemoryError)
        try:
            self.study.optimize(self._objective, n_trials=1, catch=failures, callbacks=[self._show_and_tidy])
        except ValueError as error:
            if "Cannot tell" not in str(error):  # Optuna refuses the result of a trial that was failed meanwhile
                raise
            log.warning("another worker considered a trial of this one dead and took its parameters over")

    def _show_and_tidy(self, study: Study, trial: FrozenTrial) -> None:
        if state_of(trial) != "cut short":
            log.info(result_line(study, trial, self.search.metric))
        tidy(study, self.search.folder)

    def _objective(self, trial: Trial) -> float:
        """Train with the parameters that the sampler draws, and return the metric for Optuna.

        After each epoch, report what the trial would be worth if it ended here, the metric of the `best.pt` so far on
        the validation images, and stop a hopeless one.
        """
        began, history, metric = time.monotonic(), [], self.search.metric
        value: float | None = None
        if sum(other.number < trial.number for other in counting(self.study)) >= self.search.arguments.trials:
            trial.set_user_attr(INTERRUPTED, True)
            raise UserError("another worker began the last trial first")

        def report(row: dict[str, Any], predictions: Predictions) -> None:
            nonlocal value
            history.append(row)
            if best_epoch(history) is row:
                value = metric.value(predictions)
            if value is not None:
                trial.report(value, row["epoch"])
                if row["epoch"] < config.train.epochs and trial.should_prune():
                    raise Pruned(f"after epoch {row['epoch']}: {metric.words} {value:.4f} is worse than the median's")

        try:
            config = with_values(self.search.config, suggest(trial, self.search.space))
            trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
            with quiet_screen():
                train(config, f"{trial.number:04d}", report=report)
            if value is None:
                raise UserError(f"{metric.words} is undefined on the validation images")
            trial.set_user_attr("best_epoch", best_epoch(history)["epoch"])
        except Pruned:
            raise optuna.TrialPruned from None
        except NOT_THE_TRIALS:
            trial.set_user_attr(INTERRUPTED, True)
            queue_again(self.study, trial.number)
            raise
        except Exception as error:
            trial.set_user_attr(REASON, (str(error) or type(error).__name__).splitlines()[0])
            raise
        finally:
            trial.set_user_attr("seconds", round(time.monotonic() - began, 2))
            trial.set_user_attr("epochs", len(history))
        return value
