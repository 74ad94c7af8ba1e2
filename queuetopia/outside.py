"""Work that ends elsewhere: what a performer returns for it, and the token by which the other side reports the end.

This module knows no models.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from typing import Any

from django.core import signing

from . import conf
from .exceptions import ExternalFailed, Refused

POLL_EVERY = 0.1  # seconds between two polls of a program, in which a stop of its attempt waits


class Deferred:
    """Returned by a performer: the attempt goes on elsewhere, until ``MailQueue.complete(token)`` or ``.fail(token)``.

    timeout: seconds (or a timedelta) after which it is a failed attempt. The job's own timeout ends with the return.

    The queue stays held, by no node and no worker, over restarts of everything.
    """

    def __init__(self, timeout=3600):
        self.timeout = conf.clean_seconds(timeout, above=0)


class External:
    """Returned by a performer: the attempt lasts as long as this program, and succeeds if it exits with 0.

    process: a ``subprocess.Popen``, or in an ``async def`` action also one of asyncio. Its group is killed with it, if
    it was started with one of its own (``start_new_session=True``), when the attempt is stopped: by its timeout, a
    request of an operator, or the node's end. The attempt's slot is taken all the while.
    """

    def __init__(self, process: Any):
        self.process = process

    def wait(self) -> None:
        """Wait for the program's end; raise ExternalFailed unless it exits with 0."""
        try:
            while self.process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(POLL_EVERY)
        except BaseException:
            self._kill()
            raise
        self._judge()

    async def await_end(self) -> None:
        """Do what ``wait`` does in async code."""
        try:
            if isinstance(self.process, asyncio.subprocess.Process):
                await self.process.wait()
            else:
                while self.process.poll() is None:
                    await asyncio.sleep(POLL_EVERY)
        except BaseException:
            self._kill()
            raise
        self._judge()

    def _kill(self):
        pid = self.process.pid
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)

    def _judge(self):
        code = self.process.returncode
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
            raise ExternalFailed(f"the program {how}")


def ended(returned: Any) -> Any:
    """Return the result of an attempt; wait for a program that it has left running."""
    if isinstance(returned, External):
        returned.wait()
        return None
    return returned


async def aended(returned: Any) -> Any:
    if isinstance(returned, External):
        await returned.await_end()
        return None
    return returned


def token_of(scope: str, job_id: int, fence: int) -> str:
    """Return the text that proves the right to end this attempt: signed with the project's SECRET_KEY."""
    return _signer(scope).sign(f"{job_id}.{fence}")


def read_token(scope: str, token: str) -> tuple[int, int]:
    """Return the job's id and the attempt's fence. Raise Refused for what is no token of the scope."""
    try:
        job_id, fence = _signer(scope).unsign(token).split(".")
        return int(job_id), int(fence)
    except (signing.BadSignature, TypeError, ValueError, AttributeError):
        raise Refused(
            f"This is no token of {scope}: it was changed, belongs to another scope, or the project's SECRET_KEY is "
            "another one since (SECRET_KEY_FALLBACKS keeps old ones valid)."
        ) from None


def _signer(scope):
    return signing.Signer(salt=f"queuetopia.token.{scope}")
