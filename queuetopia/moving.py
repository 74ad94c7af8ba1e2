"""``Move``: what ``on_exhausted`` and ``on_error`` say of a job that is to wait in another queue. Knows no models."""

from .params import text_problem

MAX_NAME = 255  # characters of a queue's name
PREFIX = "move:"


class Move(str):
    """An answer of ``on_exhausted`` and ``on_error``: ``Move("graveyard")``.

    The job moves to the end of that queue of its scope, halted and with its errors, in the transaction that records the
    attempt; its own queue goes on at once. It is text, ``"move:graveyard"``, and stored as that.

    Raises ValueError for what cannot be the name of a queue.
    """

    __slots__ = ()

    def __new__(cls, queue: str):
        if problem := name_problem(queue):
            raise ValueError(f"Move({queue!r:.100}): the queue {problem}")
        return super().__new__(cls, f"{PREFIX}{queue}")

    @property
    def queue(self) -> str:
        return self.removeprefix(PREFIX)


def as_move(step) -> Move | None:
    """Return what a stored or declared step says as a Move; None if it says something else.

    Raises ValueError for what cannot be the name of a queue.
    """
    if isinstance(step, Move):
        return step
    return Move(step.removeprefix(PREFIX)) if isinstance(step, str) and step.startswith(PREFIX) else None


def name_problem(queue) -> str | None:
    """Return why this cannot be the name of a queue; None if it can."""
    if not isinstance(queue, str):
        return f'must be a str, not {type(queue).__name__}; name it by one, as in f"customer-{{pk}}"'
    if not 1 <= len(queue) <= MAX_NAME:
        return f"has {len(queue)} characters; a queue's name has 1 to {MAX_NAME}"
    return text_problem(queue)
