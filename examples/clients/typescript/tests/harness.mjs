// A server for the tests, and a proxy in front of it that loses answers.
import { spawn, execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

export const KEY = "a client";
export const WORKER_KEY = "a worker";
export const PROGRAM = process.env.SESSIONLOG ?? inPath("sessionlog");
/** Why the tests cannot run, if so. */
export const skip = PROGRAM ? false : "there is no sessionlog: SESSIONLOG has its path";

function inPath(program) {
  try {
    return execFileSync("which", [program], { encoding: "utf8", stdio: "pipe" }).trim();
  } catch {
    return undefined;
  }
}

export async function eventually(what, condition) {
  for (const end = Date.now() + 20_000; !(await condition()); await sleep(20)) {
    if (Date.now() > end) throw new Error(`it did not come to this: ${what}`);
  }
}

/** `sessionlog serve` as a process, at the same address after a restart. */
export class Server {
  static async start(test) {
    const server = new Server();
    server.folder = await mkdtemp(join(tmpdir(), "sessionlog-"));
    server.address = "127.0.0.1:0";
    test.after(async () => {
      await server.kill();
      await rm(server.folder, { recursive: true });
    });
    await server.start();
    return server;
  }

  async start() {
    const keys = { SESSIONLOG_API_KEY: KEY, SESSIONLOG_WORKER_KEY: WORKER_KEY };
    for (let n = 0; n < 20; n++) {
      const options = ["serve", "--data", join(this.folder, "data"), "--listen", this.address];
      this.process = spawn(PROGRAM, options, {
        env: { ...process.env, ...keys },
        stdio: ["ignore", "pipe", "ignore"],
      });
      for await (const line of createInterface(this.process.stdout)) {
        this.url = line.split(" ").at(-1);
        this.address = new URL(this.url).host;
        return;
      }
    }
    throw new Error("the server does not start");
  }

  async kill(signal = "SIGKILL") {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    this.process.kill(signal);
    await once(this.process, "exit");
  }

  async openStreams() {
    const metrics = await (await fetch(`${this.url}/metrics`)).text();
    return Number(/^sessionlog_streams (\d+)/m.exec(metrics)[1]);
  }
}

/**
 * Passes requests on, except as `plan` says of the next ones: `"lose"` passes the request on and
 * cuts the connection before the answer, and other text is an answer in place of the server's. Each
 * connection carries one request.
 */
export class Proxy {
  plan = [];
  requests = [];

  static async start(test, server) {
    const proxy = new Proxy();
    const listener = createServer((socket) => proxy.#handle(socket, server));
    const open = new Set();
    listener.on("connection", (socket) => open.add(socket));
    test.after(() => {
      open.forEach((socket) => socket.destroy());
      listener.close();
    });
    listener.listen(0, "127.0.0.1");
    await once(listener, "listening");
    proxy.url = `http://127.0.0.1:${listener.address().port}`;
    return proxy;
  }

  async #handle(socket, server) {
    socket.on("error", () => {});
    const request = await received(socket);
    if (request === undefined) return;
    this.requests.push(request.toString());
    const act = this.plan.shift() ?? "pass";
    if (act !== "pass" && act !== "lose") {
      socket.end(act);
      return;
    }
    const [host, port] = server.address.split(":");
    const upstream = connect(Number(port), host, () => upstream.write(request));
    upstream.on("error", () => socket.destroy());
    upstream.on("data", (data) => (act === "lose" ? socket.destroy() : socket.write(data)));
    upstream.on("end", () => socket.end());
    socket.on("close", () => upstream.destroy());
  }
}

/** Receives one request, and asks for the connection to be closed behind it. */
async function received(socket) {
  let data = Buffer.alloc(0);
  return new Promise((resolve) => {
    socket.on("close", () => resolve(undefined));
    socket.on("data", (chunk) => {
      data = Buffer.concat([data, chunk]);
      const end = data.indexOf("\r\n\r\n");
      if (end < 0) return;
      const head = data.subarray(0, end).toString("latin1");
      const length = Number(/^content-length: *(\d+)/im.exec(head)?.[1] ?? 0);
      if (data.length < end + 4 + length) return;
      const kept = head.split("\r\n").filter((line) => !/^connection:/i.test(line));
      const closing = Buffer.from([...kept, "Connection: close", "", ""].join("\r\n"), "latin1");
      resolve(Buffer.concat([closing, data.subarray(end + 4)]));
    });
  });
}

export function answer(status, headers = [], body = "") {
  const length = `Content-Length: ${Buffer.byteLength(body)}`;
  return [`HTTP/1.1 ${status}`, length, "Connection: close", ...headers, "", body].join("\r\n");
}

/** Starts a server that sends each connection its text, and then nothing more. */
export async function accepting(test, ...begins) {
  const open = new Set();
  const listener = createServer((socket) => {
    open.add(socket);
    socket.on("error", () => {});
    socket.once("data", () => socket.write(begins.shift() ?? ""));
  });
  test.after(() => {
    open.forEach((socket) => socket.destroy());
    listener.close();
  });
  listener.listen(0, "127.0.0.1");
  await once(listener, "listening");
  return `http://127.0.0.1:${listener.address().port}`;
}
