"""The admin by a client: who is logged in, and what a page shows as text."""

import html
import re

from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client

from queuetopia.models import Job, JobEvent, Queue, Scope

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{ 1 }}"


def client_of(*permissions, **columns):
    """Log a member of the staff in, who may do what ``permissions`` name, and nothing else."""
    columns = {"username": "ann", "is_staff": True, **columns}
    user = User.objects.create_user(**columns)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    assert user.user_permissions.count() == len(permissions)
    client = Client()
    client.force_login(user)
    return client


def page(client, url, **filters):
    answer = client.get(url, filters)
    assert answer.status_code == 200, (answer.status_code, answer.headers)
    return answer.content.decode()


def plain(text):
    return html.unescape(re.sub(r"<[^>]*>", "", text)).strip()


def told(answer):
    """Return the messages that a request left for the next page, which then shows them no more."""
    answer.client.cookies.pop("messages", None)
    return [str(message) for message in get_messages(answer.wsgi_request)]


def states(*jobs):
    return [Job.objects.get(pk=job.pk).state for job in jobs]


def everything():
    """Everything that is stored, to compare."""
    return [list(model.objects.order_by("pk").values()) for model in (Job, Queue, Scope, JobEvent, LogEntry)]
