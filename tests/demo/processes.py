"""The processes of the demo: two clustered brokers and natsmux.

Each runs in a session of its own, so that Ctrl-C in a terminal reaches the demo
alone, and dies with the demo even when that is killed (setpriv, where present).
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

STOP_SECONDS = 5
HTTP_SECONDS = 0.5
PORTS = range(14000, 30000)


def spawn(command, log):
    """Starts `command` with its output appended to the open file `log`."""
    if guard := shutil.which("setpriv"):
        command = [guard, "--pdeathsig", "KILL", "--", *command]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )


def stop(process, seconds=STOP_SECONDS):
    """Asks, waits, insists. Never leaves `process` behind."""
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def port_is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count, avoid):
    """Ports below the range that the kernel gives to outgoing connections."""
    found = []
    start = os.getpid() * 7 % len(PORTS)
    for step in range(len(PORTS)):
        port = PORTS[(start + step) % len(PORTS)]
        if port not in avoid and port_is_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise OSError("no free ports for the brokers")


def describe_exit(code):
    if code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


class Broker:
    """One nats-server that comes back on the same ports."""

    def __init__(self, binary, name, port, route_port, peer_route_port, folder):
        self.name, self.port = name, port
        self.process = None
        self.return_at = None
        self._log = open(folder / f"{name}.log", "ab")
        config = folder / f"{name}.conf"
        config.write_text(
            f"server_name: {name}\nlisten: 127.0.0.1:{port}\n"
            f"cluster {{ name: demo, listen: 127.0.0.1:{route_port}, "
            f"routes: [nats://127.0.0.1:{peer_route_port}] }}\n"
        )
        self._command = [str(binary), "-c", str(config)]

    def start(self):
        self.return_at = None
        self.process = spawn(self._command, self._log)

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def address(self):
        return f"127.0.0.1:{self.port}"

    def answers(self):
        """True if it greets with INFO."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=HTTP_SECONDS) as s:
                return s.recv(5) == b"INFO "
        except OSError:
            return False

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()


class Natsmux:
    """The daemon, and what its HTTP says."""

    def __init__(self, binary, port, http, brokers, log_path, control):
        self.port, self.http, self.log_path = port, http, log_path
        self._log = open(log_path, "wb")
        urls = ",".join(f"nats://{broker.address()}" for broker in brokers)
        command = [str(binary), "run", "--listen", f"127.0.0.1:{port}", "--broker", urls]
        command += ["--http", f"127.0.0.1:{http}", "--control", str(control)]
        self.process = spawn(command, self._log)

    def is_healthy(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/healthz", timeout=HTTP_SECONDS) as answer:
                return answer.status == 200
        except OSError:
            return False

    def varz(self):
        """`/varz`, or None while it doesn't answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/varz", timeout=HTTP_SECONDS) as answer:
                return json.load(answer)["natsmux"]
        except (OSError, ValueError, KeyError):
            return None

    def close(self):
        stop(self.process)
        self._log.close()


def wait_until(test, seconds, keep_waiting):
    """Polls `test` for at most `seconds`, while `keep_waiting()`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and keep_waiting():
        if test():
            return True
        time.sleep(0.02)
    return False


def target_dir():
    root = pathlib.Path(__file__).resolve().parents[2]
    return root / os.environ.get("CARGO_TARGET_DIR", "target")
