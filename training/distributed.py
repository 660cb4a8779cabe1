"""The ranks of a `torchrun` job: who does what, what they tell each other, and how the job ends when one of them fails.

Without torchrun there is one rank, and nothing here does anything. With it, every rank runs the whole of a training:
rank 0 alone reads and writes what is shared (the pixel cache first, then the run folder), the others are silent.
Gradients are exchanged by DistributedDataParallel. What a job says to itself beside that (rank 0's decisions, why a
rank failed) goes through torchrun's store, where one can wait for as long as it takes.
"""

from __future__ import annotations

import _thread
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.nn.parallel import DistributedDataParallel

from config import TrainConfig
from dataset.image_set import ImageSet
from training.ending import status_of
from utils import UserError, log, pick_device

TIMEOUT = timedelta(hours=1)  # of a collective: rank 0 may be writing, another may be compiling
POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0  # for a rank to end by itself when another one has failed
NOTE = "failed"  # where the first rank to fail leaves the reason
Result = TypeVar("Result")
ENDINGS = (signal.SIGINT, signal.SIGTERM)
_jobs = itertools.count()  # of this process: each has its own keys in torchrun's store


class _Told(BaseException):
    """This rank was told to end: by torchrun (SIGTERM), or because another rank has failed."""


@dataclass(kw_only=True)
class Ranks:
    """This process among those of the job. The default is a job of one.

    `last_words(status, reason)` is what rank 0 does when the job ends badly; None: nothing yet.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    last_words: Callable[[str, str], None] | None = None
    _store: dist.Store | None = None
    _calls: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _watcher: threading.Thread | None = None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes and speaks."""
        return self.rank == 0

    def micro_batch(self, train: TrainConfig, fixed: bool = False) -> int:
        """Images of a micro-batch: `train.batch` over ranks and accumulation.

        Args:
            fixed: the batch is that of a run that goes on, and cannot be another.

        Raises: `UserError` where it does not divide.
        """
        pieces = self.world * train.accumulate
        if train.batch % pieces == 0:
            return train.batch // pieces
        near = max(train.batch // pieces, 1) * pieces
        remedies = [] if fixed else [f"--batch {near} or {near + pieces}"]
        counts = [n for n in range(1, train.batch + 1) if train.batch % (n * train.accumulate) == 0]
        nearest = [*[n for n in counts if n < self.world][-1:], *[n for n in counts if n > self.world][:1]]
        if nearest:
            remedies.append(f"{' or '.join(map(str, nearest))} ranks")
        elif fixed:
            remedies.append("another train.accumulate")
        raise UserError(
            f"--batch {train.batch}: does not divide by {pieces} ({self.world} ranks × train.accumulate="
            f"{train.accumulate}); use {', or '.join(remedies)}"
        )

    def device(self, name: str) -> torch.device:
        """The device behind `name`; under torchrun each rank has a GPU of its own. Raises: `UserError`."""
        if self.world == 1:
            return pick_device(name)
        if name not in ("cuda", "cpu", "auto"):
            raise UserError(f"--device {name}: torchrun gives every rank its own GPU; use cuda, cpu or auto")
        if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return pick_device("cpu")
        if self.local_world > (count := torch.cuda.device_count()) > 0:
            raise UserError(f"torchrun --nproc-per-node {self.local_world}: there are {count} GPUs here")
        device = pick_device(f"cuda:{self.local_rank}")
        torch.cuda.set_device(device)
        return device

    def broadcast(self, value: Any = None) -> Any:
        """Rank 0's `value` (of JSON's types) on every rank; the others wait for it as long as it takes."""
        if self.world == 1:
            return value
        self._calls += 1
        key = f"broadcast/{self._calls}"
        if self.leads:
            self._store.set(key, json.dumps(value))
            return value
        while not self._store.check([key]):
            time.sleep(POLL_SECONDS)
        return json.loads(self._store.get(key))

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """The block runs on rank 0 first, then on the others, which find in the cache what rank 0 has put there."""
        if not self.leads:
            self.broadcast()
        yield
        if self.leads:
            self.broadcast()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` summed over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, array: np.ndarray) -> np.ndarray:
        """The ranks' arrays, (n, …) with an n of each rank's own, one after the other."""
        if self.world == 1:
            return array
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, array)
        return np.concatenate(found)

    def share(self, part: ImageSet, batch: int) -> ImageSet:
        """This rank's consecutive pictures of `part`, in whole batches: each of them is one that a single process would
        make, so that the answers are the same to the last bit.
        """
        if self.world == 1:
            return part
        batches = -(-len(part) // batch)
        first, last = (-(-batches * rank // self.world) * batch for rank in (self.rank, self.rank + 1))
        place = np.arange(len(part))
        return part.take((first <= place) & (place < last))

    def parallel(self, model: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
        """`forward`, whose backward pass leaves in `model` the mean of all ranks' gradients.

        Made anew for every epoch, since the parameters that learn may be others; that also gives all ranks the weights
        and statistics of rank 0, should theirs have drifted.
        """
        if self.world == 1:
            return forward
        return DistributedDataParallel(_Forward(model, forward), gradient_as_bucket_view=True)

    def share_buffers(self, model: nn.Module) -> None:
        """Give all ranks the buffers of rank 0: the statistics of its batch normalisation."""
        for buffer in model.buffers() if self.world > 1 else ():
            dist.broadcast(buffer, 0)

    def fail(self, error: BaseException) -> NoReturn:
        """End this rank for `error`: rank 0 says its last words and raises the reason, the others go quietly, but for
        errors that are none of the user's, which keep their traceback.
        """
        if self.world > 1:
            _ignore_signals()
            error = self._agree(error)
        self._say(status_of(error), str(error) or type(error).__name__)
        self.leave()
        if not self.leads and isinstance(error, UserError | KeyboardInterrupt):
            raise SystemExit(2 if isinstance(error, UserError) else 130) from None
        raise error

    def leave(self) -> None:
        """The job is over for this rank: end the thread that watches, which must not be in torch at exit."""
        self._over.set()
        if self._watcher is not None:
            self._watcher.join(GRACE_SECONDS)

    def _say(self, status: str, reason: str) -> None:
        """The last words, once: two threads may want to."""
        words, self.last_words = self.last_words, None
        if words is not None:
            words(status, reason)

    def _agree(self, error: BaseException) -> BaseException:
        """What ended the job: the note of the first rank to fail, or else our own error, which is noted then."""
        if isinstance(error, KeyboardInterrupt):
            return error
        lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        follows = lost or isinstance(error, _Told)
        until = time.monotonic() + 2  # the note may still be on its way
        with contextlib.suppress(dist.DistError):  # the store may be gone
            while follows and time.monotonic() < until and not self._store.check([NOTE]):
                time.sleep(0.05)
        if follows:
            reason = "another rank was lost" if lost else "ended by a signal, as torchrun does when a rank is lost"
            error = UserError(
                f"{reason}; torchrun's report says which. Exit code -9 is mostly too little memory (dmesg says so)"
            )
        elif not isinstance(error, UserError):
            get_error_handler().record_exception(error)  # with its traceback, for torchrun's report
        said = f"rank {self.rank}: " if self.rank else ""
        reason = (str(error) or type(error).__name__).splitlines()[0]
        with contextlib.suppress(dist.DistError):
            note = self._store.compare_set(NOTE, "", f"{said}{reason}").decode()
            return UserError(note) if follows else error
        return error

    def _watch(self) -> None:
        """In a thread: end this rank when another one has failed. A collective on a GPU would wait for it for ever."""
        store = self._store.clone()
        with contextlib.suppress(dist.DistError):
            while not store.check([NOTE]):
                if self._over.wait(5 * POLL_SECONDS):
                    return
            _thread.interrupt_main(signal.SIGTERM)
            if not self._over.wait(GRACE_SECONDS):
                reason = store.get(NOTE).decode()
                self._say("failed", reason)
                if self.leads:
                    print(f"{os.path.basename(sys.argv[0])}: {reason}", file=sys.stderr, flush=True)
                os._exit(2)


class _Forward(nn.Module):
    """A forward pass as the module that DistributedDataParallel needs."""

    def __init__(self, model: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.model, self.run = model, forward

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.run(inputs)


def job(work: Callable[[Ranks], Result]) -> Result:
    """`work` as a job: of one process, or as this rank of those that torchrun has started. When one fails, all end."""
    ranks = _join() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Ranks()
    try:
        try:
            result = work(ranks)
            ranks.broadcast()  # the others wait for what rank 0 still writes
        except RuntimeError:
            time.sleep(0)  # a signal that came while a collective waited in vain is raised here, where it is heard
            raise
    except BaseException as error:
        ranks.fail(error)
    ranks.leave()
    if ranks.world > 1:
        dist.destroy_process_group()
    return result


def _join() -> Ranks:
    """Meet the other ranks, where torchrun's environment variables say."""
    for number in ENDINGS:
        signal.signal(number, _tell)
    store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store = dist.PrefixStore(f"{next(_jobs)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=rank, world_size=world, timeout=TIMEOUT
    )
    local_rank, local_world = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    ranks = Ranks(
        rank=rank,
        world=world,
        local_rank=local_rank,
        local_world=local_world,
        _store=dist.PrefixStore("job", store),
    )
    if not ranks.leads:
        log.setLevel(logging.CRITICAL)
    ranks._watcher = threading.Thread(target=ranks._watch, daemon=True)
    ranks._watcher.start()
    return ranks


def _tell(number: int, frame: object) -> None:
    _ignore_signals()
    raise KeyboardInterrupt if number == signal.SIGINT else _Told


def _ignore_signals() -> None:
    """One signal is enough: torchrun passes on to every rank what the terminal has sent already, and repeats it."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def synchronise_norms(model: nn.Module, wanted: bool, ranks: Ranks, device: torch.device) -> nn.Module:
    """`model`, where `wanted` with SyncBatchNorm in the place of BatchNorm: the same parameters and state dict.

    Raises: `UserError` on CPUs, where torch has none.
    """
    if not wanted:
        return model
    if ranks.world == 1:
        log.info("train.sync_batch_norm=true: of no effect in one process")
        return model
    if device.type != "cuda":
        raise UserError("train.sync_batch_norm=true: torch synchronises batch normalisation on GPUs only; set it false")
    from timm.layers import convert_sync_batchnorm  # knows timm's norms with an activation, which torch's loses

    return convert_sync_batchnorm(model)
