"""A worker: train one trial after another until the study has as many as it should."""

from __future__ import annotations

import math
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import torch
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from command_line import quiet_screen
from config import Config
from search.metric import Metric
from search.results import best_trial, result_line, tidy
from search.space import Space, suggest, with_values
from search.study import ALIVE, INTERRUPTIONS, REASON, SURPLUS, counting, retry
from training.ending import Pruned
from training.trainer import train
from utils import UserError, best_epoch, count, log

if TYPE_CHECKING:
    from evaluation.predictions import Predictions

# What may end a worker and says nothing against the trial: Ctrl-C, a full disk, a database that is gone.
NOT_THE_TRIALS = (KeyboardInterrupt, OSError, StorageInternalError, SQLAlchemyError)


class _Failed(Exception):
    """The trial has no value; the study holds the reason, if there is one."""


@dataclass(kw_only=True)
class Worker:
    """One process that works on a study.

    Attributes:
        config: what all trials share; `save` is the parent of their run folders.
        folder: of the study.
        trials: how many the study will have, those of all workers together.
    """

    study: Study
    storage: RDBStorage
    config: Config
    space: Space
    metric: Metric
    folder: Path
    trials: int
    _seen: set[int] = field(init=False, default_factory=set)
    _number: int | None = field(init=False, default=None)
    _error: BaseException | None = field(init=False, default=None)

    def work(self, timeout: float | None = None) -> None:
        """Run trials until all that count are done; none begins after `timeout` seconds.

        At the end, wait for the trials of other workers, to take over those whose worker dies. A trial that is cut
        short (by Ctrl-C, a full disk) is queued again.
        """
        stop = time.monotonic() + (math.inf if timeout is None else timeout)
        waiting = False
        with tqdm(total=self.trials, desc="trials", unit="trial") as bar:
            while time.monotonic() < stop:
                self.retry_dead_trials()
                self._update(bar)
                if self._has_work():
                    self.run_trial()
                elif running := sum(trial.state == TrialState.RUNNING for trial in counting(self.study)):
                    if not waiting:
                        patience = ALIVE * self.storage.heartbeat_interval
                        trials = f"{count(running, 'trial')} of other workers"
                        log.info(f"waiting for {trials} (a dead worker is noticed after {patience} s)")
                    waiting = True
                    time.sleep(self.storage.heartbeat_interval)
                else:
                    break
            self._update(bar)

    def retry_dead_trials(self) -> None:
        """Fail the running trials whose heartbeat has stopped; Optuna then calls `retry`.

        Optuna never looks at a trial whose process died before its first heartbeat. Each running trial is therefore
        given one when it is first seen, which changes nothing for a live trial.
        """
        fail_stale_trials(self.study)
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for number in {trial.number for trial in running} - self._seen:
            self.storage.record_heartbeat(self.storage.get_trial_id_from_study_id_trial_number(study_id, number))
            self._seen.add(number)

    def _has_work(self) -> bool:
        """Return whether a trial waits in the queue, or a new one is needed."""
        trials = counting(self.study)
        return len(trials) < self.trials or any(t.state == TrialState.WAITING for t in trials[: self.trials])

    def _update(self, bar: tqdm) -> None:
        bar.n = min(sum(trial.state.is_finished() for trial in counting(self.study)), self.trials)
        if (best := best_trial(self.study)) is not None:
            bar.set_postfix_str(f"best {self.metric.words} {best.value:.4f}, trial {best.number}", refresh=False)
        bar.refresh()

    def run_trial(self) -> None:
        """Run one trial and log its result. Raises: what ends the worker, after the trial was queued again."""
        self._number, self._error = None, None
        try:
            self.study.optimize(self._objective, n_trials=1, catch=(_Failed,))
        except BaseException as error:
            refused = isinstance(error, ValueError) and error is not self._error
            if not (refused and self._number is not None and self._trial().state.is_finished()):
                if error is self._error and self._trial().state == TrialState.FAIL:
                    retry(self.study, self._trial())
                raise
            # Optuna refused the result, because the trial had been failed meanwhile.
            log.warning(f"trial {self._number}: another worker considered this one dead and took its parameters over")
            if self._error is not None:
                raise self._error from None
            return
        finally:
            tidy(self.study, self.folder)
        if SURPLUS not in self._trial().user_attrs:
            log.info(result_line(self.study, self._trial(), self.metric))

    def _objective(self, trial: Trial) -> float:
        """Return the trial's value, for Optuna. Raises: `TrialPruned`, `_Failed`, or what ends the worker."""
        self._number = trial.number
        try:
            return self._train(trial)
        except (optuna.TrialPruned, _Failed):
            raise
        except BaseException as error:
            self._error = error
            if isinstance(error, NOT_THE_TRIALS) and not self._trial().state.is_finished():
                trial.set_user_attr(INTERRUPTIONS, trial.user_attrs.get(INTERRUPTIONS, 0) + 1)
            raise

    def _trial(self) -> FrozenTrial:
        return self.study.get_trials()[self._number]

    def _train(self, trial: Trial) -> float:
        """Train with the parameters that the sampler draws, and return the metric."""
        if (
            sum(t.number < trial.number for t in counting(self.study)) >= self.trials
        ):  # another worker was quicker to begin the last one
            trial.set_user_attr(SURPLUS, True)
            raise _Failed
        config = with_values(self.config, suggest(trial, self.space))
        watch = _Watch(trial=trial, metric=self.metric, epochs=config.train.epochs)
        began = time.monotonic()
        try:
            trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
            with quiet_screen():
                train(config, f"{trial.number:04d}", report=watch)
            if watch.value is None:
                raise UserError(f"{self.metric.words} is undefined on the validation images")
        except Pruned:
            raise optuna.TrialPruned from None
        except UpdateFinishedTrialError:
            raise _Failed from None  # Optuna will refuse the result
        except (UserError, torch.OutOfMemoryError) as error:
            trial.set_user_attr(REASON, str(error).splitlines()[0])
            raise _Failed from None
        finally:
            if not self._trial().state.is_finished():
                trial.set_user_attr("seconds", round(time.monotonic() - began, 2))
                trial.set_user_attr("epochs", len(watch.history))
        trial.set_user_attr("best_epoch", best_epoch(watch.history)["epoch"])
        return watch.value


@dataclass(kw_only=True)
class _Watch:
    """After each epoch, report what the trial would be worth if it ended here, and stop a hopeless one.

    That is the metric, on the validation images, of the `best.pt` so far.
    """

    trial: Trial
    metric: Metric
    epochs: int
    value: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, row: dict[str, Any], predictions: Predictions) -> None:
        self.history.append(row)
        if best_epoch(self.history) is row:
            self.value = self.metric.value(predictions)
        if self.value is None:
            return
        epoch = row["epoch"]
        self.trial.report(self.value, epoch)
        if epoch < self.epochs and self.trial.should_prune():
            raise Pruned(f"after epoch {epoch}: {self.metric.words} {self.value:.4f} is worse than the median's")
