"""What scheduler and worker share: a socket of JSON frames, and a page of memory.

A frame is 4 bytes of length and a JSON list ``[kind, …]``; the kinds are those of ``Message``. JSON, because bytes that
a performer wrote to the wrong descriptor must do no more harm than to be refused. The board says what runs right now:
it is readable also when the worker is dead or holds Python's lock in a C loop, where no message would come.
"""

import errno
import json
import mmap
import os
import struct
import tempfile
import time
from enum import StrEnum

MAX_FRAME = 64 * 2**20  # bytes; anything longer from a worker is no frame of ours
_LENGTH = struct.Struct("!I")
_CHUNK = 262_144
SETTLE = 0.002  # seconds after which each side of a board can read what the other one wrote before

BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def uptime() -> float:
    """Return seconds on a clock that all processes of this host share and that goes on while it is suspended."""
    return time.clock_gettime(BOOT_CLOCK)


class Message(StrEnum):
    """The kinds of messages, each with what follows it in its frame."""

    # From the scheduler to a worker
    RUN = "run"  # [[ticket, claim], …]: to be begun in this order
    STOP = "stop"  # ticket, name of the exception that stops its attempt
    NEWS = "news"  # ticket, claim, outcome: an end is committed, its hooks and signals may follow
    FORGET = "forget"  # ticket: its end was refused, nothing follows
    ALERT = "alert"  # claim, seconds, threshold: its queue is still blocked
    MAIL = "mail"  # database, seconds: mail the admins, if that was not done for so long
    BYE = "bye"  # end, when all news are handled

    # From a worker to its scheduler
    READY = "ready"  # pid
    END = "end"  # ticket, outcome
    RETURNED = "returned"  # [ticket, …]: taken back before they began
    NOTIFIED = "notified"  # one of NEWS, ALERT and MAIL is handled
    RETIRING = "retiring"  # why it begins no other job
    USED_UP = "used up"  # why: the same, but nothing is wrong with it


class GarbledChannel(Exception):
    """Something else than our frames arrived."""


_as_json = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make such an encoder for each message


def encode(message) -> bytes:
    body = _as_json(message).encode()
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Puts received bytes together to messages."""

    def __init__(self, longest: int | None = None):
        """longest: bytes of a frame, if who sends may send anything."""
        self._buffer = bytearray()
        self._longest = longest

    def feed(self, received: bytes):
        """Yield the messages that ``received`` completes. Raises GarbledChannel when they are none of ours."""
        self._buffer += received
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if self._longest is not None and length > self._longest:
                raise GarbledChannel(f"a frame of {length} bytes")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            yield _decode(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]


def _decode(body):
    try:
        message = json.loads(body)
    except ValueError as exc:
        raise GarbledChannel(f"not JSON: {exc}") from exc
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        raise GarbledChannel("no message of ours")
    return message


def receive(sock) -> bytes:
    return sock.recv(_CHUNK)


class Board:
    """A page shared by the scheduler and one worker: the fence's deadline, and per slot what runs since when.

    By ``recalled`` the scheduler takes back what the worker has not begun, without its consent: a job may hold Python's
    lock, and the worker answers nothing. The worker writes a ticket into its slot first, reads ``recalled`` then, and
    starts nothing that is recalled. The scheduler writes ``recalled`` first, waits for ``SETTLE``, and then takes what
    stands in no slot and was not reported (it reads the slots first, for a slot is cleared after the report). What
    stands in a slot is the worker's, which reports its end, or that it has given it back.

    Neither side has a memory fence. A processor may read ``recalled`` before its own write to the slot reaches
    others, but the write follows within microseconds, and at once if the thread is preempted: ``SETTLE`` is a thousand
    times as long. Each number is written by one instruction: struct.pack_into would clear its place first, and a
    ticket recalled long ago would pass in that moment.
    """

    _HEADER = 2  # numbers of 8 bytes: deadline, recalled
    _SLOT = 2  # ticket, start

    def __init__(self, descriptor: int, slots: int):
        self.slots = slots
        self._memory = mmap.mmap(descriptor, self.size(slots))
        self._numbers = memoryview(self._memory).cast("q")
        self._times = memoryview(self._memory).cast("d")

    @classmethod
    def size(cls, slots):
        return 8 * (cls._HEADER + slots * cls._SLOT)

    @classmethod
    def create_file(cls, slots):
        """Return an unnamed file that both sides map, in memory where the system can (Linux).

        Raise OSError if there is no space for it.
        """
        if hasattr(os, "memfd_create"):
            file = open(os.memfd_create("queuetopia-board"), "r+b", buffering=0)  # noqa: SIM115 - the caller closes it
        else:
            file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        try:
            # A hole in it would be filled at the first write to the memory, and SIGBUS kill us if the disk is full.
            if file.write(bytes(cls.size(slots))) < cls.size(slots):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir())
        except OSError:
            file.close()
            raise
        return file

    @property
    def deadline(self) -> float:
        """Nothing may start after this uptime unless the scheduler has moved it on."""
        return self._times[0]

    @deadline.setter
    def deadline(self, uptime_seconds: float):
        self._times[0] = uptime_seconds

    @property
    def recalled(self) -> int:
        """The last ticket that the scheduler takes back, with all before it, unless it has begun."""
        return self._numbers[1]

    @recalled.setter
    def recalled(self, ticket: int):
        self._numbers[1] = ticket

    def start(self, slot: int, ticket: int) -> None:
        place = self._place(slot)
        self._times[place + 1] = uptime()
        self._numbers[place] = ticket

    def clear(self, slot: int) -> None:
        self._numbers[self._place(slot)] = 0

    def running(self) -> dict[int, float]:
        """Return {ticket: uptime of its start}."""
        places = map(self._place, range(self.slots))
        slots = [(self._numbers[place], self._times[place + 1]) for place in places]
        return {ticket: started for ticket, started in slots if ticket}

    def _place(self, slot):
        return self._HEADER + slot * self._SLOT

    def close(self):
        self._numbers.release()
        self._times.release()
        self._memory.close()
