"""Deleting, or letting expire, only what is still as it was: looked at and done in one step of Redis.

What belongs here: that script, its arguments, and sending commands ahead. What does not: which threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import hiredis
import redis

UNLESS_TOUCHED = """
local answers, key, arg, quiet, unused = {}, 0, 3, tonumber(ARGV[1]), tonumber(ARGV[2])
while arg <= #ARGV do
  local pointers, blobs = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1])
  local count, moment = tonumber(ARGV[arg + 2]), ARGV[arg + 3]
  local answer = 0
  for i = 1, pointers do
    local value, expected = redis.pcall('GET', KEYS[key + i]), ARGV[arg + 3 + i]
    if (type(value) == 'string' and value or '') ~= expected then answer = -1 end
    if answer == 0 and unused > 0 and expected ~= '' then
      local idle = redis.pcall('OBJECT', 'IDLETIME', expected)
      if type(idle) == 'number' and idle < unused then answer = -4 end
    end
  end
  for i = pointers + 1, pointers + blobs do
    local idle = redis.pcall('OBJECT', 'IDLETIME', KEYS[key + i])
    if type(idle) == 'table' then answer = -3 elseif answer == 0 and idle and idle < quiet then answer = -2 end
  end
  if answer == 0 and moment == '' then
    answer = redis.call('UNLINK', unpack(KEYS, key + 1, key + count))
  elseif answer == 0 then
    for i = key + 1, key + count do
      if redis.call('TTL', KEYS[i]) == -1 then answer = answer + redis.call('EXPIREAT', KEYS[i], moment) end
    end
  end
  answers[#answers + 1] = answer
  key, arg = key + count, arg + 4 + pointers
end
return answers
"""
"""Threads one after another, each by itself: its pointers must be what they were; nobody may have read what they name
for some minutes (a run that answers an interrupt has, and shows no other sign before its first new checkpoint), or read
or written its blobs for a longer while. What expires already keeps its moment: every sweep would put it off.
"""
MOVED, BLOBS_IN_USE, UNTOLD, READ = -1, -2, -3, -4
SCRIPT_KEYS = 2_000
"""Of one thread in one step; Lua hands at most 8,000 to a command, and these take Redis two milliseconds."""
AHEAD = 2
"""So many commands are under way at a time: Redis works while the next one is put together."""


@dataclass(frozen=True)
class Untouched:
    """For how many seconds nobody may have touched what goes.

    Attributes:
        blobs: read or written blobs.
        newest: read the checkpoint that a pointer names; 0 for no look at reads. The script passes over this where
            Redis does not tell (`lfu`), and in clusters, where it lies in another slot.
    """

    blobs: float
    newest: float = 0.0


@dataclass(frozen=True)
class Guarded:
    """Keys of one thread that go in one step, or not at all.

    Attributes:
        keys: those that nothing guards.
        pointers: keys that must hold what is `expected`.
        expected: what each pointer held.
        blobs: keys that nobody may have touched lately.
        moment: Unix time when all of these expire, as text; empty to delete them.
    """

    keys: Sequence[bytes]
    pointers: Sequence[bytes] = ()
    expected: Sequence[bytes] = ()
    blobs: Sequence[bytes] = ()
    moment: str = ""


def command_of(threads: Iterable[Guarded], untouched: Untouched) -> list[Any]:
    """The command that removes these threads; it answers with the number of keys of each, or with why none went.

    Args:
        threads: in the order of the answers.
        untouched: for how long nobody may have touched them.
    """
    keys: list[bytes] = []
    arguments: list[Any] = [int(untouched.blobs), int(untouched.newest)]
    for one in threads:
        before = len(keys)
        keys += one.pointers
        keys += one.blobs
        keys += one.keys
        arguments += (len(one.pointers), len(one.blobs), len(keys) - before, one.moment)
        arguments += one.expected
    return ["EVAL", UNLESS_TOUCHED, len(keys), *keys, *arguments]


class Line:
    """A connection of its own on which commands are sent ahead of the answers to earlier ones."""

    def __init__(self, client: Any) -> None:
        """Prepare; nothing is sent.

        Args:
            client: of one server.
        """
        self._pool = client.connection_pool
        self._connection: Any = None
        self._waiting: deque[Callable[[Any], None]] = deque()

    def send(self, command: Sequence[Any], then: Callable[[Any], None]) -> None:
        """Send a command, and hand an earlier answer to whoever waits for it when too many are under way."""
        if self._connection is None:
            self._connection = self._pool.get_connection()
        try:
            # Not through the client, which looks at every key again: a tenth of the time of a sweep.
            self._connection.send_packed_command([hiredis.pack_command(tuple(command))])
        except BaseException:
            self.drop()
            raise
        self._waiting.append(then)
        while len(self._waiting) >= AHEAD:
            self._read()

    def finish(self) -> None:
        """Hand out all answers, and give the connection back.

        Raises:
            redis.RedisError: a command failed; the answers of those before it were handed out.
        """
        while self._waiting:
            self._read()
        if self._connection is not None:
            self._pool.release(self._connection)
            self._connection = None

    def _read(self) -> None:
        then = self._waiting.popleft()
        try:
            answer = self._connection.read_response()
        except BaseException:
            self.drop()
            raise
        then(answer)

    def drop(self) -> None:
        """Give up the connection: an answer that is still to come would be taken for that of another command."""
        connection, self._connection = self._connection, None
        self._waiting.clear()
        if connection is not None:
            with suppress(redis.RedisError, OSError):
                connection.disconnect()
            self._pool.release(connection)
