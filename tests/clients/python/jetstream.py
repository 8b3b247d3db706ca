"""JetStream through natsmux, while the test kills and freezes brokers: argv is URL NAME [again].

Publishes numbered messages with acknowledgement until a line comes on stdin, and listens
to them as a pull, a push and an ordered consumer, watches a key-value bucket and keeps
objects; with `again` the library reconnects by itself. Prints `progress` and at the end one `report`, one JSON object a line; exit code
0 only if nothing is missing, and nothing double or out of order where JetStream says so.
"""

import asyncio
import hashlib
import json
import os
import sys

import nats
from nats.js.api import ConsumerConfig, KeyValueConfig, ObjectStoreConfig, StreamConfig

PATIENCE = 30.0
TRY = 2.0
PERIOD = 0.005
PROGRESS = 0.1
MOST = 50_000
REPLICAS = 3
OBJECT = 300_000


def emit(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


async def stubborn(what, call):
    """Asks again, as programs do, while brokers elect a leader: at most PATIENCE long."""
    clock = asyncio.get_running_loop().time
    end = clock() + PATIENCE
    while True:
        try:
            return await call()
        except Exception as error:
            if clock() > end:
                raise RuntimeError(f"{what}: {error!r}") from error
            await asyncio.sleep(0.05)


class Numbers:
    """The numbers that came to one consumer."""

    def __init__(self, acknowledged):
        self.seen, self.last, self.double, self.late = set(), 0, 0, 0
        self.acknowledged, self.lag = acknowledged, 0.0

    def take(self, number):
        now = asyncio.get_running_loop().time()
        self.lag = max(self.lag, now - self.acknowledged.get(number, now))
        if number in self.seen:
            self.double += 1
        elif number < self.last:
            self.late += 1
        self.seen.add(number)
        self.last = max(self.last, number)

    def report(self, published):
        missing = published - len(self.seen)
        lag = round(self.lag, 2)
        return {"missing": missing, "double": self.double, "late": self.late, "lag": lag}


class Scene:
    def __init__(self, nc, name):
        self.nc, self.name, self.js = nc, name, nc.jetstream(timeout=TRY)
        # When each number was acknowledged: what comes long behind that shows a silent consumer.
        self.acknowledged, self.puts = {}, {}
        self.pull, self.push, self.ordered = (Numbers(self.acknowledged) for _ in range(3))
        self.watched = Numbers(self.puts)
        self.slowest = 0.0
        self.published = 0
        self.over = False
        self.gave_up = False

    async def build(self):
        js, name = self.js, self.name
        config = StreamConfig(name=name, subjects=[f"{name}.>"], num_replicas=REPLICAS)
        await stubborn("stream", lambda: js.add_stream(config))
        bucket = KeyValueConfig(bucket=f"kv-{name}", replicas=REPLICAS, history=1)
        self.kv = await stubborn("bucket", lambda: js.create_key_value(bucket))
        objects = ObjectStoreConfig(replicas=REPLICAS)
        self.objects = await stubborn("objects", lambda: js.create_object_store(f"ob-{name}", objects))
        acked = lambda: ConsumerConfig(ack_wait=5, max_ack_pending=5000)
        self.puller = await stubborn("pull", lambda: js.pull_subscribe(f"{name}.n", "pull", config=acked()))
        await stubborn("push", lambda: js.subscribe(
            f"{name}.n", durable="push", cb=self.on_push, manual_ack=True, config=acked()))
        await stubborn("ordered", lambda: js.subscribe(
            f"{name}.n", ordered_consumer=True, cb=self.on_ordered))
        self.watcher = await stubborn("watch", lambda: self.kv.watch("key"))

    async def on_push(self, msg):
        self.push.take(int(msg.data))
        await msg.ack()

    async def on_ordered(self, msg):
        self.ordered.take(int(msg.data))

    async def fetch(self):
        while not self.over:
            try:
                batch = await self.puller.fetch(100, timeout=1)
            except nats.errors.TimeoutError:
                continue
            except Exception:
                await asyncio.sleep(0.05)
                continue
            for msg in batch:
                self.pull.take(int(msg.data))
                await msg.ack()

    async def watch(self):
        while not self.over:
            if self.gave_up:
                # The library asked once for another consumer, while brokers elected a leader.
                self.gave_up = False
                self.watcher = await stubborn("watch", lambda: self.kv.watch("key"))
            try:
                entry = await self.watcher.updates(timeout=1)
            except nats.errors.TimeoutError:
                continue
            if entry is not None:
                self.watched.take(int(entry.value))

    async def publish(self, number):
        # The broker drops a second copy of an id: the first one's answer may have died.
        headers = {"Nats-Msg-Id": str(number)}
        body = str(number).encode()
        clock = asyncio.get_running_loop().time
        began = clock()
        await stubborn("publish", lambda: self.js.publish(f"{self.name}.n", body, headers=headers))
        self.acknowledged[number] = clock()
        self.slowest = max(self.slowest, clock() - began)
        self.published = number
        if number % 10 == 0:
            await stubborn("put", lambda: self.kv.put("key", body))
            self.puts[number] = clock()

    async def keep_object(self, number):
        data = os.urandom(OBJECT)
        await stubborn("object", lambda: self.objects.put(f"o{number}", data))
        got = await stubborn("object back", lambda: self.objects.get(f"o{number}"))
        return hashlib.sha256(got.data).digest() == hashlib.sha256(data).digest()

    async def settle(self):
        clock = asyncio.get_running_loop().time
        end = clock() + PATIENCE
        consumers = (self.pull, self.push, self.ordered)
        while clock() < end and any(len(c.seen) < self.published for c in consumers):
            await asyncio.sleep(0.05)
        return await stubborn("get", lambda: self.kv.get("key"))


async def main(url, name, again=None):
    counts = {"disconnects": 0, "errors": 0}

    async def on_disconnect():
        counts["disconnects"] += 1

    async def on_error(error):
        counts["errors"] += 1
        scene.gave_up |= isinstance(error, nats.errors.TimeoutError)
        print(f"error: {error!r}", file=sys.stderr, flush=True)

    nc = await nats.connect(url, allow_reconnect=again is not None, reconnect_time_wait=0.1,
                            max_reconnect_attempts=-1, error_cb=on_error, disconnected_cb=on_disconnect)
    scene = Scene(nc, name)
    await scene.build()
    loop = asyncio.get_running_loop()
    stop = loop.run_in_executor(None, sys.stdin.readline)
    helpers = [asyncio.create_task(scene.fetch()), asyncio.create_task(scene.watch())]
    objects_good, progress, number = 0, loop.time(), 0
    objects = 0
    while not stop.done() and number < MOST:
        number += 1
        await scene.publish(number)
        if number % 200 == 0:
            objects += 1
            objects_good += await scene.keep_object(objects)
        if loop.time() >= progress:
            emit("progress", published=number, received=min(scene.pull.last, scene.push.last, scene.ordered.last))
            progress = loop.time() + PROGRESS
        await asyncio.sleep(PERIOD)
    entry = await scene.settle()
    scene.over = True
    await asyncio.wait(helpers, timeout=5)
    consumers = {c: getattr(scene, c).report(number) for c in ("pull", "push", "ordered")}
    newest = number // 10 * 10
    last_put, last_seen = int(entry.value), scene.watched.last
    emit("report", published=number, **consumers, puts=newest, last_put=last_put, last_watched=last_seen,
         watch_late=scene.watched.late, watch_lag=round(scene.watched.lag, 2),
         slowest=round(scene.slowest, 2), objects=objects, objects_good=objects_good, **counts)
    missing = sum(c["missing"] for c in consumers.values())
    ordered = consumers["ordered"]
    good = (missing == 0 and ordered["double"] == 0 and ordered["late"] == 0
            and last_put == last_seen == newest and scene.watched.late == 0
            and objects_good == objects and (again is not None or counts["disconnects"] == 0))
    await nc.close()
    return 0 if good else 1


sys.exit(asyncio.run(main(*sys.argv[1:])))
