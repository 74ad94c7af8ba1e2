"""What scheduler and worker share: a socket of JSON frames, and a page of memory.

A frame is 4 bytes of length and a JSON list ``[kind, …]``. JSON, because bytes that a performer wrote to the wrong
descriptor must do no more harm than to be refused. The board says what runs right now: it is readable also when
the worker is dead or holds Python's lock in a C loop, where no message would come.
"""

import json
import mmap
import struct
import tempfile
import time

MAX_FRAME = 64 * 2**20  # bytes; anything longer from a worker is no frame of ours
_LENGTH = struct.Struct("!I")
_CHUNK = 262_144

BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def uptime() -> float:
    """Return seconds on a clock that all processes of this host share and that goes on while it is suspended."""
    return time.clock_gettime(BOOT_CLOCK)


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
    """A page shared by the scheduler and one worker: the fence's deadline, and per slot what runs since when."""

    _HEADER = struct.Struct("d")
    _SLOT = struct.Struct("qd")

    def __init__(self, descriptor: int, slots: int):
        self.slots = slots
        self._memory = mmap.mmap(descriptor, self.size(slots))

    @classmethod
    def size(cls, slots):
        return cls._HEADER.size + slots * cls._SLOT.size

    @classmethod
    def create_file(cls, slots):
        """Return an unnamed file that both sides map."""
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller keeps it open
        file.truncate(cls.size(slots))
        return file

    @property
    def deadline(self) -> float:
        """Nothing may start after this uptime unless the scheduler has moved it on."""
        return self._HEADER.unpack_from(self._memory, 0)[0]

    @deadline.setter
    def deadline(self, uptime_seconds: float):
        self._HEADER.pack_into(self._memory, 0, uptime_seconds)

    def start(self, slot: int, job_id: int) -> None:
        self._SLOT.pack_into(self._memory, self._offset(slot), job_id, uptime())

    def clear(self, slot: int) -> None:
        self._SLOT.pack_into(self._memory, self._offset(slot), 0, 0.0)

    def running(self) -> dict[int, float]:
        """Return {job id: uptime of its start}."""
        slots = (self._SLOT.unpack_from(self._memory, self._offset(slot)) for slot in range(self.slots))
        return {job_id: started for job_id, started in slots if job_id}

    def _offset(self, slot):
        return self._HEADER.size + slot * self._SLOT.size

    def close(self):
        self._memory.close()
