"""nats-py as a component: argv is URL PREFIX basic|refused|start|steady [MAX].

Prints one JSON object a line; exit code 0 only if all was as expected. Its own
reconnect is off, unless the URL says so. In mode steady a line on stdin stops it.
"""

import asyncio
import json
import ssl
import sys

import nats
from nats.errors import MaxPayloadError, NoRespondersError, TimeoutError

PATIENCE = 5.0
START_PATIENCE = 20.0
PERIOD = 0.002
PROGRESS = 0.1
failed = False


def emit(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


def step(name, got, expected):
    """One line of the transcript."""
    global failed
    failed = failed or got != expected
    emit("step", name=name, got=got, ok=got == expected)


class Counts:
    def __init__(self, quiet=False):
        self.disconnects = self.errors = 0
        self.quiet = quiet

    async def on_disconnect(self):
        self.disconnects += 1

    async def on_error(self, error):
        self.errors += 1
        if not self.quiet:
            print(f"error: {error!r}", file=sys.stderr, flush=True)


async def connect(url, counts, **more):
    """A URL may name, behind a `#`, the authorities of a listener's certificate, or a file of
    credentials as `creds=`; as `again=`, the library reconnects."""
    url, _, ca = url.partition("#")
    kind, _, creds = ca.rpartition("=")
    if creds and kind:
        more["user_credentials"] = creds
    elif ca:
        more["tls"] = ssl.create_default_context(cafile=ca)
    return await nats.connect(
        url, allow_reconnect=kind == "again", connect_timeout=PATIENCE, error_cb=counts.on_error,
        disconnected_cb=counts.on_disconnect, reconnect_time_wait=0.1, **more,
    )


async def settle(nc):
    """nats-py's flush sends its PING ahead of what is still pending, so that only a
    second one says that the broker has seen all."""
    await nc.flush(PATIENCE)
    await nc.flush(PATIENCE)


async def collect(sub, count):
    """Up to `count` payloads that are there or come soon."""
    got = []
    try:
        while len(got) < count:
            got.append(await sub.next_msg(timeout=PATIENCE))
    except TimeoutError:
        pass
    return got


async def silent(nc, sub):
    """True if nothing more is on its way to `sub`."""
    await settle(nc)
    return sub.pending_msgs == 0


async def delivery(nc, prefix):
    sub = await nc.subscribe(f"{prefix}.plain")
    for i in range(5):
        await nc.publish(f"{prefix}.plain", str(i).encode())
    step("plain", [m.data.decode() for m in await collect(sub, 5)], ["0", "1", "2", "3", "4"])

    star, tail = await nc.subscribe(f"{prefix}.w.*.x"), await nc.subscribe(f"{prefix}.w.>")
    for end in ("a.x", "b.x", "a.y.z"):
        await nc.publish(f"{prefix}.w.{end}", b"")
    subjects = lambda msgs: [m.subject.removeprefix(f"{prefix}.w.") for m in msgs]
    step("wildcard star", subjects(await collect(star, 2)), ["a.x", "b.x"])
    step("wildcard tail", subjects(await collect(tail, 3)), ["a.x", "b.x", "a.y.z"])

    members = [await nc.subscribe(f"{prefix}.queue", queue="workers") for _ in range(3)]
    for i in range(30):
        await nc.publish(f"{prefix}.queue", str(i).encode())
    await settle(nc)
    got = [m.data for member in members for m in await collect(member, member.pending_msgs)]
    step("queue group", [len(got), len(set(got))], [30, 30])


async def requests(nc, prefix):
    async def answer(msg):
        await msg.respond(b"re " + msg.data)

    await nc.subscribe(f"{prefix}.service", cb=answer)
    reply = await nc.request(f"{prefix}.service", b"question", timeout=PATIENCE)
    step("request", reply.data.decode(), "re question")
    reply = await nc.request(f"{prefix}.service", b"old style", timeout=PATIENCE, old_style=True)
    step("request with an inbox of its own", reply.data.decode(), "re old style")
    try:
        await nc.request(f"{prefix}.nobody", b"", timeout=PATIENCE)
        step("no responders", "an answer", "none")
    except NoRespondersError:
        step("no responders", "none", "none")

    sub = await nc.subscribe(f"{prefix}.headers")
    await nc.publish(f"{prefix}.headers", b"body", headers={"one": "1", "two": "a: b"})
    (msg,) = await collect(sub, 1)
    step("headers", [msg.headers, msg.data.decode()], [{"one": "1", "two": "a: b"}, "body"])


async def limits(nc, prefix):
    sub = await nc.subscribe(f"{prefix}.max")
    await sub.unsubscribe(3)
    for _ in range(5):
        await nc.publish(f"{prefix}.max", b"")
    await settle(nc)
    step("unsubscribe with max", sub._received, 3)

    got = []
    async def note(msg):
        got.append(msg.data.decode())
    sub = await nc.subscribe(f"{prefix}.gone", cb=note)
    await nc.publish(f"{prefix}.gone", b"heard")
    for _ in range(500):
        if got:
            break
        await asyncio.sleep(0.01)
    await sub.unsubscribe()
    await nc.publish(f"{prefix}.gone", b"unheard")
    await settle(nc)
    step("unsubscribe", got, ["heard"])

    sub = await nc.subscribe(f"{prefix}.binary")
    payloads = [bytes(range(256)), b"PUB a 1\r\nx\r\nMSG a 1 1\r\nPING\r\n-ERR 'x'\r\n", b"", b"\r\n"]
    for payload in payloads:
        await nc.publish(f"{prefix}.binary", payload)
    step("binary", [m.data.hex() for m in await collect(sub, 4)], [p.hex() for p in payloads])
    big = bytes(i * 7 % 251 for i in range(nc.max_payload))
    await nc.publish(f"{prefix}.binary", big)
    step("largest payload", [m.data == big for m in await collect(sub, 1)], [True])
    try:
        await nc.publish(f"{prefix}.binary", big + b"x")
        step("too large", "sent", "refused")
    except MaxPayloadError:
        step("too large", "refused", "refused")


async def neighbours(url, nc, prefix, counts):
    other, deaf = await connect(url, counts), await connect(url, counts, no_echo=True)
    heard, own = await other.subscribe(f"{prefix}.n"), await deaf.subscribe(f"{prefix}.n")
    await settle(other)
    await settle(deaf)
    for i in range(5):
        await deaf.publish(f"{prefix}.n", str(i).encode())
    step("other connection", [m.data.decode() for m in await collect(heard, 5)], ["0", "1", "2", "3", "4"])
    step("no echo", await silent(deaf, own), True)

    await deaf.close()
    got = []
    async def note(msg):
        got.append(int(msg.data))
    await other.subscribe(f"{prefix}.drain", cb=note)
    await settle(other)
    for i in range(20):
        await nc.publish(f"{prefix}.drain", str(i).encode())
    await settle(nc)
    await other.drain()
    step("drain", [got == list(range(20)), other.is_closed], [True, True])


async def basic(url, prefix):
    counts = Counts()
    nc = await connect(url, counts)
    info = nc._server_info
    step("connect", [info.get("headers"), nc.max_payload], [True, 1048576])
    await delivery(nc, prefix)
    await requests(nc, prefix)
    await limits(nc, prefix)
    await neighbours(url, nc, prefix, counts)
    step("still connected", [nc.is_connected, counts.errors], [True, 0])
    await nc.close()


async def refused(url):
    try:
        await connect(url, Counts(quiet=True))
        step("refused", "admitted", "refused")
    except Exception as error:
        text = str(error)
        step("refused", "refused" if "Authorization Violation" in text else text, "refused")


async def start(url, prefix):
    """Started while no broker may be alive: says when it was let in, and when a message of
    its own had come back."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    took = lambda: round((clock() - begun) * 1000)
    nc = await nats.connect(url, allow_reconnect=False, connect_timeout=START_PATIENCE)
    emit("connected", ms=took())
    sub = await nc.subscribe(f"{prefix}.start")
    await nc.publish(f"{prefix}.start", b"early")
    msg = await sub.next_msg(timeout=START_PATIENCE)
    emit("received", ms=took())
    step("own message", msg.data.decode(), "early")
    await nc.close()


class Receiver:
    """What one connection received of the numbered messages."""

    def __init__(self):
        self.seen, self.last, self.duplicates, self.out_of_order = set(), 0, 0, 0

    async def on_message(self, msg):
        number = int(msg.data)
        if number in self.seen:
            self.duplicates += 1
        elif number < self.last:
            self.out_of_order += 1
        self.seen.add(number)
        self.last = max(self.last, number)


async def steady(url, prefix, most):
    counts, same, other = Counts(), Receiver(), Receiver()
    a, b = await connect(url, counts), await connect(url, counts)
    await a.subscribe(f"{prefix}.steady", cb=same.on_message)
    await b.subscribe(f"{prefix}.steady", cb=other.on_message)
    await asyncio.gather(settle(a), settle(b))
    loop = asyncio.get_running_loop()
    stop = loop.run_in_executor(None, sys.stdin.readline)
    published, due, progress = 0, loop.time(), loop.time()
    while not stop.done() and published < most and not a.is_closed:
        published += 1
        await a.publish(f"{prefix}.steady", str(published).encode())
        now = loop.time()
        if now >= progress:
            emit("progress", published=published, received=min(same.last, other.last))
            progress = now + PROGRESS
        due = max(due + PERIOD, now - PROGRESS)
        await asyncio.sleep(max(0, due - now))
    await finish(a, b, counts, same, other, published)


async def finish(a, b, counts, same, other, published):
    for connection in (a, b):
        try:
            await settle(connection)
        except Exception as error:
            await counts.on_error(error)
    deadline = asyncio.get_running_loop().time() + 2
    while min(same.last, other.last) < published and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.01)
    both = same.seen & other.seen
    duplicates = same.duplicates + other.duplicates
    out_of_order = same.out_of_order + other.out_of_order
    disconnects, errors = counts.disconnects, counts.errors
    emit("report", published=published, received=len(both), missing=published - len(both),
         duplicates=duplicates, out_of_order=out_of_order, disconnects=disconnects, errors=errors)
    global failed
    failed = bool(disconnects or errors or duplicates or out_of_order)
    await a.close()
    await b.close()


async def main(url, prefix, mode, most="0"):
    if mode == "basic":
        await basic(url, prefix)
    elif mode == "refused":
        await refused(url)
    elif mode == "start":
        await start(url, prefix)
    else:
        await steady(url, prefix, int(most))


asyncio.run(main(*sys.argv[1:]))
sys.exit(1 if failed else 0)
