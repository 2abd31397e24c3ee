// The client against a server, and against a proxy that loses answers.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { readFile } from "node:fs/promises";

import * as client from "sessionlog-client";
import { accepting, answer, eventually, KEY, Proxy, Server, skip, WORKER_KEY } from "./harness.mjs";

const { ApiError, SessionLog, SessionLogError, TurnNotOver, Unanswered } = client;
const BUSY = answer("503 Service Unavailable");
const STREAM = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";

const note = (data) => ({ type: "note", data });

/** A file of the package, wherever it is installed. */
const inPackage = (file) =>
  fileURLToPath(new URL(`../${file}`, import.meta.resolve("sessionlog-client")));

/** Runs a test with a server, a proxy in front of it, and clients of both. */
function withServer(name, run) {
  test(name, { skip, timeout: 60_000 }, async (t) => {
    const server = await Server.start(t);
    const proxy = await Proxy.start(t, server);
    const retries = [];
    const onRetry = (failure, pause) => retries.push({ failure, pause });
    const log = new SessionLog(proxy.url, { key: WORKER_KEY, deadline: 20_000, onRetry });
    const worker = new SessionLog(server.url, { key: WORKER_KEY });
    await run({ t, server, proxy, retries, log, worker });
  });
}

async function refused(status, code, call) {
  const error = await call.then(
    () => assert.fail("it was not refused"),
    (error) => error,
  );
  assert.ok(error instanceof ApiError, error);
  assert.deepEqual([error.status, error.code], [status, code]);
  return error;
}

async function all(pages, items) {
  const found = [];
  for await (const page of pages) found.push(...page[items]);
  return found;
}

async function dataOf(log, session) {
  return (await all(log.listEvents(session), "events")).map((event) => event.data);
}

async function taken(follow, seen = []) {
  for await (const event of follow) seen.push(event.data);
  return seen;
}

const next = async (follow) => (await follow[Symbol.asyncIterator]().next()).value;

withServer("an append whose answer is lost is stored once", async ({ proxy, retries, log }) => {
  proxy.plan = ["lose", "lose", BUSY];
  const { events, replayed } = await log.append("s", [note(1), note(2)]);
  assert.deepEqual([replayed, events.map((event) => event.seq)], [true, [1, 2]]);
  assert.deepEqual(await dataOf(log, "s"), [1, 2]);
  assert.equal(retries.length, 3);
});

withServer("a pause is as long as the server asks", async ({ proxy, retries, log }) => {
  proxy.plan = [answer("503 Service Unavailable", ["Retry-After: 1"])];
  await log.append("s", [note(1)]);
  assert.equal(retries[0].pause, 1000);
  // It would be longer than the deadline, so the call ends at once.
  const date = new Date(Date.now() + 3_600_000).toUTCString();
  for (const header of ["Retry-After: 3600", `Retry-After: ${date}`]) {
    proxy.plan = [answer("429 Too Many Requests", [header])];
    const error = await log.append("s", [note(2)]).catch((error) => error);
    assert.ok(error instanceof Unanswered, error);
    assert.equal(error.cause.status, 429);
  }
  assert.deepEqual(await dataOf(log, "s"), [1]);
});

withServer("what the server refuses is not repeated", async ({ proxy, retries, log }) => {
  await log.append("s", [note(1)]);
  const stale = log.append("s", [note(2)], { expected: 0 });
  const error = await refused(412, "expected_mismatch", stale);
  assert.deepEqual([error.fields, error.type], [{ actual_seq: 1 }, "precondition_failed"]);
  assert.ok(error instanceof SessionLogError && error.name === "ApiError");
  proxy.plan = [answer("404 Not Found", [], "<html>")];
  assert.equal((await refused(404, "", log.getSession("s"))).message, "404 <html>");
  await refused(400, "invalid", log.append("s", [{ type: "note" }]));
  proxy.plan = [answer("301 Moved Permanently", [`Location: ${proxy.url}/v1/sessions/s/events`])];
  await refused(301, "", log.append("s", [note(2)]));
  await assert.rejects(new SessionLog("no URL").getSession("s"), TypeError);
  assert.deepEqual(retries, []);
});

withServer("a call ends at its deadline and goes on under its key", async ({ proxy, log }) => {
  proxy.plan = Array(9).fill("lose");
  const short = new SessionLog(proxy.url, { key: WORKER_KEY, deadline: 400 });
  const error = await short.append("s", [note(1)]).catch((error) => error);
  assert.ok(error instanceof Unanswered, error);
  proxy.plan = [];
  const { idempotencyKey } = error;
  assert.equal((await log.append("s", [note(1)], { idempotencyKey })).replayed, true);
  assert.deepEqual(await dataOf(log, "s"), [1]);
});

withServer(
  "an answer that never comes or is cut off is none",
  async ({ t, proxy, retries, log }) => {
    const whole = answer("200 OK", [], '{"id": "s"}');
    const short = new SessionLog(await accepting(t, ""), { deadline: 300 });
    await assert.rejects(short.getSession("s"), Unanswered);
    // Without a length, only the JSON shows that it is cut off.
    const endless = whole.replace("Content-Length: 11\r\n", "");
    await log.append("s", [note(1)]);
    for (const begin of [whole, endless]) {
      proxy.plan = [begin.slice(0, -3)];
      assert.equal((await log.getSession("s")).last_seq, 1);
    }
    assert.equal(retries.length, 2);
  },
);

withServer("a fork whose answer is lost is not made twice", async ({ proxy, log }) => {
  await log.append("s", [note(1)]);
  proxy.plan = [BUSY, "lose"];
  await assert.rejects(log.forkSession("s"), Unanswered);
  assert.equal((await all(log.listSessions(), "sessions")).length, 2);
});

withServer("the calls of workers", async ({ proxy, log }) => {
  proxy.plan = ["lose"];
  const created = await log.createSession({ id: "s", title: "T", metadata: { agent: "a1" } });
  assert.deepEqual([created.title, created.last_seq], ["T", 0]);
  await refused(409, "session_exists", log.createSession({ id: "s" }));
  assert.equal((await log.createSession({ id: "t", events: [note(1)] })).last_seq, 1);
  assert.match((await log.createSession()).id, /^sess_/);
  const { events } = await log.append("s", [1, 2, 3].map(note), { expected: 0 });
  const [first, second, third] = events.map((event) => event.id);
  const fork = await log.forkSession("s", { id: "f", at: second, metadata: { agent: null } });
  assert.deepEqual([fork.last_seq, fork.metadata], [2, {}]);
  proxy.plan = ["lose"];
  assert.equal((await log.trimSession("s", 3)).events, 0);
  assert.deepEqual(await dataOf(log, "s"), [3]);
  const trimmed = await refused(410, "cursor_trimmed", next(log.follow("s", { after: first })));
  assert.equal(trimmed.fields.first_kept_seq, 3);
  proxy.plan = ["lose"];
  assert.equal((await log.redactEvent(third, { reason: "asked for" })).redacted, true);
  assert.equal((await log.getEvent(third)).data, null);
  const patched = await log.patchSession("s", { title: null, hold: true }, { expected: 3 });
  assert.deepEqual([patched.title, patched.hold], [null, true]);
  await refused(409, "held", log.deleteSession("s"));
  await log.patchSession("s", { hold: false });
  await refused(412, "expected_mismatch", log.deleteSession("s", { expected: 1 }));
  proxy.plan = ["lose"];
  await log.deleteSession("s", { reason: "asked for", unlessOpen: true, expected: "*" });
  await refused(404, "unknown_session", log.deleteSession("s"));
});

withServer("a producer is answered once per number and fenced", async ({ proxy, log }) => {
  proxy.plan = ["lose"];
  const one = { id: "worker-1", epoch: 1, seq: 0 };
  assert.equal((await log.append("s", [note(1)], { producer: one })).replayed, true);
  assert.doesNotMatch(proxy.requests[0], /idempotency-key/i);
  const gap = log.append("s", [note(2)], { producer: { ...one, seq: 7 } });
  assert.deepEqual((await refused(409, "producer_gap", gap)).fields, { expected: 1, received: 7 });
  await log.append("s", [], { producer: { id: "worker-1", epoch: 2 }, close: true });
  const stale = log.append("s", [note(2)], { producer: one });
  assert.deepEqual((await refused(403, "fenced", stale)).fields, { current_epoch: 2 });
  const closed = log.append("s", [note(2)]);
  assert.deepEqual((await refused(409, "session_closed", closed)).fields, { actual_seq: 1 });
});

withServer("a key of a client is refused what workers do", async ({ server }) => {
  const log = new SessionLog(server.url, { key: KEY });
  await refused(403, "forbidden", log.createSession({ id: "s" }));
  await refused(401, "wrong_token", new SessionLog(server.url, { key: "x" }).getSession("s"));
  assert.equal((await log.sendMessage("s", "Hi", { metadata: { n: 1 } })).seq, 1);
});

withServer("lists are read page by page in both orders", async ({ log }) => {
  await log.append("s", [0, 1, 2, 3, 4, 5, 6].map(note));
  await log.append("s", [{ type: "other", data: 7 }]);
  const turns = [await log.sendMessage("s", "a"), await log.sendMessage("s", "b")];
  const pages = [];
  for await (const page of log.listEvents("s", { limit: 4 })) pages.push(page);
  assert.deepEqual(
    pages.map((page) => page.events.length),
    [4, 4, 2],
  );
  const newest = await all(log.listEvents("s", { order: "desc", limit: 3 }), "events");
  assert.deepEqual(
    newest.map((event) => event.seq),
    [10, 9, 8, 7, 6, 5, 4, 3, 2, 1],
  );
  const after = pages[0].last_id;
  const some = await all(
    log.listEvents("s", { after, types: ["note", "other"], limit: 2 }),
    "events",
  );
  assert.deepEqual(
    some.map((event) => event.data),
    [4, 5, 6, 7],
  );
  const messages = await all(log.listMessages("s", { status: "open", limit: 1 }), "messages");
  assert.deepEqual(
    messages.map((one) => one.id),
    turns.map((turn) => turn.message_id),
  );
  assert.throws(() => log.listEvents("s", { before: after }), RangeError);
  for (const n of [0, 1, 2]) {
    await log.createSession({ id: `t/${n}`, metadata: { agent: `a${n % 2}` } });
  }
  await log.append("t/2", [], { close: true });
  const chosen = { order: "id", prefix: "t/", metadata: { agent: "a0" }, closed: false, limit: 1 };
  const listed = await all(log.listSessions(chosen), "sessions");
  assert.deepEqual(
    listed.map((session) => session.id),
    ["t/0"],
  );
});

withServer("a session can have any name", async ({ log }) => {
  const visible = Array.from({ length: 95 }, (_, n) => String.fromCharCode(32 + n));
  const punctuation = visible.filter((one) => !/\w/.test(one)).join("");
  for (const name of ["a b/c", "%41", "...", "ü\u2028🦀", punctuation, "../x?y=z#w"]) {
    await log.append(name, [note(name)]);
    assert.equal((await log.getSession(name)).id, name);
    const follow = log.follow(name);
    assert.equal((await next(follow)).session_id, name);
    follow.close();
  }
  for (const name of ["", ".", ".."]) assert.throws(() => log.getSession(name), RangeError);
});

withServer("data comes back as it was sent", async ({ log, server }) => {
  const odd = ["x\n\u2028\u0085y\r\n", "\ud83d", { "": [null, true], __proto__: null }, 0.1];
  for (const event of (await log.append("s", odd.map(note))).events) {
    assert.deepEqual(await log.getEvent(event.id), event);
  }
  // A frame with an ID is an event, whatever its type says.
  for (const type of ["closed", "error", "caught_up"]) await log.append("s", [{ type, data: 1 }]);
  // JSON as another library would write it.
  const json = {
    parse: JSON.parse,
    stringify: (value) => JSON.stringify(value).replace('"big"', "12345678901234567890123"),
  };
  const exact = new SessionLog(server.url, { key: WORKER_KEY, json });
  await exact.append("s", [note("big")], { close: true });
  const follow = log.follow("s");
  const followed = await taken(follow);
  assert.deepEqual(followed, [
    ...JSON.parse(JSON.stringify(odd)),
    1,
    1,
    1,
    12345678901234567890123,
  ]);
  assert.deepEqual(await dataOf(log, "s"), followed);
  // `JSON.parse` rounds a large number. The text has it all.
  assert.match(follow.text, /"data":12345678901234567890123,/);
});

withServer("a turn is awaited until it is over", async ({ server, proxy, log, worker }) => {
  const turn = (await log.sendMessage("s", "Hi")).message_id;
  const early = await log.waitForTurn(turn, { timeout: 100 }).catch((error) => error);
  assert.ok(early instanceof TurnNotOver, early);
  assert.equal(early.turn.status, "queued");
  const ended = new AbortController();
  const waiting = log.waitForTurn(turn, { signal: ended.signal });
  ended.abort();
  await assert.rejects(waiting, { name: "AbortError" });
  const polls = proxy.requests.length;
  const message = log.waitForTurn(turn);
  await eventually("it waits", () => proxy.requests.length > polls);
  await server.kill();
  await server.start();
  await worker.append("s", [
    { type: "assistant.message_completed", message_id: turn, data: { text: "Done." } },
    { type: "message.status_changed", message_id: turn, data: { status: "completed" } },
  ]);
  assert.deepEqual([(await message).status, (await message).output.length], ["completed", 1]);
  assert.deepEqual(await log.getMessage(turn), await message);
});

withServer("a follow resumes over a server that ends", async ({ server, log, worker }) => {
  await worker.createSession({ id: "s" });
  const [follow, seen] = [log.follow("s"), []];
  const taking = taken(follow, seen);
  for (const [n, signal] of ["SIGKILL", "SIGTERM", "SIGKILL"].entries()) {
    await worker.append(
      "s",
      Array.from({ length: 10 }, (_, i) => note(n * 10 + i)),
    );
    await eventually("some have come", () => seen.length > n * 10);
    await server.kill(signal);
    await server.start();
  }
  await worker.append("s", [note(30)], { close: true });
  assert.deepEqual(
    await taking,
    Array.from({ length: 31 }, (_, n) => n),
  );
  assert.equal(follow.ended, "closed");
  assert.deepEqual(await taken(follow), []);
});

withServer("a follow ends when the session is deleted", async ({ log, worker }) => {
  const { events } = await worker.append("s", [note(1), note(2)]);
  const follow = log.follow("s", { after: events[0].id });
  assert.equal((await next(follow)).data, 2);
  const rest = taken(follow);
  await worker.deleteSession("s");
  assert.deepEqual([await rest, follow.ended], [[], "deleted"]);
  await refused(404, "unknown_session", next(log.follow("s")));
});

withServer("a session can be deleted during a lost connection", async ({ server, log, worker }) => {
  await worker.append("s", [note(1)]);
  const follow = log.follow("s");
  await next(follow);
  await server.kill();
  await server.start();
  await worker.deleteSession("s");
  assert.deepEqual([await taken(follow), follow.ended], [[], "deleted"]);
});

withServer("types are chosen and left out", async ({ log }) => {
  await log.append(
    "s",
    [..."abcab"].map((type) => ({ type, data: type })),
    { close: true },
  );
  assert.deepEqual(await taken(log.follow("s", { types: ["a", "b"] })), [..."abab"]);
  assert.deepEqual(await taken(log.follow("s", { excludeTypes: ["a", "b"] })), ["c"]);
});

test("a silent connection is lost, and a frame that is cut off is not taken", async (t) => {
  const frame = (id) => `id: ${id}\nevent: note\ndata: {"data": "\u2028\u{1f980}${id}"}\n\n`;
  const cut = STREAM + frame(1) + frame(2).slice(0, -1);
  const ends = STREAM + ": comment\r\n\r\nevent: closed\r\ndata: {}\r\n\r\n";
  const url = await accepting(t, STREAM + ":\n\n", cut, STREAM + frame(2), ends);
  const follow = new SessionLog(url).follow("s", { silence: 200 });
  assert.deepEqual(await taken(follow), ["\u2028\u{1f980}1", "\u2028\u{1f980}2"]);
  assert.deepEqual([follow.ended, follow.last], ["closed", "2"]);
});

test("a frame can come in any pieces", async (t) => {
  const server = await accepting(t, STREAM);
  const text = `id: 1\nevent: x\ndata: {"data":\ndata: "\u00e9\u2028\u{1f980}"}\n\nevent:deleted\ndata:{}\n\n`;
  const bytes = new TextEncoder().encode(text);
  const original = globalThis.fetch;
  t.after(() => (globalThis.fetch = original));
  globalThis.fetch = async () => {
    const pieces = Array.from(bytes, (byte) => Uint8Array.of(byte));
    const body = new ReadableStream({
      pull: (stream) => (pieces.length ? stream.enqueue(pieces.shift()) : stream.close()),
    });
    return new Response(body, { headers: { "content-type": "text/event-stream" } });
  };
  const follow = new SessionLog(server).follow("s");
  assert.deepEqual([await taken(follow), follow.ended], [["\u00e9\u2028\u{1f980}"], "deleted"]);
});

withServer("a follow gives up when told so", async ({ proxy, log }) => {
  proxy.plan = Array(9).fill(BUSY);
  await assert.rejects(next(log.follow("s", { giveUpAfter: 500 })), Unanswered);
});

withServer(
  "a follow that is ended leaves no connection",
  async ({ server, proxy, retries, log, worker }) => {
    await worker.append("s", [note(1)]);
    const isOpen = async () => (await server.openStreams()) > 0;
    const isGone = async () => !(await isOpen());
    const ended = new AbortController();
    const [seen, aborted] = [[], taken(worker.follow("s", { signal: ended.signal }))];
    await eventually("it is open", isOpen);
    ended.abort();
    await assert.rejects(aborted, { name: "AbortError" });
    await eventually("an abort ends the connection", isGone);

    const follow = worker.follow("s");
    const taking = taken(follow, seen);
    await eventually("it has the event", () => seen.length === 1);
    follow.close();
    assert.deepEqual([await taking, follow.ended], [[1], undefined]);
    await eventually("closing ends the connection", isGone);

    for await (const _event of worker.follow("s")) break;
    await eventually("a break ends the connection", isGone);

    proxy.plan = [answer("503 Service Unavailable", ["Retry-After: 3600"])];
    const pausing = log.follow("s");
    const rest = taken(pausing);
    await eventually("it pauses", () => retries.length === 1);
    pausing.close();
    assert.deepEqual(await rest, []);
  },
);

withServer("the example of the README runs", async ({ server }) => {
  const text = await readFile(inPackage("README.md"), "utf8");
  const code = text
    .split("```ts\n")[1]
    .split("```")[0]
    .replace(/^import (.*) from "sessionlog-client";/m, "const $1 = client;")
    .replace("http://127.0.0.1:8080", server.url)
    .replace("secret", WORKER_KEY);
  const lines = [];
  const console = { log: (...values) => lines.push(values) };
  const AsyncFunction = (async () => {}).constructor;
  await new AsyncFunction("client", "console", code)(client, console);
  assert.deepEqual(lines[0].slice(0, 2), [1, "user.message"]);
  assert.deepEqual(lines[1], [412, "expected_mismatch", { actual_seq: 1 }]);
});

withServer("the command sends a message and prints what follows", async ({ server, worker }) => {
  await worker.append("a b", [note(1)]);
  const command = inPackage("cli.mjs");
  const running = spawn("node", [command, server.url, "a b", "Hi"], {
    env: { ...process.env, SESSIONLOG_API_KEY: KEY },
  });
  const [output, trouble] = [running.stdout, running.stderr].map((stream) => stream.toArray());
  await eventually("it is sent", async () => (await worker.getSession("a b")).last_seq === 2);
  await worker.append("a b", [], { close: true });
  await once(running, "exit");
  const lines = (await output)
    .join("")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  assert.deepEqual(
    lines.map((line) => line.type),
    ["note", "user.message"],
  );
  assert.equal((await trouble).join(""), "the session is closed\n");
  const keyless = spawnSync("node", [command, server.url, "a b"], { encoding: "utf8" });
  assert.deepEqual([keyless.status, keyless.stdout], [1, ""]);
  assert.match(keyless.stderr, /^401 missing_token/);
});
