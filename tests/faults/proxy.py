"""A TCP proxy in front of a server's socket: it can stop forwarding without closing anything, and be slow."""

import contextlib
import socket
import threading
import time


class Proxy:
    def __init__(self, path: str):
        """path: the server's socket file; it may be changed, for connections that are asked for then."""
        self.path = path
        self.asked = 0  # connections that were asked for
        self._may_pass = threading.Event()
        self._may_pass.set()
        self._delay = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Forward nothing from now on: neither data, nor new connections, nor the end of one."""
        self._may_pass.clear()

    def restore(self) -> None:
        """Forward again, what was held back first."""
        self._may_pass.set()

    def slow_down(self, seconds: float) -> None:
        """Have every packet take so much longer."""
        self._delay = seconds

    def close(self) -> None:
        """Take no connections any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which wakes who waits for one
        self._listener.close()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            self.asked += 1
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client):
        self._may_pass.wait()
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(self.path)
            back = threading.Thread(target=self._pump, args=[server, client], daemon=True)
            back.start()
            self._pump(client, server)
            back.join()

    def _pump(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._pass()
                target.sendall(data)
        self._pass()
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pass(self):
        self._may_pass.wait()
        time.sleep(self._delay)
