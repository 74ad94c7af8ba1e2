"""A thread of a test, which is to the database another process."""

import threading

from django.db import connections


def elsewhere(function, *arguments):
    """Call the function in a thread, with a database connection of its own."""

    def run():
        try:
            function(*arguments)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread
