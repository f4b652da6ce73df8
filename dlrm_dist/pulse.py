"""A sign of life of each rank, so that a rank for which all others wait is named before their wait ends the run.

A thread of each rank notes in the try's store what its main thread does. When a rank has waited in one collective for a
third of what it may, the lowest such rank that is alive reads the others' notes and says who keeps them waiting.
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from dlrm_dist import whereabouts
from dlrm_dist.lost_ranks import named_ranks
from dlrm_dist.runtime import Session
from dlrm_dist.waiting import Waiting

_JOIN_S = 1.0
"""A process may abort at its end while a thread is inside a call to the store."""
_BEATS = 12
"""Notes within the time that a collective may take."""


class Pulse:
    """One rank's; `step` is the one that it is in."""

    def __init__(self, here: Session, waiting: Waiting) -> None:
        self.step = 0
        self._here, self._waiting = here, waiting
        self._every_s = here.timeout.total_seconds() / _BEATS
        self._over = threading.Event()
        self._beat_number = 0
        self._told_of: float | None = None  # the beginning of a wait, as are the next
        self._watched: float | None = None
        self._lower: dict[int, int] = {}  # beats of lower ranks that waited when they were last looked at
        self._look_at = 0.0

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Note and watch while inside."""
        if self._here.world_size == 1:
            yield
            return
        store = dist.PrefixStore("pulse", self._here.store.clone())  # type: ignore[attr-defined]  # absent in the stubs
        store.set_timeout(timedelta(seconds=self._every_s))
        thread = threading.Thread(target=self._beat, args=(store,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(_JOIN_S)

    def _beat(self, store: dist.Store) -> None:
        try:
            while not self._over.wait(self._every_s):
                self._note(store)
                self._watch(store)
        except RuntimeError:  # the store is gone, and with it the run: whoever waits for a collective will say so
            return

    def _watch(self, store: dist.Store) -> None:
        """Tell of a long wait, unless a lower rank waits too; whose note may be the last of one that has died since."""
        since, now = self._waiting.since, time.monotonic()
        if since is None or since == self._told_of or now < self._look_at:
            return
        if since != self._watched:
            if now - since >= 2 * self._every_s:
                self._watched, self._lower = since, self._waiting_below(store)
                self._look_at = now + 2 * self._every_s
            return
        lower = self._waiting_below(store)
        if any(beat != self._lower.get(rank) for rank, beat in lower.items()):
            self._lower, self._look_at = lower, now + 2 * self._every_s
            return
        self._told_of = since
        self._tell(store, now - since)

    def _waiting_below(self, store: dist.Store) -> dict[int, int]:
        """The last beat of each lower rank that waits, by its note."""
        notes = self._notes(store, range(self._here.global_rank))
        return {rank: note["beat"] for rank, note in notes.items() if note["waits"]}

    def _note(self, store: dist.Store) -> None:
        waits = self._waiting.since is not None
        what = whereabouts.of_main_thread(waits)
        self._beat_number += 1
        note = {
            "beat": self._beat_number,
            "step": self.step,
            "waits": waits,
            "what": what,
            "host": socket.gethostname(),
        }
        store.set(str(self._here.global_rank), json.dumps(note))

    def _tell(self, store: dist.Store, seconds: float) -> None:
        """Have every rank note anew, and say what they did."""
        others = [rank for rank in range(self._here.world_size) if rank != self._here.global_rank]
        hosts = {rank: note["host"] for rank, note in self._notes(store, others).items()}
        for rank in others:
            store.delete_key(str(rank))
        for _ in range(3):
            if self._over.wait(0.5 * self._every_s):
                return
            self._note(store)  # those above see that this rank lives
        line = awaited(whereabouts.of_main_thread(waits=True), others, self._notes(store, others), hosts)
        print(f"step {self.step}: {seconds:.0f} s in {line}", file=sys.stderr, flush=True)

    def _notes(self, store: dist.Store, ranks: Iterable[int]) -> dict[int, dict[str, Any]]:
        found = {}
        for rank in ranks:
            with suppress(dist.DistStoreError):  # deleted meanwhile by a rank that tells
                if store.check([str(rank)]):
                    found[rank] = json.loads(store.get(str(rank)))
        return found


def awaited(collective: str, others: Sequence[int], notes: dict[int, dict[str, Any]], hosts: dict[int, str]) -> str:
    """For whom a rank waits in a collective.

    Args:
        collective: in words.
        others: all ranks but this.
        notes: of those that answer.
        hosts: of the other ranks, where they are known.
    """
    silent = [rank for rank in others if rank not in notes]
    busy = [
        f"{named_ranks([rank], hosts)} is in {note['what']} of step {note['step']}"
        for rank, note in notes.items()
        if not note["waits"]
    ]
    if silent:
        busy.append(f"{named_ranks(silent, hosts)} give{'s' * (len(silent) == 1)} no sign of life")
    return f"{collective}, waiting for others: {'; '.join(busy) or 'all ranks wait, so messages are lost or slow'}"
