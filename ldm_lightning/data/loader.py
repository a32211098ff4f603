"""The loader: torch's ``DataLoader``, opened at the first batch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader

from ldm_lightning.data.batch import Batch
from ldm_lightning.data.dataset import BatchDataset
from ldm_lightning.errors import UserError

__all__ = ["Loader"]

_KNOWS_SENDERS = hasattr(signal, "sigwaitinfo")  # macOS cannot tell who sent a signal
_PREFIX = f"{UserError.__module__}.{UserError.__qualname__}: "


def _obey_the_parent_alone(worker: int) -> None:
    """Keep a worker out of what stops training: dying of it, it would take the parent's save along.

    Ctrl-C goes to the whole process group, which the worker leaves; schedulers send their signals to every process.
    SIGTERM must work when the parent sends it, by which Python ends workers at its exit, and then waits for them. So
    all threads block it, see :meth:`Loader._open`, but one, which waits for it and asks who sent it.
    """
    os.setpgrp()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None or not _KNOWS_SENDERS:
        return

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class Loader:
    """A sized iterable of batches.

    It is deliberately no ``DataLoader`` itself. Lightning would put its own distributed sampler, which pads with
    duplicates, in the place of ours; and it opens iterators that it never uses, for which a ``DataLoader`` with workers
    would already run through an epoch's first batches.

    Args:
        dataset: the samples, by (epoch, index).
        batches: which samples form which batch: for each, its keys (epoch, index). A sized iterable.
        num_workers: worker processes; 0 loads in this process. They live as long as the loader.
        pin_memory: copy batches into page-locked memory.
    """

    def __init__(
        self,
        dataset: BatchDataset,
        batches: Iterable[Sequence[tuple[int, int]]],
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            dataset,  # type: ignore[arg-type]  # anything with a length and items serves
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=dataset.collate,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=_obey_the_parent_alone if num_workers > 0 else None,
        )

    @property
    def _iterator(self) -> object:
        """The running iterator of the ``DataLoader``, by the name under which Lightning stops and clears it.

        When a trainer is done it shuts down the workers of whatever has this attribute. Left to the garbage collector,
        which takes queues apart before the workers that listen to them, each loader would wait for a time-out of 5 s.
        """
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: None) -> None:
        self._loader._iterator = iterator

    def __len__(self) -> int:
        return len(self._loader)

    def _open(self) -> Iterator[Batch]:
        """Start an iteration, and the workers if there are none, with SIGTERM blocked.

        They inherit that, and so do threads that torch starts in them before it calls ``worker_init_fn``.
        """
        if not _KNOWS_SENDERS:
            return iter(self._loader)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: workers start when the first batch is asked for.
        try:
            yield from self._open()
        except UserError as error:
            # From a worker it arrives wrapped in a printed traceback, whose last line is the message.
            raise UserError(str(error).splitlines()[-1].removeprefix(_PREFIX)) from error
