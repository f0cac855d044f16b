"""A TCP proxy that behaves as badly as a network can."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class TcpProxy:
    """Forwards connections to one address until told to misbehave.

    Faults: `cut` closes what is open and refuses what comes; `drop` closes what is open once; `swallow`
    reads and forwards nothing, as a firewall that drops packets would; `delay` holds everything back.

    Args:
        target: host:port to forward to.
        port: port to listen on; 0 takes a free one.
    """

    def __init__(self, target: str, port: int = 0) -> None:
        host, _, target_port = target.rpartition(":")
        self._target = (host, int(target_port))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._refusing = False
        self._swallowing = threading.Event()
        self._delay = 0.0
        self._server = socket.create_server(("127.0.0.1", port))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept, name="tcp-proxy", daemon=True)
        self._acceptor.start()

    def cut(self) -> None:
        """Close every connection and every one to come."""
        self._refusing = True
        self.drop()

    def drop(self) -> None:
        """Close every connection; new ones are served."""
        with self._lock:
            doomed, self._open = self._open, set()
        for connection in doomed:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def swallow(self) -> None:
        """Forward nothing any more, and say nothing."""
        self._swallowing.set()

    def delay(self, seconds: float) -> None:
        """Hold everything back that long."""
        self._delay = seconds

    def heal(self) -> None:
        """Behave again; what was swallowed stays lost, so connections that lost something are closed."""
        self._refusing = False
        self._delay = 0.0
        if self._swallowing.is_set():
            self.drop()
            self._swallowing.clear()

    def close(self) -> None:
        """Stop for good."""
        self.cut()
        # Closing alone would leave the thread in accept, and the port with it.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._acceptor.join(timeout=10)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if self._refusing:
                near.close()
                continue
            try:
                far = socket.create_connection(self._target, timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if self._delay:
                    time.sleep(self._delay)
                if not self._swallowing.is_set():
                    sink.sendall(data)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open -= {source, sink}
            for connection in (source, sink):
                connection.close()
