"""A worker: trains one trial after another until the study has as many as it should."""

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
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from command_line import quiet_screen
from config import Config
from experiment.run_folder import Pruned
from search.metric import Metric
from search.results import best_trial, result_line, tidy
from search.space import Space, suggest, with_values
from search.study import ALIVE, FINISHED, Silent, counting, fail_dead_trials, queue_again, rank
from training.trainer import train
from utils import UserError, log

if TYPE_CHECKING:
    from tqdm import tqdm

    from evaluation.predictions import Predictions


# What may end a worker and says nothing against the trial: a full disk, a database that is gone (and Ctrl-C).
NOT_THE_TRIALS = (OSError, StorageInternalError, SQLAlchemyError)


class _Failed(Exception):
    """The trial has no value; its reason, if there is one, stands in the study."""


@dataclass
class Worker:
    """What one process does for a study.

    Args:
        config: what all trials share; `save` is the folder of their run folders.
        folder: of the study.
        trials: how many the study shall have in all.
    """

    study: Study
    storage: RDBStorage
    config: Config
    space: Space
    metric: Metric
    folder: Path
    trials: int
    _number: int | None = field(init=False, default=None)
    _ended_by: BaseException | None = field(init=False, default=None)

    def work(self, timeout: float | None = None) -> None:
        """Run trials until all that count are done; no new one begins after `timeout` seconds.

        Waits for trials of other workers, to take over those whose worker dies. Whatever ends this early (Ctrl-C, a
        full disk) puts the trial that it cuts short into the queue again.
        """
        from tqdm import tqdm

        stop = time.monotonic() + (math.inf if timeout is None else timeout)
        silent, told = Silent(self.storage), False
        with tqdm(total=self.trials, desc="trials", unit="trial") as bar:
            while time.monotonic() < stop:
                silent.look(self.study)
                fail_dead_trials(self.study)
                self._show(bar)
                if self._wanted():
                    self._run_trial()
                elif others := [t.number for t in counting(self.study) if t.state == TrialState.RUNNING]:
                    if not told:
                        told = True
                        patience = ALIVE * self.storage.heartbeat_interval
                        which = f"trial {others[0]}" if len(others) == 1 else f"{len(others)} trials"
                        log.info(f"waiting for {which} of other workers (one that died is noticed after {patience} s)")
                    time.sleep(self.storage.heartbeat_interval)
                else:
                    break
            self._show(bar)

    def _wanted(self) -> bool:
        """Whether there is a trial to run: one that waits in the queue, or a new one."""
        count = counting(self.study)
        return len(count) < self.trials or any(t.state == TrialState.WAITING for t in count[: self.trials])

    def _show(self, bar: tqdm) -> None:
        bar.n = min(sum(trial.state in FINISHED for trial in counting(self.study)), self.trials)
        if (best := best_trial(self.study)) is not None:
            bar.set_postfix_str(f"best {self.metric.words} {best.value:.4f}, trial {best.number}", refresh=False)
        bar.refresh()

    def _run_trial(self) -> None:
        self._number, self._ended_by = None, None
        try:
            self.study.optimize(self._objective, n_trials=1, catch=(_Failed,))
        except BaseException as error:
            cut = self._number is not None and _cut_short(self._trial())
            if not (cut and isinstance(error, ValueError) and error is not self._ended_by):
                if cut:
                    own = isinstance(error, Exception) and not isinstance(error, NOT_THE_TRIALS)
                    queue_again(self.study, self._trial(), died=own)
                raise
            # Optuna refused our result, because the trial was over already.
            log.warning(f"trial {self._number}: another worker took us for dead and has its parameters")
            return
        finally:
            tidy(self.study, self.folder)
        if "surplus" not in self._trial().user_attrs:
            log.info(result_line(self.study, self._trial(), self.metric))

    def _objective(self, trial: Trial) -> float:
        """Optuna's objective. Raises: `TrialPruned`, `_Failed`, or what ends the search, which is remembered."""
        self._number = trial.number
        try:
            return self._train(trial)
        except (optuna.TrialPruned, _Failed):
            raise
        except BaseException as error:
            self._ended_by = error
            raise

    def _trial(self) -> FrozenTrial:
        return self.study.get_trials()[self._number]

    def _train(self, trial: Trial) -> float:
        """Train with what the sampler says."""
        if rank(self.study, trial.number) >= self.trials:  # another worker was quicker to begin the last one
            trial.set_user_attr("surplus", True)
            raise _Failed
        config = with_values(self.config, suggest(trial, self.space))
        watch = _Watch(trial, self.metric, config.train.epochs)
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
            trial.set_user_attr("reason", str(error).splitlines()[0])
            raise _Failed from None
        finally:
            if not self._trial().state.is_finished():
                trial.set_user_attr("seconds", round(time.monotonic() - began, 2))
                trial.set_user_attr("epochs", watch.epochs)
        trial.set_user_attr("best_epoch", watch.best_epoch)
        return watch.value


def _cut_short(trial: FrozenTrial) -> bool:
    """Whether a trial has ended without a result: interrupted, or failed by a worker that saw no heartbeat."""
    return trial.state == TrialState.FAIL and "reason" not in trial.user_attrs


@dataclass
class _Watch:
    """Looks on at a training: after each epoch the study is told what the trial would be worth if it ended here (the
    metric of the best.pt so far, on validation), and a hopeless one is stopped.
    """

    trial: Trial
    metric: Metric
    most: int
    value: float | None = None
    best_epoch: int = 0
    epochs: int = 0
    _lowest: float = math.inf

    def __call__(self, row: dict[str, Any], predictions: Predictions) -> None:
        self.epochs = row["epoch"]
        if row["valid_loss"] < self._lowest:
            self._lowest, self.best_epoch = row["valid_loss"], row["epoch"]
            self.value = self.metric.of(predictions)
        if self.value is None:
            return
        self.trial.report(self.value, self.epochs)
        if self.epochs < self.most and self.trial.should_prune():
            raise Pruned(f"after epoch {self.epochs}: {self.metric.words} {self.value:.4f} is worse than the median's")
