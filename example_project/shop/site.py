"""The shop's site without a web server of its own, and a visitor of it: what the demo needs of both."""

import contextlib
import errno
import threading
from http.cookiejar import CookieJar
from urllib import parse, request

from django.conf import settings
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler, get_internal_wsgi_application

HOST = "127.0.0.1"  # for this machine only
PATIENCE = 30  # seconds a page may take


class SilentHandler(WSGIRequestHandler):
    """Logs no request: the page makes one every second."""

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve(port):
    """Serve the site in threads of this process while the context lasts; yield its address, ``http://…:8000/``.

    If the port is taken, another one that is free serves as well.
    """
    try:
        server = ThreadedWSGIServer((HOST, port), SilentHandler)
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise
        server = ThreadedWSGIServer((HOST, 0), SilentHandler)
    server.set_app(StaticFilesHandler(get_internal_wsgi_application()))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="site", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Visitor:
    """Somebody at the shop with a browser: reads pages and sends forms."""

    def __init__(self, address):
        self.address = address
        self.cookies = CookieJar()
        # Past any proxy that the environment names: the site is on this machine.
        self.opener = request.build_opener(request.ProxyHandler({}), request.HTTPCookieProcessor(self.cookies))

    def get(self, path):
        with self.opener.open(self.address + path, timeout=PATIENCE) as page:
            return page.read().decode()

    def post(self, path, **fields):
        """Send a form; return the page that follows. Raises HTTPError if the site refuses it."""
        if not self._token():
            self.get("")
        form = parse.urlencode(fields | {"csrfmiddlewaretoken": self._token()}).encode()
        with self.opener.open(self.address + path, form, timeout=PATIENCE) as page:
            return page.read().decode()

    def _token(self):
        return next((cookie.value for cookie in self.cookies if cookie.name == settings.CSRF_COOKIE_NAME), None)
