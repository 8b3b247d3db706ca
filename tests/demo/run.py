#!/usr/bin/env python3
"""`make run`: natsmux between two brokers that keep dying, and nobody notices.

Environment: PORT (4222) and HTTP (8222) for natsmux, KILL=0 to kill brokers by
hand, NATS_SERVER for a broker of your own. Ends on SIGINT, SIGTERM or SIGHUP and
leaves nothing behind but natsmux's log.
"""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True

import processes as ps
from peers import Publisher, Subscriber

KILL_EVERY = 10
RETURN_AFTER = 3
READY_SECONDS = 10
SIGINT_BIT = 1 << (signal.SIGINT - 1)
stopping = threading.Event()


class Failure(Exception):
    """Something the user can act on; its text is all that is printed."""


def say(text):
    try:
        print(text, flush=True)
    except (BrokenPipeError, ValueError):
        stopping.set()


def port_from(name, default):
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise Failure(f"{name}={text} is no port number")
    return int(text)


def check_ports(ports):
    if len(set(ports.values())) < len(ports):
        raise Failure(f"PORT and HTTP must differ, and both are {ports['PORT']}")
    for name, port in ports.items():
        if not ps.port_is_free(port):
            raise Failure(
                f"port {port} on 127.0.0.1 is taken, and the demo needs it: "
                f"stop what listens there, or choose another: make run {name}=PORT"
            )


def broker_binary():
    fetched = ps.target_dir() / "tools" / "nats-server-2.15" / "nats-server"
    binary = pathlib.Path(os.environ.get("NATS_SERVER") or fetched)
    if not os.access(binary, os.X_OK) or binary.is_dir():
        raise Failure(f"no broker at {binary}: make run fetches one, NATS_SERVER=path names your own")
    return binary


class ParentMake:
    """make waits for its recipe after SIGINT without passing the signal on, but it
    resets its handler first: a make that stopped catching SIGINT wants to end."""

    def __init__(self):
        self._pid = os.getppid()
        self._caught_at_start = self._catches_sigint()

    def _catches_sigint(self):
        try:
            status = pathlib.Path(f"/proc/{self._pid}/status").read_text()
        except OSError:
            return False
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        return fields.get("Name") == "make" and bool(int(fields["SigCgt"], 16) & SIGINT_BIT)

    def wants_to_end(self):
        return self._caught_at_start and not self._catches_sigint()


class Demo:
    """Owns every process and both peers; `run` returns the exit code."""

    def __init__(self, folder):
        self.folder = folder
        self.make = ParentMake()
        self.killing = os.environ.get("KILL", "1") != "0"
        self.ports = {"PORT": port_from("PORT", 4222), "HTTP": port_from("HTTP", 8222)}
        self.brokers, self.peers = [], []
        self.natsmux = None
        self.kills = self.closed = 0

    def start(self):
        check_ports(self.ports)
        binary, mux = broker_binary(), ps.target_dir() / "release" / "natsmux"
        p1, r1, p2, r2 = ps.free_ports(4, self.ports.values())
        self.brokers = [
            ps.Broker(binary, "broker-1", p1, r1, r2, self.folder),
            ps.Broker(binary, "broker-2", p2, r2, r1, self.folder),
        ]
        for broker in self.brokers:
            broker.start()
        for broker in self.brokers:
            self.wait(broker.answers, f"{broker.name} does not answer on {broker.address()}")
            say(f"{broker.name} listens on {broker.address()} pid={broker.process.pid}")
        self.start_natsmux(mux)
        self.start_peers()

    def start_natsmux(self, mux):
        logs = ps.target_dir() / "demo"
        logs.mkdir(parents=True, exist_ok=True)
        port, http = self.ports["PORT"], self.ports["HTTP"]
        control = pathlib.Path(self.folder) / "control.sock"
        log = logs / f"natsmux-{port}.log"
        self.natsmux = ps.Natsmux(mux, port, http, self.brokers, log, control)
        say(f"natsmux listens on 127.0.0.1:{port}, http://127.0.0.1:{http}/varz "
            f"pid={self.natsmux.process.pid} log={self.natsmux.log_path}")
        say(f"commands: {mux} move default --socket {control}")
        self.wait(self.natsmux.is_healthy, "natsmux does not become healthy")

    def start_peers(self):
        port = self.ports["PORT"]
        for kind in (Subscriber, Publisher):
            try:
                self.peers.append(kind(port, self.on_close))
            except OSError as error:
                raise Failure(f"natsmux did not admit the {kind.__name__.lower()}: {error}")
        for peer in self.peers:
            peer.run()
        say("one publisher, one subscriber, 100 messages a second; neither ever reconnects")
        if self.killing:
            say(f"every {KILL_EVERY} s the broker in use is killed; it returns {RETURN_AFTER} s later; Ctrl-C ends")
        else:
            pids = " or ".join(f"kill -9 {b.process.pid} ({b.name})" for b in self.brokers)
            say(f"KILL=0: the killing is yours: {pids}; what dies is started again after {RETURN_AFTER} s")

    def wait(self, test, complaint):
        alive = lambda: not stopping.is_set() and self.dead_daemon() is None
        if not ps.wait_until(test, READY_SECONDS, alive) and not stopping.is_set():
            raise Failure(self.dead_daemon() or complaint)

    def dead_daemon(self):
        if self.natsmux is None or self.natsmux.process.poll() is None:
            return None
        code = self.natsmux.process.returncode
        tail = self.natsmux.log_path.read_text(errors="replace").splitlines()[-10:]
        return "\n  ".join([f"natsmux ended ({ps.describe_exit(code)}); its last lines:", *tail])

    def on_close(self, peer):
        self.closed += 1
        say(f"CLOSED !!! natsmux closed the session of {peer.name}: {peer.closed}")

    def run(self):
        self.start()
        started = time.monotonic()
        second = 0
        while not stopping.is_set():
            second += 1
            while not stopping.wait(min(0.1, max(0.0, started + second - time.monotonic()))):
                self.restart_due()
                if time.monotonic() >= started + second or self.make.wants_to_end():
                    break
            if stopping.is_set() or self.make.wants_to_end():
                break
            if complaint := self.dead_daemon():
                raise Failure(complaint)
            self.tick(second)
        return self.conclude()

    def tick(self, second):
        varz = self.natsmux.varz() or {}
        current = (varz.get("buses") or [{}])[0].get("current") or "none"
        subscriber = self.peers[0]
        line = (f"t={second}s sessions={varz.get('sessions', '?')} delivered={subscriber.delivered} "
                f"lost={subscriber.lost} gap_max={subscriber.gap_max_ms()}ms broker={current}")
        if subscriber.late:
            line += f" repeated={subscriber.late}"
        if self.closed:
            line += f" CLOSED={self.closed}"
        say(line)
        if self.killing and second % KILL_EVERY == 0:
            self.kill(current)

    def kill(self, current):
        for broker in self.brokers:
            if broker.address() == current and broker.is_running():
                say(f"kill {broker.name} on {current} pid={broker.process.pid} with SIGKILL")
                broker.process.kill()
                broker.process.wait()
                broker.return_at = time.monotonic() + RETURN_AFTER
                self.kills += 1
                return
        say(f"skip: natsmux's broker is {current}, there is none to kill")

    def restart_due(self):
        now = time.monotonic()
        for broker in self.brokers:
            if broker.is_running():
                continue
            if broker.return_at is None:
                how = ps.describe_exit(broker.process.returncode)
                say(f"died {broker.name} on {broker.address()} ({how}); it returns in {RETURN_AFTER} s")
                broker.return_at = now + RETURN_AFTER
            elif now >= broker.return_at:
                broker.start()
                say(f"back {broker.name} on {broker.address()} pid={broker.process.pid}")

    def conclude(self):
        if len(self.peers) == 2:
            subscriber, publisher = self.peers
            say(f"end: kills={self.kills} published={publisher.published} delivered={subscriber.delivered} "
                f"lost={subscriber.lost} gap_max={subscriber.gap_max_ms()}ms closed={self.closed}")
        return 1 if self.closed else 0

    def close(self):
        for peer in self.peers:
            peer.stop()
        if self.natsmux is not None:
            self.natsmux.close()
        for broker in self.brokers:
            broker.close()


def main():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    with tempfile.TemporaryDirectory(prefix="natsmux-demo-") as folder:
        demo = None
        try:
            demo = Demo(pathlib.Path(folder))
            if "--check" in sys.argv:
                check_ports(demo.ports)
                return 0
            return demo.run()
        except (Failure, OSError, subprocess.SubprocessError) as error:
            print(f"make run: {error}", file=sys.stderr, flush=True)
            return 1
        finally:
            if demo is not None:
                demo.close()


if __name__ == "__main__":
    code = main()
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)
