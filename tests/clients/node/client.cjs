// npm's nats as a component: argv is URL PREFIX basic|refused|start|steady [MAX].
//
// Prints one JSON object a line; exit code 0 only if all was as expected. Its own
// reconnect is off, unless the URL says so. In mode steady a line on stdin stops it. Found through NODE_PATH.

"use strict";

const { readFileSync } = require("node:fs");
const { connect: dial, credsAuthenticator, headers, StringCodec } = require("nats");

const PATIENCE = 5000;
const START_PATIENCE = 20000;
const PERIOD = 2;
const PROGRESS = 100;
const text = StringCodec();
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
let failed = false;

function emit(event, fields) {
  process.stdout.write(JSON.stringify({ event, ...fields }) + "\n");
}

function step(name, got, expected) {
  const ok = JSON.stringify(got) === JSON.stringify(expected);
  failed = failed || !ok;
  emit("step", { name, got, ok });
}

async function connect(url, counts, more = {}) {
  const parsed = new URL(url);
  // A URL may name, behind a `#`, the authorities of a listener's certificate, or a file of
  // credentials as `creds=`; as `again=`, the library reconnects.
  const file = parsed.hash.slice(1);
  const [kind, path] = file.split("=");
  const creds = path && readFileSync(path);
  const named = creds ? { authenticator: credsAuthenticator(creds) } : { tls: { caFile: file } };
  const ca = file ? named : {};
  const nc = await dial({
    servers: parsed.host,
    user: parsed.username || undefined,
    pass: parsed.password || undefined,
    reconnect: kind === "again",
    reconnectTimeWait: 100,
    timeout: PATIENCE,
    ...ca,
    ...more,
  });
  nc.closed().then((error) => {
    if (!counts.closing) counts.disconnects += 1;
    if (error) counts.errors += 1;
  });
  (async () => {
    for await (const status of nc.status()) {
      if (status.type === "disconnect") counts.disconnects += 1;
      if (status.type === "error") counts.errors += 1;
    }
  })();
  return nc;
}

// A subscription that notes what it receives.
function listen(nc, subject, options = {}) {
  const got = [];
  const sub = nc.subscribe(subject, {
    ...options,
    callback: (error, msg) => got.push(error ? error.code : msg),
  });
  return { sub, got };
}

async function collect(got, count) {
  const deadline = Date.now() + PATIENCE;
  while (got.length < count && Date.now() < deadline) await sleep(1);
  return got.splice(0, count);
}

const bodies = (messages) => messages.map((m) => text.decode(m.data));
const hex = (bytes) => Buffer.from(bytes).toString("hex");

async function delivery(nc, prefix) {
  const plain = listen(nc, `${prefix}.plain`);
  for (let i = 0; i < 5; i++) nc.publish(`${prefix}.plain`, text.encode(String(i)));
  step("plain", bodies(await collect(plain.got, 5)), ["0", "1", "2", "3", "4"]);

  const star = listen(nc, `${prefix}.w.*.x`);
  const tail = listen(nc, `${prefix}.w.>`);
  for (const end of ["a.x", "b.x", "a.y.z"]) nc.publish(`${prefix}.w.${end}`);
  const subjects = (messages) => messages.map((m) => m.subject.slice(prefix.length + 3));
  step("wildcard star", subjects(await collect(star.got, 2)), ["a.x", "b.x"]);
  step("wildcard tail", subjects(await collect(tail.got, 3)), ["a.x", "b.x", "a.y.z"]);

  const members = [1, 2, 3].map(() => listen(nc, `${prefix}.queue`, { queue: "workers" }));
  for (let i = 0; i < 30; i++) nc.publish(`${prefix}.queue`, text.encode(String(i)));
  await nc.flush();
  const got = members.flatMap((member) => bodies(member.got));
  step("queue group", [got.length, new Set(got).size], [30, 30]);
}

async function requests(nc, prefix) {
  nc.subscribe(`${prefix}.service`, {
    callback: (_, msg) => msg.respond(text.encode("re " + text.decode(msg.data))),
  });
  let reply = await nc.request(`${prefix}.service`, text.encode("question"), { timeout: PATIENCE });
  step("request", text.decode(reply.data), "re question");
  const own = { timeout: PATIENCE, noMux: true, reply: `${prefix}.inbox` };
  reply = await nc.request(`${prefix}.service`, text.encode("old style"), own);
  step("request with an inbox of its own", text.decode(reply.data), "re old style");
  const outcome = await nc.request(`${prefix}.nobody`, undefined, { timeout: PATIENCE }).then(
    () => "an answer",
    (error) => error.code,
  );
  step("no responders", outcome, "503");

  const sub = listen(nc, `${prefix}.headers`);
  const values = headers();
  values.append("one", "1");
  values.append("many", "a");
  values.append("many", "b: c");
  nc.publish(`${prefix}.headers`, text.encode("body"), { headers: values });
  const [msg] = await collect(sub.got, 1);
  const got = [msg.headers.get("one"), msg.headers.values("many"), text.decode(msg.data)];
  step("headers", got, ["1", ["a", "b: c"], "body"]);
}

async function limits(nc, prefix) {
  const few = listen(nc, `${prefix}.max`, { max: 3 });
  for (let i = 0; i < 5; i++) nc.publish(`${prefix}.max`);
  await nc.flush();
  step("unsubscribe with max", [few.got.length, few.sub.isClosed()], [3, true]);

  const gone = listen(nc, `${prefix}.gone`);
  nc.publish(`${prefix}.gone`, text.encode("heard"));
  await nc.flush();
  gone.sub.unsubscribe();
  nc.publish(`${prefix}.gone`, text.encode("unheard"));
  await nc.flush();
  step("unsubscribe", bodies(gone.got), ["heard"]);

  const binary = listen(nc, `${prefix}.binary`);
  const payloads = [
    Uint8Array.from({ length: 256 }, (_, i) => i),
    text.encode("PUB a 1\r\nx\r\nMSG a 1 1\r\nPING\r\n-ERR 'x'\r\n"),
    new Uint8Array(0),
    text.encode("\r\n"),
  ];
  for (const payload of payloads) nc.publish(`${prefix}.binary`, payload);
  step("binary", (await collect(binary.got, 4)).map((m) => hex(m.data)), payloads.map(hex));
  const big = Uint8Array.from({ length: nc.info.max_payload }, (_, i) => (i * 7) % 251);
  nc.publish(`${prefix}.binary`, big);
  step("largest payload", (await collect(binary.got, 1)).map((m) => Buffer.compare(m.data, big)), [0]);
  let outcome = "sent";
  try {
    nc.publish(`${prefix}.binary`, new Uint8Array(big.length + 1));
  } catch (error) {
    outcome = error.code;
  }
  step("too large", outcome, "MAX_PAYLOAD_EXCEEDED");
}

async function neighbours(url, nc, prefix, counts) {
  const other = await connect(url, counts);
  const deaf = await connect(url, counts, { noEcho: true });
  const heard = listen(other, `${prefix}.n`);
  const own = listen(deaf, `${prefix}.n`);
  await Promise.all([other.flush(), deaf.flush()]);
  for (let i = 0; i < 5; i++) deaf.publish(`${prefix}.n`, text.encode(String(i)));
  step("other connection", bodies(await collect(heard.got, 5)), ["0", "1", "2", "3", "4"]);
  await deaf.flush();
  step("no echo", own.got.length, 0);

  const drained = listen(other, `${prefix}.drain`);
  await other.flush();
  for (let i = 0; i < 20; i++) nc.publish(`${prefix}.drain`, text.encode(String(i)));
  await nc.flush();
  step("still connected", [nc.isClosed(), counts.disconnects, counts.errors], [false, 0, 0]);
  counts.closing = true;
  await deaf.close();
  await other.drain();
  const numbers = Array.from({ length: 20 }, (_, i) => String(i));
  step("drain", [bodies(drained.got), other.isClosed()], [numbers, true]);
}

async function basic(url, prefix) {
  const counts = { disconnects: 0, errors: 0, closing: false };
  const nc = await connect(url, counts);
  step("connect", [nc.info.headers, nc.info.max_payload], [true, 1048576]);
  await delivery(nc, prefix);
  await requests(nc, prefix);
  await limits(nc, prefix);
  await neighbours(url, nc, prefix, counts);
  step("round trip", (await nc.rtt()) >= 0, true);
  await nc.close();
}

async function refused(url) {
  const counts = { disconnects: 0, errors: 0, closing: true };
  const outcome = await connect(url, counts).then(() => "admitted", (error) => error.code);
  step("refused", outcome, "AUTHORIZATION_VIOLATION");
}

// Started while no broker may be alive: says when it was let in, and when a message of its
// own had come back.
async function start(url, prefix) {
  const begun = performance.now();
  const took = () => Math.round(performance.now() - begun);
  const counts = { disconnects: 0, errors: 0, closing: false };
  const nc = await connect(url, counts, { timeout: START_PATIENCE });
  emit("connected", { ms: took() });
  const own = listen(nc, `${prefix}.start`);
  nc.publish(`${prefix}.start`, text.encode("early"));
  const deadline = Date.now() + START_PATIENCE;
  while (own.got.length < 1 && Date.now() < deadline) await sleep(1);
  emit("received", { ms: took() });
  step("own message", bodies(own.got), ["early"]);
  counts.closing = true;
  await nc.close();
}

function receiver() {
  const state = { seen: new Set(), last: 0, duplicates: 0, outOfOrder: 0 };
  state.callback = (_, msg) => {
    const number = Number(text.decode(msg.data));
    if (state.seen.has(number)) state.duplicates += 1;
    else if (number < state.last) state.outOfOrder += 1;
    state.seen.add(number);
    state.last = Math.max(state.last, number);
  };
  return state;
}

async function steady(url, prefix, most) {
  const counts = { disconnects: 0, errors: 0, closing: false };
  const [a, b] = [await connect(url, counts), await connect(url, counts)];
  const [same, other] = [receiver(), receiver()];
  a.subscribe(`${prefix}.steady`, same);
  b.subscribe(`${prefix}.steady`, other);
  await Promise.all([a.flush(), b.flush()]);
  let stopped = false;
  process.stdin.once("data", () => (stopped = true)).once("end", () => (stopped = true));
  let published = 0;
  let due = performance.now();
  let progress = due;
  while (!stopped && published < most && !a.isClosed()) {
    const now = performance.now();
    for (due = Math.max(due, now - PROGRESS); due <= now && published < most; due += PERIOD) {
      published += 1;
      a.publish(`${prefix}.steady`, text.encode(String(published)));
    }
    if (now >= progress) {
      emit("progress", { published, received: Math.min(same.last, other.last) });
      progress = now + PROGRESS;
    }
    await sleep(1);
  }
  await finish(a, b, counts, same, other, published);
}

async function finish(a, b, counts, same, other, published) {
  const late = sleep(PATIENCE).then(() => { throw new Error("flush timed out"); });
  late.catch(() => {});
  await Promise.race([Promise.all([a.flush(), b.flush()]), late]).catch(() => (counts.errors += 1));
  const deadline = Date.now() + 2000;
  while (Math.min(same.last, other.last) < published && Date.now() < deadline) await sleep(10);
  const received = [...same.seen].filter((n) => other.seen.has(n)).length;
  const report = {
    published,
    received,
    missing: published - received,
    duplicates: same.duplicates + other.duplicates,
    out_of_order: same.outOfOrder + other.outOfOrder,
    disconnects: counts.disconnects,
    errors: counts.errors,
  };
  emit("report", report);
  failed = report.disconnects + report.errors + report.duplicates + report.out_of_order > 0;
  counts.closing = true;
  await Promise.all([a.close(), b.close()]);
}

async function main([url, prefix, mode, most]) {
  if (mode === "basic") await basic(url, prefix);
  else if (mode === "refused") await refused(url);
  else if (mode === "start") await start(url, prefix);
  else await steady(url, prefix, Number(most));
}

main(process.argv.slice(2)).then(
  () => process.exit(failed ? 1 : 0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
