"""nats-py's pull consumers of stream S, while the test kills brokers: argv is URL NAME [again].

For each line `mark` on stdin prints, for each consumer, its longest silence since the last one,
and at the line `stop` one `report`. With `again` the library reconnects by itself.
"""

import asyncio
import json
import sys

import nats
from nats.js.api import ConsumerConfig

# Each with its batch and its time-out in seconds.
FETCHES = {"fetch5": (10, 5), "fetch30": (20, 30)}
ACK_WAIT = 5
PATIENCE = 30.0


def emit(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


class Consumer:
    def __init__(self):
        self.received, self.double, self.failed = 0, 0, 0
        self.seen, self.last, self.gap = set(), None, 0.0

    def take(self, msg):
        now = asyncio.get_running_loop().time()
        if self.last is not None:
            self.gap = max(self.gap, now - self.last)
        self.last = now
        self.received += 1
        number = msg.metadata.sequence.stream
        self.double += number in self.seen and msg.metadata.num_delivered == 1
        self.seen.add(number)

    def take_gap(self):
        now = asyncio.get_running_loop().time()
        gap = max(self.gap, now - (self.last or now))
        self.gap = 0.0
        return round(gap, 3)


async def stubborn(call):
    end = asyncio.get_running_loop().time() + PATIENCE
    while True:
        try:
            return await call()
        except Exception:
            if asyncio.get_running_loop().time() > end:
                raise
            await asyncio.sleep(0.05)


async def fetch(js, name, kind, consumer):
    batch, seconds = FETCHES[kind]
    config = ConsumerConfig(ack_wait=ACK_WAIT, max_ack_pending=50_000, num_replicas=3)
    durable = f"{name}-{kind}"
    sub = await stubborn(lambda: js.pull_subscribe("s", durable, stream="S", config=config))
    while True:
        try:
            for msg in await sub.fetch(batch, timeout=seconds):
                consumer.take(msg)
                await msg.ack()
        except nats.errors.TimeoutError:
            consumer.failed += 1
        except Exception as error:
            consumer.failed += 1
            print(f"{kind}: {error!r}", file=sys.stderr, flush=True)
            await asyncio.sleep(0.05)


async def main(url, name, again=None):
    counts = {"disconnects": 0, "errors": 0}

    async def on_disconnect():
        counts["disconnects"] += 1

    async def on_error(error):
        counts["errors"] += 1

    nc = await nats.connect(url, allow_reconnect=again is not None, reconnect_time_wait=0.1,
                            max_reconnect_attempts=-1, error_cb=on_error, disconnected_cb=on_disconnect)
    js = nc.jetstream()
    consumers = {kind: Consumer() for kind in FETCHES}
    tasks = [asyncio.create_task(fetch(js, name, kind, consumer)) for kind, consumer in consumers.items()]
    loop = asyncio.get_running_loop()
    while True:
        read = loop.run_in_executor(None, sys.stdin.readline)
        while not read.done():
            emit("progress", received=min(consumer.received for consumer in consumers.values()))
            await asyncio.wait([read], timeout=0.1)
        if read.result().strip() != "mark":
            break
        emit("gaps", **{kind: consumer.take_gap() for kind, consumer in consumers.items()})
    report = {kind: {"received": c.received, "distinct": len(c.seen), "double": c.double, "failed": c.failed}
              for kind, c in consumers.items()}
    emit("report", consumers=report, **counts)
    for task in tasks:
        task.cancel()
    await nc.close()
    return 0


sys.exit(asyncio.run(main(*sys.argv[1:])))
