"""Processes that cut batches into shared memory.

Each has a pipe: the main process names a batch and the room of memory to put it into, and what comes back is that it is
there. Rooms are free again when their batch is not used any more, so that none is written to before. Batches go to the
processes in turn and come back in the same order, whoever is done first.
"""

from __future__ import annotations

import os
import signal
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.multiprocessing import get_context

from data_pipelines.episodes import DamagedEpisode
from data_pipelines.rooms import SharedRooms
from data_pipelines.windows import Skipped, WindowBatches
from lightning_jepa.types import Window

_AHEAD = 2  # batches under way for each process
_HELD = 2  # batches that the main process may hold and yet need not copy
_WATCH = 2.0  # seconds after which a process looks whether the main one is still there


class Workers:
    """A number of processes that cut batches; they start with the first walk.

    Args:
        windows: batches by number.
        count: how many processes.
        start_method: fork, spawn or forkserver; None for the platform's.
    """

    def __init__(self, windows: WindowBatches, count: int, start_method: str | None) -> None:
        self.windows, self.count, self.start_method = windows, count, start_method
        self.rooms = SharedRooms(windows.picture_bytes + windows.other_bytes, count * _AHEAD + 1 + _HELD)
        self._pinned = torch.cuda.is_available()
        self._team: list[tuple[Any, Connection]] = []
        self._asked: deque[tuple[int, int]] = deque()  # what is under way: process and room
        self._end: weakref.finalize[Any, Any] | None = None

    def walk(self, batches: range) -> Iterator[tuple[tuple[Window, ...], Skipped]]:
        """The batches of these numbers.

        Raises:
            DamagedEpisode: if one can't be cut.
            RuntimeError: if a process ended.
        """
        if not self._team:
            self._start()
        while self._asked:  # of a walk that was left early
            self._answer(self._asked.popleft()[0])
        self.rooms.reset()
        places = enumerate(batches)
        for place, batch in islice(places, self.count * _AHEAD):
            self._ask(place % self.count, batch)
        while self._asked:
            process, room = self._asked.popleft()
            answer = self._answer(process)
            if isinstance(answer, DamagedEpisode):
                raise answer
            pictures, others = self._parts(room)
            others, pictures = others.clone(), self.rooms.lend(room, len(pictures))
            for place, batch in islice(places, 1):
                self._ask(place % self.count, batch)
            if self._pinned:
                pictures, others = pictures.pin_memory(), others.pin_memory()
            cut = self.windows.room(pictures, others)
            del pictures
            yield cut, answer
            del cut  # its memory can hold another one, if nobody else uses it

    def close(self) -> None:
        """End the processes; another walk starts new ones."""
        if self._end is not None:
            self._end()
        self._team, self._end = [], None
        self._asked.clear()

    def _parts(self, room: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The memory of a room, for pictures and for the rest."""
        memory, pictures = self.rooms.memory[room], self.windows.picture_bytes
        return memory[:pictures], memory[pictures:]

    def _start(self) -> None:
        context: Any = get_context(self.start_method)
        for _ in range(self.count):
            ours, theirs = context.Pipe()
            rooms = [self._parts(room) for room in range(len(self.rooms.memory))]
            process = context.Process(target=_serve, args=(self.windows, rooms, theirs), daemon=True)
            process.start()
            theirs.close()
            self._team.append((process, ours))
        self._end = weakref.finalize(self, _end, list(self._team))

    def _ask(self, process: int, batch: int) -> None:
        room = self.rooms.take()
        try:
            self._team[process][1].send((batch, room))
        except OSError as error:
            raise self._ended(process) from error
        self._asked.append((process, room))

    def _answer(self, process: int) -> Skipped | DamagedEpisode:
        try:
            answer: Skipped | DamagedEpisode = self._team[process][1].recv()
        except (EOFError, OSError) as error:
            raise self._ended(process) from error
        return answer

    def _ended(self, number: int) -> RuntimeError:
        process, _ = self._team[number]
        process.join()
        why = "it was killed, perhaps for lack of memory" if process.exitcode == -signal.SIGKILL else "see above"
        self.close()
        return RuntimeError(f"a process that reads data ended with exit code {process.exitcode}: {why}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_team": [], "_asked": deque(), "_end": None}  # processes stay where they are


def _serve(windows: WindowBatches, memory: list[tuple[torch.Tensor, torch.Tensor]], tasks: Connection) -> None:
    """Cut what is asked for, until the main process says None or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    torch.set_num_threads(1)
    rooms, parent = [windows.room(pictures, others) for pictures, others in memory], os.getppid()
    while True:
        while not tasks.poll(_WATCH):
            if os.getppid() != parent:
                return
        try:
            task = tasks.recv()
        except EOFError:
            return
        if task is None:
            return
        batch, room = task
        try:
            tasks.send(windows.fill(batch, rooms[room]))
        except DamagedEpisode as error:
            tasks.send(error)


def _end(team: list[tuple[Any, Connection]]) -> None:
    for _, tasks in team:
        with suppress(OSError):  # it may have ended
            tasks.send(None)
        tasks.close()
    for process, _ in team:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
