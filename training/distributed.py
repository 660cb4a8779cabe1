"""The ranks of a `torchrun` job: how they share the work, communicate, and end together if one of them fails.

Without torchrun there is a single rank, and nothing here has any effect. Otherwise every rank runs the whole training.
Rank 0 alone logs and writes shared files: first the pixel cache, then the run folder. DistributedDataParallel exchanges
the gradients. Everything else (rank 0's decisions, the reason of a failure) goes through torchrun's key-value store,
where ranks can wait without a timeout.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from config import TrainConfig
from dataset.image_set import ImageSet
from utils import UserError, count, log, pick_device

TIMEOUT = timedelta(hours=1)  # of a collective operation: other ranks may be writing or compiling
POLL_SECONDS = 0.2
REASON_TIMEOUT = timedelta(seconds=2)  # within which the reason of another rank's failure arrives
GRACE_SECONDS = 5.0  # for a rank to end by itself after another one has failed
FAILURE = "failure"  # the key under which the first rank to fail stores the reason
LOST = "another rank was lost, or a signal ended this one: see torchrun's report (exit code -9: too little memory)"


class _Terminated(BaseException):
    """Raised by SIGTERM, from torchrun or because another rank has failed."""


@dataclass(kw_only=True)
class Ranks:
    """This process among the ranks of a job; by default the only one.

    Attributes:
        on_failure: called on rank 0 with the error that ends the job early.
    """

    rank: int = 0
    world: int = 1
    on_failure: Callable[[BaseException], None] = lambda error: None
    _store: dist.Store | None = None
    _broadcasts: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)
    _watcher: threading.Thread | None = None

    @property
    def leads(self) -> bool:
        """True for rank 0, which alone logs and writes."""
        return self.rank == 0

    def micro_batch(self, train: TrainConfig) -> int:
        """Return the number of images in a micro-batch: `train.batch` divided among ranks and accumulation steps.

        Raises: `UserError` if the batch is not divisible.
        """
        pieces = self.world * train.accumulate
        if train.batch % pieces:
            near = max(train.batch // pieces, 1) * pieces
            raise UserError(
                f"--batch {train.batch}: not divisible by {pieces} ({count(self.world, 'rank')} × train.accumulate="
                f"{train.accumulate}); use --batch {near} or {near + pieces}, or change the ranks or train.accumulate"
            )
        return train.batch // pieces

    def device(self, name: str) -> torch.device:
        """Return the device called `name`; under torchrun every rank has its own GPU. Raises: `UserError`."""
        if self.world == 1:
            return pick_device(name)
        if name not in ("cuda", "cpu", "auto"):
            raise UserError(f"--device {name}: torchrun gives every rank its own GPU; use cuda, cpu or auto")
        gpus, local_world = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
        if name == "cpu" or (name == "auto" and not gpus):
            return pick_device("cpu")
        if local_world > gpus > 0:
            raise UserError(f"torchrun --nproc-per-node {local_world}: one rank per GPU at most; use {gpus}")
        device = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
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
        """Record on rank 0 that `error` ended the job, and raise it, or the other rank's error that caused it."""
        if self.world > 1:
            _handle_signals(signal.SIG_IGN)  # torchrun repeats them, and forwards those that the terminal has sent
            error = error if isinstance(error, KeyboardInterrupt) else self._root_cause(error)
        self.on_failure(error)
        raise error

    def leave(self) -> None:
        """Stop the watcher thread: it must not run torch code while the interpreter exits."""
        self._ended.set()
        if self._watcher is not None:
            self._watcher.join(GRACE_SECONDS)

    def _root_cause(self, error: BaseException) -> BaseException:
        """Return the failure that ended the job, that of the first rank to fail: `error`, or what the store says."""
        lost = isinstance(error, _Terminated | dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))
        reason = LOST if lost else (str(error) or type(error).__name__).splitlines()[0]
        reason = f"rank {self.rank}: {reason}" if self.rank else reason
        with contextlib.suppress(dist.DistError):  # a rank that was killed gives no reason
            if lost:
                self._store.wait([FAILURE], REASON_TIMEOUT)
        with contextlib.suppress(dist.DistError):  # the store may be gone
            reason = self._store.compare_set(FAILURE, "", reason).decode()
        return UserError(reason) if lost else error

    def _watch(self) -> None:
        """End this rank after another one has failed; runs in a thread, since GPU collectives would wait for ever.

        Usually a collective operation fails, or torchrun sends SIGTERM, and the rank ends by itself.
        """
        store = self._store.clone()
        with contextlib.suppress(dist.DistError):
            while not store.check([FAILURE]):
                if self._ended.wait(5 * POLL_SECONDS):
                    return
            if not self._ended.wait(GRACE_SECONDS):
                self.on_failure(UserError(store.get(FAILURE).decode()))
                os._exit(2)


class _Forward(nn.Module):
    """A forward pass as the module that DistributedDataParallel needs."""

    def __init__(self, model: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.model, self.run = model, forward

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.run(inputs)


@contextlib.contextmanager
def job() -> Iterator[Ranks]:
    """Run the block in this process, alone or as one of torchrun's ranks. If one rank fails, all of them end.

    A process can take part in one job of several ranks.
    """
    ranks = _join() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Ranks()
    try:
        yield ranks
        ranks.broadcast()  # wait until rank 0 has written everything
    except BaseException as error:
        ranks.fail(error)
    finally:
        ranks.leave()
    if ranks.world > 1:
        dist.destroy_process_group()


def _join() -> Ranks:
    """Join the other ranks; torchrun's environment variables tell where they meet."""
    _handle_signals(_raise_signal)
    store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    ranks = Ranks(rank=rank, world=world, _store=dist.PrefixStore("job", store))
    if not ranks.leads:
        log.setLevel(logging.CRITICAL)
    ranks._watcher = threading.Thread(target=ranks._watch, daemon=True)
    ranks._watcher.start()
    return ranks


def _raise_signal(number: int, frame: object) -> None:
    _handle_signals(signal.SIG_IGN)
    raise KeyboardInterrupt if number == signal.SIGINT else _Terminated


def _handle_signals(handler: Callable[[int, Any], Any] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def synchronise_norms(model: nn.Module, enabled: bool, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return `model`, if `enabled` with BatchNorm replaced by SyncBatchNorm; parameters and state dict stay the same.

    Raises: `UserError` on a CPU, where torch has no SyncBatchNorm.
    """
    if enabled and ranks.world == 1:
        log.info("train.sync_batch_norm=true has no effect in a single process")
    if not enabled or ranks.world == 1:
        return model
    if device.type != "cuda":
        raise UserError("train.sync_batch_norm=true: torch can synchronise it on GPUs only; set it to false")
    from timm.layers import convert_sync_batchnorm  # handles timm's norms with an activation, which torch's drops

    return convert_sync_batchnorm(model)
