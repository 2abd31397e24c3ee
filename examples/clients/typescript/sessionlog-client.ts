/**
 * Client of the HTTP API of sessionlog, for Node and for browsers.
 *
 * Failed calls are repeated so that nothing is stored twice. A follow resumes after its last event
 * when the connection is lost. Times are in milliseconds.
 */

/** A stored event. `data` is any JSON. */
export interface LogEvent {
  id: string;
  session_id: string;
  seq: number;
  message_id: string | null;
  type: string;
  data: unknown;
  data_base64?: string;
  created_at: string;
  redacted?: true;
}

export interface ContentBlock {
  type: string;
  [field: string]: unknown;
}

/** An event to append: a message of a user, or for workers an event of another type. */
export type NewEvent =
  | { type: "user.message"; content: ContentBlock[]; metadata?: Record<string, unknown> }
  | { type: string; data: unknown; message_id?: string };

/** A session. `last_seq` is a value for `expected`. */
export interface Session {
  id: string;
  generation: number;
  first_seq: number;
  last_seq: number;
  events: number;
  bytes: number;
  last_event_id: string | null;
  last_event_at: string;
  created_at: string;
  closed: boolean;
  hold: boolean;
  title: string | null;
  metadata: Record<string, unknown>;
  parent: { id: string; generation: number; at: number } | null;
  revision: number;
}

/** A JSON merge patch of a session. A title of `null` removes it. */
export interface SessionPatch {
  title?: string | null;
  metadata?: Record<string, unknown>;
  closed?: boolean;
  hold?: boolean;
}

export type Status =
  "queued" | "running" | "waiting_for_tool" | "completed" | "failed" | "cancelled";

/** A turn as one value. */
export interface Message {
  id: string;
  session_id: string;
  sequence_number: number;
  status: Status;
  redacted?: true;
  content: ContentBlock[];
  metadata: Record<string, unknown>;
  attempt: number;
  output: unknown[];
  output_omitted: number;
  error: unknown;
  created_at: string;
  completed_at: string | null;
}

interface Bounds {
  has_more: boolean;
  first_id: string | null;
  last_id: string | null;
  tail_id: string | null;
}

export interface EventPage extends Bounds {
  events: LogEvent[];
}

export interface MessagePage extends Bounds {
  messages: Message[];
}

export interface SessionPage {
  sessions: Session[];
  has_more: boolean;
  first_cursor: string | null;
  last_cursor: string | null;
}

/** What a trim removed. */
export interface Removed {
  events: number;
  bytes: number;
  erased_by: string;
}

/** The writer of an append. A `seq` makes retries safe, also those of a restarted worker. */
export interface Producer {
  id: string;
  epoch?: number;
  seq?: number;
}

/** The stored events. They are `replayed` if an earlier request had stored them. */
export interface Appended {
  events: LogEvent[];
  replayed: boolean;
}

/** The last seq that a session must have: 0 for a new session, `*` for any that exists. */
export type Expected = number | "*";

export interface Options {
  /** The key of a client or of a worker. */
  key?: string | undefined;
  /** The time after which a call is not repeated any more. Default: 60,000. */
  deadline?: number;
  /** Is told of each failure before the pause that follows it. */
  onRetry?: (failure: Error, pause: number) => void;
  /** Takes the place of `JSON`, for instance with a library that keeps large numbers. */
  json?: { parse(text: string): any; stringify(value: any): string | undefined };
}

/** What every call takes. */
export interface CallOptions {
  /** Ends the call with the reason of the signal. */
  signal?: AbortSignal | undefined;
}

export interface AppendOptions extends CallOptions {
  /** Without it, the call makes one. */
  idempotencyKey?: string;
  expected?: Expected;
}

export interface WorkerAppendOptions extends AppendOptions {
  producer?: Producer;
  /** Closes the session behind the events. */
  close?: boolean;
}

/** A page is read from one cursor: `after` with the order `asc`, `before` with `desc`. */
export interface PageOptions extends CallOptions {
  order?: "asc" | "desc";
  after?: string;
  before?: string;
  /** The most items on a page. */
  limit?: number;
}

export interface SessionListOptions extends CallOptions {
  order?: "recent" | "created" | "id";
  after?: string;
  prefix?: string;
  metadata?: Record<string, string>;
  closed?: boolean;
  /** A time in RFC 3339. */
  activeSince?: string;
  limit?: number;
}

export interface FollowOptions extends CallOptions {
  /** Begin after this event or message. */
  after?: string;
  types?: string[];
  excludeTypes?: string[];
  /** The time without a byte after which a connection is lost. Default: 25,000. */
  silence?: number;
  /** Fail with `Unanswered` if the server sends nothing for this time. Default: never. */
  giveUpAfter?: number;
}

/** What an error answer says beside code and message. The code decides which are there. */
export interface ErrorFields {
  limit?: number;
  actual?: number;
  actual_seq?: number;
  first_kept_seq?: number;
  session_id?: string;
  message_id?: string;
  current_epoch?: number;
  expected?: number;
  received?: number;
  event_id?: string;
  event_seq?: number;
}

/** The base of all errors of this client. */
export class SessionLogError extends Error {
  override name = "SessionLogError";
}

/** The server refused the call. An answer of a proxy has an empty `code`. */
export class ApiError extends SessionLogError {
  override name = "ApiError";
  readonly status: number;
  readonly type: string;
  readonly code: string;
  readonly fields: ErrorFields;
  /** The pause that the server asks for. */
  readonly retryAfter: number;

  constructor(status: number, headers: Headers, text: string) {
    const { type = "", code = "", message = text.slice(0, 200), ...fields } = errorIn(text);
    super([status, code, message].filter(Boolean).join(" "));
    this.status = status;
    this.type = type;
    this.code = code;
    this.fields = fields;
    this.retryAfter = milliseconds(headers.get("retry-after") ?? "");
  }
}

/**
 * The deadline passed without a final answer, so the request may have been carried out. `cause` is
 * the last failure. To find out what became of an append, repeat it with `idempotencyKey`: it is
 * stored once.
 */
export class Unanswered extends SessionLogError {
  override name = "Unanswered";
  readonly idempotencyKey: string | undefined;

  /** @internal */
  constructor(call: Call, failure: Error) {
    super(`${call.method} ${call.url}: ${failure.message}`, { cause: failure });
    this.idempotencyKey = call.headers["Idempotency-Key"];
  }
}

/** The time to wait for a turn is over. `turn` is its last known state. */
export class TurnNotOver extends SessionLogError {
  override name = "TurnNotOver";
  readonly turn: Message | undefined;

  constructor(turn: Message | undefined, cause?: unknown) {
    super(`the turn is ${turn?.status ?? "unknown"}`, { cause });
    this.turn = turn;
  }
}

/** A failure that leaves open whether the server has carried out the request. */
class Lost extends Error {}

const DEADLINE = 60_000;
/** The server sends a byte every ten seconds. */
const SILENCE = 25_000;
/** The time that an attempt of a call may take, beside a wait that it asks for. */
const PATIENCE = 30_000;
/** Seconds that the server waits in one poll for a turn. Proxies allow 60 by default. */
const WAIT = 30;
const PAUSE_FIRST = 250;
const PAUSE_MAX = 8_000;
/** The longest time that `setTimeout` knows. */
const TIMER_MAX = 2 ** 31 - 1;

const FINAL: readonly Status[] = ["completed", "failed", "cancelled"];
/** Answers after which even a call that is not repeatable is made again: it did nothing. */
const NOT_BEGUN = [408, 429, 503];
/** The reason with which `Follow.close` ends what it waits for. */
const CLOSED = Symbol("closed");

type Query = Record<string, string | number | boolean | string[] | undefined>;

interface Call {
  method: string;
  url: string;
  headers: Record<string, string>;
  body: string | null;
}

interface Answer {
  body: any;
  headers: Headers;
}

function errorIn(text: string): Record<string, any> {
  try {
    return { ...JSON.parse(text).error };
  } catch {
    return {};
  }
}

/** Reads `Retry-After`, which has seconds or a date. */
function milliseconds(retryAfter: string): number {
  const pause = /^\d+$/.test(retryAfter)
    ? Number(retryAfter) * 1000
    : Date.parse(retryAfter) - Date.now();
  return Math.min(Math.max(pause || 0, 0), TIMER_MAX);
}

function mayPass(failure: unknown): failure is Lost | ApiError {
  if (failure instanceof ApiError)
    return NOT_BEGUN.includes(failure.status) || failure.status >= 500;
  return failure instanceof Lost;
}

function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => end(() => reject(signal?.reason));
    const timer = setTimeout(() => end(resolve), ms);
    const end = (settle: () => void) => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
      settle();
    };
    signal?.addEventListener("abort", abort);
    if (signal?.aborted) abort();
  });
}

/** Ends a request that takes too long, or that its caller ends. */
class Watch {
  readonly #controller = new AbortController();
  readonly #caller: AbortSignal | undefined;
  readonly #abort = () => this.#controller.abort(this.#caller?.reason);
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(caller: AbortSignal | undefined) {
    caller?.throwIfAborted();
    this.#caller = caller;
    caller?.addEventListener("abort", this.#abort);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  start(ms: number): void {
    this.rest();
    const late = () => this.#controller.abort(new Lost(`nothing came for ${ms} ms`));
    this.#timer = setTimeout(late, Math.min(ms, TIMER_MAX));
  }

  rest(): void {
    clearTimeout(this.#timer);
  }

  /** Awaits a part of the request. Each failure is a lost connection, unless the caller ended it. */
  async lost<T>(part: Promise<T>): Promise<T> {
    try {
      return await part;
    } catch (error) {
      this.#caller?.throwIfAborted();
      if (error instanceof Lost) throw error;
      throw new Lost(`the connection is lost: ${reasonOf(error)}`, { cause: error });
    }
  }

  end(): void {
    this.rest();
    this.#caller?.removeEventListener("abort", this.#abort);
    this.#controller.abort();
  }
}

function reasonOf(error: unknown): string {
  const { cause, message } = error as { cause?: Error; message?: string };
  return cause?.message || message || String(error);
}

/** How long to pause after a failure, and when to give up. */
class Retries {
  failures = 0;
  readonly #span: number;
  #began = performance.now();

  constructor(span: number) {
    this.#span = span;
  }

  /** Begins the time anew. */
  alive(): void {
    this.#began = performance.now();
  }

  left(): number {
    return Math.max(0, this.#began + this.#span - performance.now());
  }

  /** Returns how long to wait after a failure. Throws `Unanswered` if that is too long. */
  pause(call: Call, failure: Lost | ApiError): number {
    const longest = Math.min(PAUSE_MAX, PAUSE_FIRST * 2 ** this.failures);
    const asked = failure instanceof ApiError ? failure.retryAfter : 0;
    const pause = Math.max(asked, longest * (0.5 + Math.random() / 2));
    this.failures += 1;
    if (pause > this.left()) throw new Unanswered(call, failure);
    return pause;
  }
}

interface Frame {
  id: string;
  event: string;
  data: string;
}

/** Takes a stream of server-sent events apart. A frame counts once its blank line is there. */
class Frames {
  #rest = "";
  #fields = new Map<string, string[]>();

  *feed(text: string): Generator<Frame> {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      const field = line.endsWith("\r") ? line.slice(0, -1) : line;
      if (field !== "") {
        this.#take(field);
        continue;
      }
      const fields = this.#fields;
      this.#fields = new Map();
      const last = (name: string) => fields.get(name)?.at(-1) ?? "";
      const data = fields.get("data");
      if (data) yield { id: last("id"), event: last("event"), data: data.join("\n") };
    }
  }

  /** Takes a line. A comment is a field without a name. */
  #take(line: string): void {
    const end = line.includes(":") ? line.indexOf(":") : line.length;
    const [name, value] = [line.slice(0, end), line.slice(end + 1)];
    const values = this.#fields.get(name) ?? [];
    this.#fields.set(name, [...values, value.startsWith(" ") ? value.slice(1) : value]);
  }
}

function sessionPath(session: string, rest = ""): string {
  if (["", ".", ".."].includes(session)) {
    throw new RangeError(`${JSON.stringify(session)} names no session in a URL`);
  }
  return `/v1/sessions/${encodeURIComponent(session)}${rest}`;
}

function conditions(options: WorkerAppendOptions): Record<string, string> {
  const { idempotencyKey, expected, producer } = options;
  const headers: Record<string, string> = {};
  if (idempotencyKey !== undefined) headers["Idempotency-Key"] = idempotencyKey;
  if (expected !== undefined) headers["If-Match"] = expected === "*" ? "*" : `"${expected}"`;
  if (producer) {
    headers["Producer-Id"] = producer.id;
    headers["Producer-Epoch"] = String(producer.epoch ?? 0);
    if (producer.seq !== undefined) headers["Producer-Seq"] = String(producer.seq);
  }
  return headers;
}

function withKey<T extends { idempotencyKey?: string }>(options: T): T {
  return { ...options, idempotencyKey: options.idempotencyKey ?? crypto.randomUUID() };
}

function inQuery(query: Query): string {
  const pairs = Object.entries(query).flatMap(([name, value]) =>
    value === undefined ? [] : [value].flat().map((one) => [name, String(one)]),
  );
  return pairs.length > 0 ? `?${new URLSearchParams(pairs)}` : "";
}

function pageQuery({ order = "asc", after, before, limit }: PageOptions): Query {
  if ((order === "asc" ? before : after) !== undefined) {
    throw new RangeError("after is for the order asc, and before for desc");
  }
  return { order, after, before, limit };
}

/** What a follow needs of its client. */
interface Source {
  call(last: string | undefined): Call;
  open(call: Call, watch: Watch): Promise<Response>;
  parse(text: string): any;
  onRetry(failure: Error, pause: number): void;
}

/**
 * The events of a session, stored ones first. Iterate over it once, with `for await`. It ends when
 * the session is closed or deleted, and `ended` then says which.
 */
export class Follow implements AsyncIterable<LogEvent> {
  ended: "closed" | "deleted" | undefined;
  /** The ID of the event that was returned last. */
  last: string | undefined;
  /** The JSON of that event, as the server sent it. */
  text = "";
  readonly #source: Source;
  readonly #signal: AbortSignal | undefined;
  readonly #silence: number;
  readonly #retries: Retries;
  readonly #stop = new AbortController();
  readonly #events = this.#run();
  #wasThere = false;

  /** @internal */
  constructor(source: Source, options: FollowOptions) {
    this.#source = source;
    this.#signal = options.signal;
    this.#silence = options.silence ?? SILENCE;
    this.#retries = new Retries(options.giveUpAfter ?? Infinity);
    this.last = options.after;
  }

  [Symbol.asyncIterator](): AsyncGenerator<LogEvent, void, undefined> {
    return this.#events;
  }

  /** Ends the connection and the iteration, also while an event is awaited. */
  close(): void {
    this.#stop.abort(CLOSED);
  }

  async *#run(): AsyncGenerator<LogEvent, void, undefined> {
    const stop = this.#stop;
    const abort = () => stop.abort(this.#signal?.reason);
    this.#signal?.addEventListener("abort", abort);
    if (this.#signal?.aborted) abort();
    try {
      while (this.ended === undefined) {
        const call = this.#source.call(this.last);
        try {
          yield* this.#connection(call);
        } catch (error) {
          await this.#failed(call, error);
        }
      }
    } catch (error) {
      if (error !== CLOSED) throw error;
    } finally {
      this.#signal?.removeEventListener("abort", abort);
    }
  }

  async *#connection(call: Call): AsyncGenerator<LogEvent, void, undefined> {
    const watch = new Watch(this.#stop.signal);
    try {
      watch.start(this.#silence);
      const response = await this.#source.open(call, watch);
      this.#wasThere = true;
      yield* this.#received(response, watch);
    } finally {
      watch.end();
    }
  }

  async *#received(response: Response, watch: Watch): AsyncGenerator<LogEvent, void, undefined> {
    if (!response.body) throw new Lost("the answer has no body");
    const [reader, decoder, frames] = [response.body.getReader(), new TextDecoder(), new Frames()];
    for (;;) {
      watch.start(this.#silence);
      const chunk = await watch.lost(reader.read());
      // The consumer may take its time with an event.
      watch.rest();
      if (chunk.done) throw new Lost("the stream ended");
      this.#retries.alive();
      for (const frame of frames.feed(decoder.decode(chunk.value, { stream: true }))) {
        this.#stop.signal.throwIfAborted();
        if (frame.id) {
          const event = this.#source.parse(frame.data);
          [this.last, this.text, this.#retries.failures] = [frame.id, frame.data, 0];
          yield event;
        } else if (this.#takeSign(frame)) {
          return;
        }
      }
    }
  }

  /**
   * Takes a frame without an event, and returns whether it is the last one. An event may be of any
   * type, so it is known by its ID.
   */
  #takeSign({ event, data }: Frame): boolean {
    if (event === "closed" || event === "deleted") this.ended = event;
    // What does not pass by itself is answered with a status when the stream is opened.
    if (event === "error") throw new Lost(`the stream failed: ${data}`);
    if (event === "caught_up") this.#retries.failures = 0;
    return this.ended !== undefined;
  }

  async #failed(call: Call, failure: unknown): Promise<void> {
    if (failure instanceof ApiError && failure.code === "unknown_session" && this.#wasThere) {
      this.ended = "deleted";
      return;
    }
    if (!mayPass(failure)) throw failure;
    const pause = this.#retries.pause(call, failure);
    this.#source.onRetry(failure, pause);
    await sleep(pause, this.#stop.signal);
  }
}

/**
 * A client of one server.
 *
 * A call is repeated after a lost connection and after the statuses 408, 429 and 5xx, with growing
 * pauses, or those that the server asks for. It ends with the answer, with `ApiError` for any other
 * status, or with `Unanswered` when the deadline has passed.
 */
export class SessionLog {
  readonly #url: string;
  readonly #options: Options;
  readonly #json: NonNullable<Options["json"]>;

  constructor(url: string, options: Options = {}) {
    this.#url = url.replace(/\/+$/, "");
    this.#options = options;
    this.#json = options.json ?? JSON;
  }

  /**
   * Appends events, all or none, and returns them as stored. Types other than `user.message`, a
   * producer and `close` need the key of a worker.
   */
  async append(
    session: string,
    events: NewEvent[],
    options: WorkerAppendOptions = {},
  ): Promise<Appended> {
    const { producer, close, signal } = options;
    const isNumbered = producer?.seq !== undefined;
    const headers = conditions(isNumbered ? options : withKey(options));
    const body = close ? { ...(events.length > 0 && { events }), close } : { events };
    const call = this.#prepare("POST", sessionPath(session, "/events"), {}, headers, body);
    const answer = await this.#call(call, { signal });
    return { events: answer.body.events, replayed: answer.headers.has("idempotent-replayed") };
  }

  /** Appends a user message. The `message_id` of the returned event is that of its turn. */
  async sendMessage(
    session: string,
    content: string | ContentBlock[],
    options: AppendOptions & { metadata?: Record<string, unknown> } = {},
  ): Promise<LogEvent> {
    const { metadata, ...rest } = options;
    const blocks = typeof content === "string" ? [{ type: "text", text: content }] : content;
    const event = { type: "user.message" as const, content: blocks, ...(metadata && { metadata }) };
    const { events } = await this.append(session, [event], rest);
    return events[0] as LogEvent;
  }

  getSession(session: string, options: CallOptions = {}): Promise<Session> {
    return this.#get(sessionPath(session), options);
  }

  getEvent(eventId: string, options: CallOptions = {}): Promise<LogEvent> {
    return this.#get(`/v1/events/${encodeURIComponent(eventId)}`, options);
  }

  getMessage(messageId: string, options: CallOptions = {}): Promise<Message> {
    return this.#get(`/v1/messages/${encodeURIComponent(messageId)}`, options);
  }

  /**
   * Waits until a turn is completed, failed or cancelled, and returns it. Throws `TurnNotOver`
   * after `timeout`, by default 300,000, or up to a second later.
   */
  async waitForTurn(
    messageId: string,
    { timeout = 300_000, signal }: CallOptions & { timeout?: number } = {},
  ): Promise<Message> {
    const path = `/v1/messages/${encodeURIComponent(messageId)}`;
    const end = performance.now() + timeout;
    let turn: Message | undefined;
    for (let left = timeout; left > 0; left = end - performance.now()) {
      const wait = Math.min(WAIT, Math.max(1, Math.floor(left / 1000)));
      const call = this.#prepare("GET", path, { wait });
      const limits = { deadline: left, patience: wait * 1000 + PATIENCE, signal };
      try {
        turn = (await this.#call(call, limits)).body as Message;
      } catch (error) {
        throw error instanceof Unanswered ? new TurnNotOver(turn, error) : error;
      }
      if (FINAL.includes(turn.status)) return turn;
      // A server that is about to stop answers at once.
      await sleep(PAUSE_FIRST, signal);
    }
    throw new TurnNotOver(turn);
  }

  /** Iterates over pages of events. */
  listEvents(
    session: string,
    options: PageOptions & { types?: string[] } = {},
  ): AsyncGenerator<EventPage, void, undefined> {
    const query = { ...pageQuery(options), type: options.types };
    return this.#pages(sessionPath(session, "/events"), query, "last_id", options);
  }

  /** Iterates over pages of turns. The status `open` is for those that are not over. */
  listMessages(
    session: string,
    options: PageOptions & { status?: "open" } = {},
  ): AsyncGenerator<MessagePage, void, undefined> {
    const query = { ...pageQuery(options), status: options.status };
    return this.#pages(sessionPath(session, "/messages"), query, "last_id", options);
  }

  /** Iterates over pages of sessions. A page of a filtered list can be empty. */
  listSessions(options: SessionListOptions = {}): AsyncGenerator<SessionPage, void, undefined> {
    const { signal, metadata = {}, activeSince, ...rest } = options;
    const query: Query = { ...rest, active_since: activeSince };
    for (const [name, value] of Object.entries(metadata)) query[`metadata[${name}]`] = value;
    return this.#pages("/v1/sessions", query, "last_cursor", { signal });
  }

  /**
   * Follows a session: stored events first, then live ones. Each comes once and in order, over any
   * number of lost connections.
   */
  follow(session: string, options: FollowOptions = {}): Follow {
    const path = sessionPath(session, "/stream");
    const query = { type: options.types, exclude_type: options.excludeTypes };
    const source = {
      call: (last: string | undefined) => {
        const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
        return this.#prepare("GET", path, query, headers);
      },
      open: async (call: Call, watch: Watch) => {
        const response = await this.#open(call, watch);
        const type = response.headers.get("content-type") ?? "";
        if (!type.startsWith("text/event-stream"))
          throw new Lost(`the answer is ${type}, no stream`);
        return response;
      },
      parse: (text: string) => this.#json.parse(text),
      onRetry: (failure: Error, pause: number) => this.#options.onRetry?.(failure, pause),
    };
    return new Follow(source, options);
  }

  /** Creates a session. Without an ID the server makes one, and no lost call is repeated. */
  async createSession(
    session: {
      id?: string;
      title?: string;
      metadata?: Record<string, unknown>;
      events?: NewEvent[];
    } = {},
    { signal, ...options }: CallOptions & { idempotencyKey?: string } = {},
  ): Promise<Session> {
    const isRepeatable = session.id !== undefined;
    const headers = conditions(isRepeatable ? withKey(options) : options);
    const body = { ...session, events: session.events ?? [] };
    const call = this.#prepare("POST", "/v1/sessions", {}, headers, body);
    return (await this.#call(call, { signal, isRepeatable })).body;
  }

  /** Changes the title, the metadata, `closed` and `hold`, and returns the session. */
  async patchSession(
    session: string,
    patch: SessionPatch,
    { signal, ...options }: CallOptions & { expected?: Expected } = {},
  ): Promise<Session> {
    const call = this.#prepare("PATCH", sessionPath(session), {}, conditions(options), patch);
    return (await this.#call(call, { signal })).body;
  }

  /**
   * Creates a session that begins with the events of this one, up to `at`, an ID or a seq. Without
   * `at`, that is the newest event. No lost call is repeated.
   */
  async forkSession(
    session: string,
    fork: {
      id?: string;
      at?: string | number;
      title?: string;
      metadata?: Record<string, unknown>;
    } = {},
    { signal }: CallOptions = {},
  ): Promise<Session> {
    const body = { ...fork, ...(fork.at !== undefined && { at: String(fork.at) }) };
    const call = this.#prepare("POST", sessionPath(session, "/fork"), {}, {}, body);
    return (await this.#call(call, { signal, isRepeatable: false })).body;
  }

  /**
   * Removes the events before one, given by its ID or seq. If the first answer was lost, the one to
   * the repeated call counts no events.
   */
  async trimSession(
    session: string,
    before: string | number,
    { signal }: CallOptions = {},
  ): Promise<Removed> {
    const call = this.#prepare("DELETE", sessionPath(session, "/events"), { before });
    return (await this.#call(call, { signal })).body;
  }

  /** Removes the data of an event, and returns the event without it. */
  async redactEvent(
    eventId: string,
    { reason, signal }: CallOptions & { reason?: string } = {},
  ): Promise<LogEvent> {
    const path = `/v1/events/${encodeURIComponent(eventId)}`;
    return (await this.#call(this.#prepare("DELETE", path, { reason }), { signal })).body;
  }

  /** Deletes a session. `unlessOpen` refuses while its newest turn is not over. */
  async deleteSession(
    session: string,
    options: CallOptions & { reason?: string; unlessOpen?: boolean; expected?: Expected } = {},
  ): Promise<void> {
    const { reason, unlessOpen, signal, ...rest } = options;
    const query = { reason, unless_open: unlessOpen };
    const call = this.#prepare("DELETE", sessionPath(session), query, conditions(rest));
    const retries = new Retries(this.#options.deadline ?? DEADLINE);
    try {
      await this.#call(call, { signal, retries });
    } catch (error) {
      // After a lost answer, the session is gone by the first attempt.
      const isGone = error instanceof ApiError && error.code === "unknown_session";
      if (!isGone || retries.failures === 0) throw error;
    }
  }

  async *#pages(
    path: string,
    query: Query,
    cursor: string,
    { signal }: CallOptions,
  ): AsyncGenerator<any, void, undefined> {
    const parameter = query["order"] === "desc" ? "before" : "after";
    for (let next: Query | undefined = query; next;) {
      const page: any = (await this.#call(this.#prepare("GET", path, next), { signal })).body;
      yield page;
      next = page.has_more ? { ...next, [parameter]: page[cursor] } : undefined;
    }
  }

  async #get(path: string, { signal }: CallOptions): Promise<any> {
    return (await this.#call(this.#prepare("GET", path), { signal })).body;
  }

  #prepare(
    method: string,
    path: string,
    query: Query = {},
    headers: Record<string, string> = {},
    body?: unknown,
  ): Call {
    const { key } = this.#options;
    return {
      method,
      url: this.#url + path + inQuery(query),
      headers: {
        ...headers,
        ...(key && { Authorization: `Bearer ${key}` }),
        ...(body !== undefined && { "Content-Type": "application/json" }),
      },
      body: body === undefined ? null : (this.#json.stringify(body) ?? null),
    };
  }

  async #call(
    call: Call,
    options: {
      signal: AbortSignal | undefined;
      deadline?: number;
      patience?: number;
      retries?: Retries;
      isRepeatable?: boolean;
    },
  ): Promise<Answer> {
    const { signal, patience, isRepeatable = true } = options;
    const deadline = options.deadline ?? this.#options.deadline ?? DEADLINE;
    const retries = options.retries ?? new Retries(deadline);
    for (;;) {
      try {
        return await this.#attempt(call, patience ?? Math.min(PATIENCE, retries.left()), signal);
      } catch (failure) {
        if (!mayPass(failure)) throw failure;
        if (!isRepeatable && failure instanceof Lost) throw new Unanswered(call, failure);
        if (!isRepeatable && !NOT_BEGUN.includes((failure as ApiError).status)) throw failure;
        const pause = retries.pause(call, failure);
        this.#options.onRetry?.(failure, pause);
        await sleep(pause, signal);
      }
    }
  }

  async #attempt(call: Call, ms: number, signal: AbortSignal | undefined): Promise<Answer> {
    const watch = new Watch(signal);
    watch.start(ms);
    try {
      const response = await this.#open(call, watch);
      const text = await watch.lost(response.text());
      return { body: text && this.#parsed(text), headers: response.headers };
    } finally {
      watch.end();
    }
  }

  #parsed(text: string): any {
    try {
      return this.#json.parse(text);
    } catch (cause) {
      throw new Lost("the answer is no whole JSON", { cause });
    }
  }

  /** Sends a request, and returns the answer once its status says that it is one. */
  async #open({ url, method, headers, body }: Call, watch: Watch): Promise<Response> {
    // Made apart from `fetch`, so that what is wrong with the request is no lost connection. A
    // redirected append would become a request for the list of events.
    const request = new Request(url, {
      method,
      headers,
      body,
      cache: "no-store",
      redirect: "manual",
    });
    const response = await watch.lost(fetch(request, { signal: watch.signal }));
    if (response.ok) return response;
    throw new ApiError(response.status, response.headers, await watch.lost(response.text()));
  }
}
