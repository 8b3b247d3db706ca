"""The publisher and the subscriber of the demo: raw NATS on one socket each.

They speak the protocol by hand and never reconnect, so that any session which
natsmux loses is seen. Each owns its threads; the demo only reads their counters.
"""

import json
import socket
import threading
import time

SUBJECT = "demo.tick"
CONNECT_SECONDS = 5.0
RATE = 100


class Peer:
    """One session through natsmux, with the PING answered and the end noticed."""

    def __init__(self, name, port, on_close):
        self.name = name
        self.closed = None
        self._on_close = on_close
        self._stopping = threading.Event()
        self._send_lock = threading.Lock()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=CONNECT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._handshake()
        self._socket.settimeout(None)

    def _handshake(self):
        info = self._file.readline()
        if not info.startswith(b"INFO "):
            raise ConnectionError(f"{self.name}: no INFO but {info[:80]!r}")
        options = {"verbose": False, "pedantic": False, "protocol": 1, "lang": "raw", "name": self.name}
        self.send(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
        while (line := self._file.readline()) != b"PONG\r\n":
            if not line.startswith(b"INFO "):
                raise ConnectionError(f"{self.name}: no PONG but {line[:80]!r}")

    def send(self, data):
        with self._send_lock:
            self._socket.sendall(data)

    def start(self, *loops):
        for loop in loops:
            threading.Thread(target=self._guard, args=(loop,), daemon=True, name=self.name).start()

    def _guard(self, loop):
        try:
            loop()
            reason = "the stream ended"
        except (OSError, ValueError, ConnectionError) as error:
            reason = str(error)
        if not self._stopping.is_set() and self.closed is None:
            self.closed = reason
            self._on_close(self)

    def read_loop(self):
        while line := self._file.readline():
            verb = line[:4].upper()
            if verb == b"PING":
                self.send(b"PONG\r\n")
            elif verb == b"MSG ":
                size = int(line.split()[-1])
                payload = self._file.read(size + 2)
                if len(payload) != size + 2 or payload[-2:] != b"\r\n":
                    raise ConnectionError(f"a message was cut: {line[:80]!r}")
                self.on_message(payload[:-2])
            elif verb == b"-ERR":
                raise ConnectionError(line.strip().decode(errors="replace"))

    def on_message(self, payload):
        """Only the subscriber subscribes."""

    def stop(self):
        self._stopping.set()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


class Publisher(Peer):
    """Publishes 1, 2, 3 … at RATE a second."""

    def __init__(self, port, on_close):
        super().__init__("demo-publisher", port, on_close)
        self.published = 0

    def run(self):
        self.start(self.read_loop, self._publish_loop)

    def _publish_loop(self):
        due = time.monotonic()
        while not self._stopping.is_set():
            body = str(self.published + 1).encode()
            self.send(b"PUB %s %d\r\n%s\r\n" % (SUBJECT.encode(), len(body), body))
            self.published += 1
            due += 1 / RATE
            self._stopping.wait(max(0.0, due - time.monotonic()))


class Subscriber(Peer):
    """Counts what arrives, what was skipped and the longest silence."""

    def __init__(self, port, on_close):
        super().__init__("demo-subscriber", port, on_close)
        self.delivered = self.lost = self.late = 0
        self._gap_max = 0.0
        self._last_seq = 0
        self._last_at = None
        # Behind this PONG the broker knows the subscription: nothing is published before.
        self.send(b"SUB %s 1\r\nPING\r\n" % SUBJECT.encode())
        while self._file.readline() != b"PONG\r\n":
            pass

    def run(self):
        self.start(self.read_loop)

    def on_message(self, payload):
        now, seq = time.monotonic(), int(payload)
        if self._last_at is not None:
            self._gap_max = max(self._gap_max, now - self._last_at)
        self._last_at = now
        self.delivered += 1
        if seq <= self._last_seq:
            self.late += 1
            return
        self.lost += seq - self._last_seq - 1
        self._last_seq = seq

    def gap_max_ms(self):
        """The longest silence so far, the present one included, in milliseconds."""
        if self._last_at is None:
            return 0
        return round(1000 * max(self._gap_max, time.monotonic() - self._last_at))
