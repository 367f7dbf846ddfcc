"""A cable that can be cut: a TCP proxy between a node and its server, which sees nothing of the TLS inside.

`cut` ends all connections and accepts no other, as a router that is switched off; `mend` lets them through again.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from shared import ports


class Cable:
    """Carries connections to `port` of 127.0.0.1 to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target, self.port = target, ports.free()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.mend()

    def mend(self) -> None:
        """Let connections through."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """End all connections, with a reset, and refuse new ones."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for line in list(self._open):
            with contextlib.suppress(OSError):
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                line.shutdown(socket.SHUT_RDWR)
            line.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                inner = listener.accept()[0]
                try:
                    outer = socket.create_connection(self.target, timeout=10)
                except OSError:
                    inner.close()
                    continue
                outer.settimeout(None)
                self._open |= {inner, outer}
                for one, other in ((inner, outer), (outer, inner)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
