"""A file that is locked while any process of a node lives; successors on the same host find it unlocked at once.

The lock belongs to the open file description, which the node's workers inherit. Who gets the lock of another
node's file knows that all its processes are dead and need not wait for its lease.
"""

import contextlib
import fcntl
import os
import tempfile
import time
from uuid import UUID

OLD = 3600.0  # seconds without a heartbeat, after which no successor asks for a node's file any more


class NodeFile:
    def __init__(self, path: str, descriptor: int | None):
        self._path, self._descriptor = path, descriptor

    @classmethod
    def create(cls, node_id: UUID) -> "NodeFile":
        """Create and lock the node's file; without a usable folder successors wait for the lease instead."""
        path = _path(node_id)
        if path is None:
            return cls("", None)
        _remove_old_ones(os.path.dirname(path))
        try:
            return cls(path, _create(path))
        except OSError:
            return cls("", None)

    def keep(self) -> None:
        """Show cleaners of temporary folders that the file is in use; create it again if one has removed it."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            os.utime(self._descriptor)
            try:
                if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                    return
            except FileNotFoundError:
                os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            # Only workers to come inherit the new one: a successor kills what is left of a dead node in any case.
            before, self._descriptor = self._descriptor, _create(self._path)
            os.close(before)

    def descriptors(self) -> list[int]:
        return [] if self._descriptor is None else [self._descriptor]

    def remove(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            os.close(self._descriptor)
            self._descriptor = None


def _create(path):
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _remove_old_ones(folder):
    """Remove files of nodes that were killed long ago, after which none came that knew of them."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError, ValueError):
                if os.stat(os.path.join(folder, name)).st_mtime < time.time() - OLD:
                    is_dead(UUID(name.removesuffix(".node")))


def is_dead(node_id: UUID) -> bool:
    """True when the node ran on this host and none of its processes is left. Its file is removed then."""
    path = _path(node_id)
    if path is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False  # another host's node, or one that ended cleanly
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)
        return True
    finally:
        os.close(descriptor)


def is_alive(node_id: UUID) -> bool:
    """True when the node runs on this host: one of its processes has its file locked."""
    path = _path(node_id)
    return path is not None and not is_dead(node_id) and os.path.exists(path)


def _path(node_id):
    """Return the file's path in a folder that only this user can write to, or None."""
    try:
        folder = os.path.join(tempfile.gettempdir(), f"queuetopia-{os.getuid()}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        state = os.lstat(folder)
    except OSError:
        return None
    if state.st_uid != os.getuid() or state.st_mode & 0o022 or not os.path.isdir(folder):
        return None
    return os.path.join(folder, f"{node_id}.node")
