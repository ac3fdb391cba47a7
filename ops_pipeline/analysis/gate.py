"""Few large replies in memory at a time: whoever receives one waits for a slot, while small ones pass.

A frame may have 100 MiB, and a worker has hundreds of connections. What belongs here: the slots, and connections that
stop reading until they have one.
"""

from __future__ import annotations

import asyncio

from websockets.asyncio.client import ClientConnection

LARGE = 256 * 1024
SLOTS = 2


class Gate:
    """The slots of one worker."""

    def __init__(self, slots: int = SLOTS) -> None:
        """Let `slots` large replies be held at a time."""
        self._free = asyncio.Semaphore(slots)

    def slot(self) -> Slot:
        """A slot for one task, not yet taken."""
        return Slot(self._free)


class Slot:
    """One task's place among the large replies; given back when the reply is stored or dropped."""

    def __init__(self, free: asyncio.Semaphore) -> None:
        """Take it from `free` when it is wanted."""
        self._free = free
        self._waiting: asyncio.Task[None] | None = None
        self.taken = False

    def want(self, connection: GatedConnection) -> None:
        """Let a connection read on as soon as there is room."""
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._take(connection))

    async def _take(self, connection: GatedConnection) -> None:
        await self._free.acquire()
        self.taken = True
        connection.read_on()

    def release(self) -> None:
        """Give the place back, or the wish for it."""
        if self.taken:
            self.taken = False
            self._free.release()
        elif self._waiting is not None:
            self._waiting.cancel()


class GatedConnection(ClientConnection):
    """A connection that reads on beyond a small reply only with a slot; without `slot` it is like any other."""

    slot: Slot | None = None
    _received = 0

    def data_received(self, data: bytes) -> None:
        """Take bytes from the network, and stop there when the reply is large and there is no room for it."""
        super().data_received(data)
        self._received += len(data)
        if self.slot is not None and self._received > LARGE and not self.slot.taken:
            self.transport.pause_reading()
            self.slot.want(self)

    def read_on(self) -> None:
        """Read again, unless the queue of frames is full: then that resumes once it is empty."""
        if not self.recv_messages.paused and not self.transport.is_closing():
            self.transport.resume_reading()
