// Follows a session of a sessionlog server, and resumes when the connection is lost.
//
//     SESSIONLOG_API_KEY=secret node tail.mjs http://127.0.0.1:8080 sess_123 ["a message to send first"]
//
// Needs Node 18 and nothing else. `follow` and `send` use only `fetch`, so they also run in browsers
// that can iterate over streams.

const SILENCE = 25_000; // milliseconds; the server sends a comment every ten seconds

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** Repeats a call until it is answered. Throws what the server refuses for good. */
async function answered(url, key, options = {}) {
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    try {
      const answer = await fetch(url, { ...options, headers: { Authorization: `Bearer ${key}`, ...options.headers } });
      if (answer.ok) return answer;
      const text = await answer.text();
      if (answer.status < 500 && answer.status !== 429) throw Object.assign(new Error(text), { refused: answer.status });
    } catch (error) {
      if (error.refused || options.signal?.aborted) throw error;
    }
    await sleep(wait);
  }
}

/** Sends a message once: a retry with the same key gets the answer of the first. */
export async function send(session, key, text) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID() };
  const body = JSON.stringify({ events: [{ type: "user.message", content: [{ type: "text", text }] }] });
  const answer = await answered(`${session}/events`, key, { method: "POST", headers, body });
  return (await answer.json()).events[0];
}

/** Yields each event once and in order, without an end, starting after `last` if it is given. */
export async function* follow(session, key, last) {
  for (;;) {
    const stop = new AbortController();
    let timer = setTimeout(() => stop.abort(), SILENCE);
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const answer = await answered(`${session}/stream`, key, { headers, signal: stop.signal });
      let text = "";
      for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
        clearTimeout(timer);
        timer = setTimeout(() => stop.abort(), SILENCE);
        const frames = (text + chunk).split("\n\n");
        text = frames.pop();
        for (const frame of frames) {
          const { id, data } = Object.fromEntries(frame.split("\n").map((line) => line.split(/: (.*)/s, 2)));
          if (!id) continue;
          yield JSON.parse(data);
          last = id;
        }
      }
    } catch (error) {
      if (error.refused) throw error;
    } finally {
      clearTimeout(timer);
      stop.abort();
    }
    await sleep(500);
  }
}

const args = globalThis.process?.argv.slice(2) ?? [];
if (args.length >= 2) {
  const [server, id, text] = args;
  const session = `${server}/v1/sessions/${encodeURIComponent(id)}`;
  const key = process.env.SESSIONLOG_API_KEY ?? "";
  if (text) await send(session, key, text);
  for await (const event of follow(session, key)) console.log(JSON.stringify(event));
}
