"""The rows of nodes: their leases, and what they leave behind. The same on every database.

Each function takes the Backend whose session, or connection, it goes through.
"""

from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from django.db import OperationalError, transaction
from django.db.models import Q

from ..attempts import Claim
from ..models import Chore, Job, Node, Queue
from . import rows
from .columns import DatabaseNow
from .values import attempts_of, claim_of

DEATHS = "deaths"  # a row of chores, whose marks say when nodes of which hosts died
DEATHS_KEPT = 50
STANDBY = "standby "  # begins the names of rows of chores, one for each node that waits for its turn


def register(backend, node_id: UUID, host: str, pid: int, scopes: list[str]) -> None:
    node = Node(id=node_id, host=host, pid=pid, scopes=scopes)
    Node.objects.using(backend.alias).bulk_create([node])  # create() would call the project's receivers


def beat(backend, node_id: UUID, workers: list[dict], alias: str | None = None) -> bool:
    """Prove that the node lives; False when a successor has fenced it. alias: None means that of the session."""
    nodes = Node.objects.using(alias or backend.alias).filter(pk=node_id, fenced_at=None)
    try:
        return bool(nodes.update(last_seen=DatabaseNow(), workers=workers))
    except OperationalError as exc:
        if not backend.is_busy(exc):
            raise
        # Another transaction has the row or table locked. The session that says so stands, and with it our locks:
        # no other node takes the queues over, however long we are silent.
        return True


def unregister(backend, node_id: UUID) -> None:
    """Remove the node; one that still holds a queue is fenced instead, so that a successor finds the queue."""
    if holds_nothing(backend, node_id):
        Node.objects.using(backend.alias).filter(pk=node_id)._raw_delete(backend.alias)
    else:
        fence(backend, node_id)


def other_nodes(backend, node_id: UUID) -> list[Node]:
    return list(Node.objects.using(backend.alias).exclude(pk=node_id).defer("workers"))


def fence(backend, node_id: UUID) -> None:
    """Declare a node dead: its heartbeats are refused from now on, its queues may be taken over."""
    Node.objects.using(backend.alias).filter(pk=node_id, fenced_at=None).update(fenced_at=DatabaseNow())


def holders(backend, scopes: list[str]) -> set[UUID]:
    """Return the ids of the nodes in whose names queues are held."""
    held = Queue.objects.using(backend.alias).held().filter(scope__in=scopes)
    return {node_id for node_id in held.values_list("held_by", flat=True).distinct() if node_id}


def lost_claims(
    backend, node_id: UUID, scopes: list[str], limit: int, known: Iterable[int] = ()
) -> list[tuple[Claim, str]]:
    """Return the claims a dead node left behind, without queues ``known``, each with the type of its last error."""
    queues = Queue.objects.using(backend.alias).filter(held_by=node_id, scope__in=scopes)
    known, lost = set(known), []
    ids = [pk for pk in queues.order_by("id").values_list("pk", flat=True) if pk not in known][:limit]
    for queue in queues.filter(pk__in=ids).order_by("id"):
        head = rows.head_rows(backend.alias).filter(pk=queue.current_job or 0).first()
        if head is not None:
            stored = Job.objects.using(backend.alias).filter(pk=head["id"])
            errors = attempts_of(stored.values_list("errors", flat=True).first())
            lost.append((claim_of(queue, head), errors[-1].get("type", "") if errors else ""))
        else:
            rows.let_go(backend.alias, queue, DatabaseNow(), None)
    return lost


def note_death(backend, host: str) -> None:
    """Record that a node of the host died, for the check whether nodes die again and again."""
    chores = Chore.objects.using(backend.alias)
    chores.bulk_create([Chore(name=DEATHS)], ignore_conflicts=True)
    now = backend.now().isoformat()
    with transaction.atomic(using=backend.alias):
        marks = chores.select_for_update().get(name=DEATHS).marks
        chores.filter(name=DEATHS).update(marks={"deaths": [*marks.get("deaths", []), [now, host]][-DEATHS_KEPT:]})


def note_standby(backend, node_id: UUID, node: str, scopes: list[str]) -> None:
    """Remember, for a while, that a node waits until no other one serves these scopes."""
    chores, name = Chore.objects.using(backend.alias), f"{STANDBY}{node_id}"
    chores.bulk_create([Chore(name=name)], ignore_conflicts=True)
    chores.filter(name=name).update(done_at=DatabaseNow(), marks={"node": node, "scopes": scopes})


def forget_standby(backend, node_id: UUID) -> None:
    """Forget a node that waits no more, and those that have been silent for an hour."""
    silent = Q(name__startswith=STANDBY, done_at__lt=backend.now() - timedelta(hours=1))
    Chore.objects.using(backend.alias).filter(silent | Q(name=f"{STANDBY}{node_id}"))._raw_delete(backend.alias)


def holds_nothing(backend, node_id: UUID) -> bool:
    return not Queue.objects.using(backend.alias).filter(held_by=node_id).exists()
