"""The ranks of a `torchrun` job: how they share the work, communicate, and end together if one of them fails.

Without torchrun there is a single rank, and nothing here has any effect. Otherwise every rank runs the whole training.
Rank 0 alone logs and writes shared files: first the pixel cache, then the run folder. DistributedDataParallel exchanges
the gradients. Everything else (rank 0's decisions, the reason of a failure) goes through torchrun's key-value store,
where ranks can wait without a timeout.
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
from utils import UserError, count, log, pick_device

TIMEOUT = timedelta(hours=1)  # of a collective operation: other ranks may be writing or compiling
POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0  # for a rank to end by itself after another one has failed
FAILURE = "failure"  # the key under which the first rank to fail stores the reason
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Result = TypeVar("Result")
_jobs = itertools.count()  # numbers the jobs of this process: each has its own keys in the store


class _Terminated(BaseException):
    """Raised by SIGTERM, from torchrun or because another rank has failed."""


@dataclass(kw_only=True)
class Ranks:
    """This process among the ranks of a job; by default the only one.

    Attributes:
        on_failure: called on rank 0 with the status and the reason when the job ends early.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    on_failure: Callable[[str, str], None] | None = None
    _store: dist.Store | None = None
    _broadcasts: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)
    _watcher: threading.Thread | None = None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone logs and writes."""
        return self.rank == 0

    def micro_batch(self, train: TrainConfig, fixed: bool = False) -> int:
        """Return the number of images in a micro-batch: `train.batch` divided among ranks and accumulation steps.

        Args:
            fixed: the batch belongs to a resumed run and cannot change.

        Raises: `UserError` if the batch is not divisible.
        """
        pieces = self.world * train.accumulate
        if train.batch % pieces == 0:
            return train.batch // pieces
        multiple = max(train.batch // pieces, 1) * pieces
        remedies = [] if fixed else [f"--batch {multiple} or {multiple + pieces}"]
        worlds = [n for n in range(1, train.batch + 1) if train.batch % (n * train.accumulate) == 0]
        nearest = [*[n for n in worlds if n < self.world][-1:], *[n for n in worlds if n > self.world][:1]]
        if nearest:
            remedies.append(f"{' or '.join(map(str, nearest))} ranks")
        elif fixed:
            remedies.append("another train.accumulate")
        raise UserError(
            f"--batch {train.batch}: not divisible by {pieces} ({count(self.world, 'rank')} × train.accumulate="
            f"{train.accumulate}); use {', or '.join(remedies)}"
        )

    def device(self, name: str) -> torch.device:
        """Return the device called `name`; under torchrun every rank has its own GPU. Raises: `UserError`."""
        if self.world == 1:
            return pick_device(name)
        if name not in ("cuda", "cpu", "auto"):
            raise UserError(f"--device {name}: torchrun gives every rank its own GPU; use cuda, cpu or auto")
        if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return pick_device("cpu")
        if self.local_world > (gpus := torch.cuda.device_count()) > 0:
            raise UserError(
                f"torchrun --nproc-per-node {self.local_world}: this machine has {count(gpus, 'GPU')}; use {gpus}"
            )
        device = pick_device(f"cuda:{self.local_rank}")
        torch.cuda.set_device(device)
        return device

    def broadcast(self, value: Any = None) -> Any:
        """Return rank 0's JSON `value` on every rank; the others wait for it without a timeout."""
        if self.world == 1:
            return value
        self._broadcasts += 1
        key = f"broadcast/{self._broadcasts}"
        if self.leads:
            self._store.set(key, json.dumps(value))
            return value
        while not self._store.check([key]):
            time.sleep(POLL_SECONDS)
        return json.loads(self._store.get(key))

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """Run the block on rank 0, then on the other ranks, which find in the cache what rank 0 has written."""
        if not self.leads:
            self.broadcast()
        yield
        if self.leads:
            self.broadcast()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over the ranks, in place, and return it."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, array: np.ndarray) -> np.ndarray:
        """Return the arrays (n, …) of all ranks, concatenated; n may differ."""
        if self.world == 1:
            return array
        arrays: list[Any] = [None] * self.world
        dist.all_gather_object(arrays, array)
        return np.concatenate(arrays)

    def share(self, images: ImageSet, batch: int) -> ImageSet:
        """Return this rank's consecutive part of `images`, in whole batches.

        A single process would form the same batches, so the predictions are equal bit for bit.
        """
        if self.world == 1:
            return images
        batches = -(-len(images) // batch)
        start, stop = (-(-batches * rank // self.world) * batch for rank in (self.rank, self.rank + 1))
        rows = np.arange(len(images))
        return images.take((start <= rows) & (rows < stop))

    def parallel(self, model: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
        """Return `forward`, wrapped so that its backward pass leaves the mean gradient of all ranks in `model`.

        Call it for every epoch, since a different set of parameters may learn. It also copies weights and statistics
        from rank 0 to the other ranks.
        """
        if self.world == 1:
            return forward
        return DistributedDataParallel(_Forward(model, forward), gradient_as_bucket_view=True)

    def share_buffers(self, model: nn.Module) -> None:
        """Copy rank 0's buffers, the statistics of batch normalisation, to all ranks."""
        for buffer in model.buffers() if self.world > 1 else ():
            dist.broadcast(buffer, 0)

    def fail(self, error: BaseException) -> NoReturn:
        """End this rank because of `error`.

        Rank 0 records the failure and raises its cause. The other ranks exit silently, unless the error is a bug: that
        one keeps its traceback.
        """
        if self.world > 1:
            _ignore_signals()
            error = self._root_cause(error)
        self._record_failure(status_of(error), str(error) or type(error).__name__)
        self.leave()
        if not self.leads and isinstance(error, UserError | KeyboardInterrupt):
            raise SystemExit(2 if isinstance(error, UserError) else 130) from None
        raise error

    def leave(self) -> None:
        """Stop the watcher thread: it must not run torch code while the interpreter exits."""
        self._ended.set()
        if self._watcher is not None:
            self._watcher.join(GRACE_SECONDS)

    def _record_failure(self, status: str, reason: str) -> None:
        """Call `on_failure`, at most once: this thread and the watcher may both get here."""
        on_failure, self.on_failure = self.on_failure, None
        if on_failure is not None:
            on_failure(status, reason)

    def _root_cause(self, error: BaseException) -> BaseException:
        """Return the failure that ended the job: that of the first rank to fail, or else `error`, which is stored."""
        if isinstance(error, KeyboardInterrupt):
            return error
        lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        follows = lost or isinstance(error, _Terminated)
        deadline = time.monotonic() + 2  # the other rank's reason may arrive a little later
        with contextlib.suppress(dist.DistError):  # the store may be gone
            while follows and time.monotonic() < deadline and not self._store.check([FAILURE]):
                time.sleep(0.05)
        if follows:
            reason = "another rank was lost" if lost else "ended by a signal, which torchrun sends if a rank is lost"
            error = UserError(
                f"{reason}; torchrun's report says which. Exit code -9 usually means too little memory (see dmesg)"
            )
        elif not isinstance(error, UserError):
            get_error_handler().record_exception(error)  # adds the traceback to torchrun's report
        prefix = f"rank {self.rank}: " if self.rank else ""
        reason = (str(error) or type(error).__name__).splitlines()[0]
        with contextlib.suppress(dist.DistError):
            first = self._store.compare_set(FAILURE, "", f"{prefix}{reason}").decode()
            return UserError(first) if follows else error
        return error

    def _watch(self) -> None:
        """End this rank once another one has failed; runs in a thread, since GPU collectives would wait for ever."""
        store = self._store.clone()
        with contextlib.suppress(dist.DistError):
            while not store.check([FAILURE]):
                if self._ended.wait(5 * POLL_SECONDS):
                    return
            _thread.interrupt_main(signal.SIGTERM)
            if not self._ended.wait(GRACE_SECONDS):
                reason = store.get(FAILURE).decode()
                self._record_failure("failed", reason)
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
    """Run `work` in this process, alone or as one of torchrun's ranks. If one rank fails, all of them end."""
    ranks = _join() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Ranks()
    try:
        try:
            result = work(ranks)
            ranks.broadcast()  # wait until rank 0 has written everything
        except RuntimeError:
            time.sleep(0)  # lets Python handle a signal that arrived during a collective operation
            raise
    except BaseException as error:
        ranks.fail(error)
    ranks.leave()
    if ranks.world > 1:
        dist.destroy_process_group()
    return result


def _join() -> Ranks:
    """Join the other ranks; torchrun's environment variables tell where they meet."""
    for number in SIGNALS:
        signal.signal(number, _raise_signal)
    store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store = dist.PrefixStore(f"{next(_jobs)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    group_store = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group_store, rank=rank, world_size=world, timeout=TIMEOUT)
    ranks = Ranks(
        rank=rank,
        world=world,
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_world=int(os.environ["LOCAL_WORLD_SIZE"]),
        _store=dist.PrefixStore("job", store),
    )
    if not ranks.leads:
        log.setLevel(logging.CRITICAL)
    ranks._watcher = threading.Thread(target=ranks._watch, daemon=True)
    ranks._watcher.start()
    return ranks


def _raise_signal(number: int, frame: object) -> None:
    _ignore_signals()
    raise KeyboardInterrupt if number == signal.SIGINT else _Terminated


def _ignore_signals() -> None:
    """Ignore further signals: torchrun repeats them, and forwards those that the terminal has already sent."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def synchronise_norms(model: nn.Module, enabled: bool, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return `model`, if `enabled` with BatchNorm replaced by SyncBatchNorm; parameters and state dict stay the same.

    Raises: `UserError` on a CPU, where torch has no SyncBatchNorm.
    """
    if not enabled:
        return model
    if ranks.world == 1:
        log.info("train.sync_batch_norm=true has no effect in a single process")
        return model
    if device.type != "cuda":
        raise UserError(
            "train.sync_batch_norm=true: torch synchronises batch normalisation on GPUs only; set it to false"
        )
    from timm.layers import convert_sync_batchnorm  # handles timm's norms with an activation, which torch's drops

    return convert_sync_batchnorm(model)
