"""Tasks for the tests of the backend of Django's Tasks."""

import os

import django

from tests.testapp.queues import note

if django.VERSION >= (6, 0):
    from django.tasks import task
else:
    from django_tasks import task


@task
def add(one, two=2):
    return one + two


@task
async def add_later(one, two):
    return [one, two]


@task(takes_context=True)
def attempt(context):
    return [context.attempt, context.task_result.id]


@task
def fail(text):
    raise ValueError(text)


@task
def loop():
    return object()


no_task = add.func


@task(takes_context=True)
def note_it(context, seq, failures=0):
    note("start", context.task_result.task.queue_name, seq, context.attempt)
    if context.attempt <= failures:
        raise ConnectionError("refused")


@task
def vanish():
    os._exit(1)
