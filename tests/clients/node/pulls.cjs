// npm nats' pull consumers of stream S, on the contract of python/pulls.py: argv is URL NAME [again].

"use strict";

const readline = require("node:readline");
const { connect, AckPolicy, nanos } = require("nats");

const ACK_WAIT = 5000;
const EXPIRES = 30000;
const KINDS = ["consume", "fetch", "next"];
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

function emit(event, fields) {
  process.stdout.write(JSON.stringify({ event, ...fields }) + "\n");
}

class Numbers {
  constructor() {
    Object.assign(this, { received: 0, double: 0, failed: 0, gap: 0, last: undefined, seen: new Set() });
  }

  take(msg) {
    const now = performance.now();
    if (this.last !== undefined) this.gap = Math.max(this.gap, now - this.last);
    this.last = now;
    this.received += 1;
    if (this.seen.has(msg.seq) && !msg.redelivered) this.double += 1;
    this.seen.add(msg.seq);
    msg.ack();
  }

  takeGap() {
    const now = performance.now();
    const gap = Math.max(this.gap, now - (this.last ?? now));
    this.gap = 0;
    return Math.round(gap) / 1000;
  }
}

async function stubborn(call) {
  for (let tries = 0; ; tries++) {
    try {
      return await call();
    } catch (error) {
      if (tries > 300) throw error;
      await sleep(100);
    }
  }
}

async function drain(messages, numbers) {
  for await (const msg of messages) numbers.take(msg);
}

const ways = {
  consume: async (consumer, numbers) => drain(await consumer.consume(), numbers),
  fetch: async (consumer, numbers) =>
    drain(await consumer.fetch({ max_messages: 1000, expires: EXPIRES }), numbers),
  next: async (consumer, numbers) => {
    const msg = await consumer.next({ expires: EXPIRES });
    if (msg) numbers.take(msg);
    else numbers.failed += 1;
  },
};

async function run(nc, name, kind, numbers) {
  const durable = `${name}-${kind}`;
  const config = {
    durable_name: durable,
    ack_policy: AckPolicy.Explicit,
    ack_wait: nanos(ACK_WAIT),
    max_ack_pending: 50000,
    num_replicas: 3,
  };
  const jsm = await stubborn(() => nc.jetstreamManager());
  await stubborn(() => jsm.consumers.add("S", config));
  const consumer = await stubborn(() => nc.jetstream().consumers.get("S", durable));
  for (;;) {
    try {
      await ways[kind](consumer, numbers);
    } catch (error) {
      if (nc.isClosed()) return;
      numbers.failed += 1;
      process.stderr.write(`${kind}: ${error}\n`);
      await sleep(50);
    }
  }
}

async function main(url, name, again) {
  const counts = { disconnects: 0, errors: 0 };
  const reconnects = again === undefined ? { reconnect: false } : { maxReconnectAttempts: -1, reconnectTimeWait: 100 };
  const nc = await connect({ servers: new URL(url).host, ...reconnects });
  (async () => {
    for await (const status of nc.status()) {
      if (status.type === "disconnect") counts.disconnects += 1;
      if (status.type === "error") counts.errors += 1;
    }
  })();
  const numbers = Object.fromEntries(KINDS.map((kind) => [kind, new Numbers()]));
  for (const kind of KINDS) run(nc, name, kind, numbers[kind]).catch(() => {});
  const progress = setInterval(() => {
    emit("progress", { received: Math.min(...KINDS.map((kind) => numbers[kind].received)) });
  }, 100);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    if (line !== "mark") break;
    emit("gaps", Object.fromEntries(KINDS.map((kind) => [kind, numbers[kind].takeGap()])));
  }
  clearInterval(progress);
  const of = ({ received, double, failed, seen }) => ({ received, distinct: seen.size, double, failed });
  const consumers = Object.fromEntries(KINDS.map((kind) => [kind, of(numbers[kind])]));
  emit("report", { consumers, ...counts });
  process.exit(0);
}

main(...process.argv.slice(2));
