/**
 * Client of the HTTP API of sessionlog, for Node and for browsers.
 *
 * Failed calls are repeated so that nothing is stored twice. A follow resumes after its last event
 * when the connection is lost. Times are in milliseconds.
 */
/** The base of all errors of this client. */
export class SessionLogError extends Error {
    name = "SessionLogError";
}
/** The server refused the call. An answer of a proxy has an empty `code`. */
export class ApiError extends SessionLogError {
    name = "ApiError";
    status;
    type;
    code;
    fields;
    /** The pause that the server asks for. */
    retryAfter;
    constructor(status, headers, text) {
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
    name = "Unanswered";
    idempotencyKey;
    /** @internal */
    constructor(call, failure) {
        super(`${call.method} ${call.url}: ${failure.message}`, { cause: failure });
        this.idempotencyKey = call.headers["Idempotency-Key"];
    }
}
/** The time to wait for a turn is over. `turn` is its last known state. */
export class TurnNotOver extends SessionLogError {
    name = "TurnNotOver";
    turn;
    constructor(turn, cause) {
        super(`the turn is ${turn?.status ?? "unknown"}`, { cause });
        this.turn = turn;
    }
}
/** A failure that leaves open whether the server has carried out the request. */
class Lost extends Error {
}
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
const FINAL = ["completed", "failed", "cancelled"];
/** Answers after which even a call that is not repeatable is made again: it did nothing. */
const NOT_BEGUN = [408, 429, 503];
/** The reason with which `Follow.close` ends what it waits for. */
const CLOSED = Symbol("closed");
function errorIn(text) {
    try {
        return { ...JSON.parse(text).error };
    }
    catch {
        return {};
    }
}
/** Reads `Retry-After`, which has seconds or a date. */
function milliseconds(retryAfter) {
    const pause = /^\d+$/.test(retryAfter)
        ? Number(retryAfter) * 1000
        : Date.parse(retryAfter) - Date.now();
    return Math.min(Math.max(pause || 0, 0), TIMER_MAX);
}
function mayPass(failure) {
    if (failure instanceof ApiError)
        return NOT_BEGUN.includes(failure.status) || failure.status >= 500;
    return failure instanceof Lost;
}
function sleep(ms, signal) {
    return new Promise((resolve, reject) => {
        const abort = () => end(() => reject(signal?.reason));
        const timer = setTimeout(() => end(resolve), ms);
        const end = (settle) => {
            clearTimeout(timer);
            signal?.removeEventListener("abort", abort);
            settle();
        };
        signal?.addEventListener("abort", abort);
        if (signal?.aborted)
            abort();
    });
}
/** Ends a request that takes too long, or that its caller ends. */
class Watch {
    #controller = new AbortController();
    #caller;
    #abort = () => this.#controller.abort(this.#caller?.reason);
    #timer;
    constructor(caller) {
        caller?.throwIfAborted();
        this.#caller = caller;
        caller?.addEventListener("abort", this.#abort);
    }
    get signal() {
        return this.#controller.signal;
    }
    start(ms) {
        this.rest();
        const late = () => this.#controller.abort(new Lost(`nothing came for ${ms} ms`));
        this.#timer = setTimeout(late, Math.min(ms, TIMER_MAX));
    }
    rest() {
        clearTimeout(this.#timer);
    }
    /** Awaits a part of the request. Each failure is a lost connection, unless the caller ended it. */
    async lost(part) {
        try {
            return await part;
        }
        catch (error) {
            this.#caller?.throwIfAborted();
            if (error instanceof Lost)
                throw error;
            throw new Lost(`the connection is lost: ${reasonOf(error)}`, { cause: error });
        }
    }
    end() {
        this.rest();
        this.#caller?.removeEventListener("abort", this.#abort);
        this.#controller.abort();
    }
}
function reasonOf(error) {
    const { cause, message } = error;
    return cause?.message || message || String(error);
}
/** How long to pause after a failure, and when to give up. */
class Retries {
    failures = 0;
    #span;
    #began = performance.now();
    constructor(span) {
        this.#span = span;
    }
    /** Begins the time anew. */
    alive() {
        this.#began = performance.now();
    }
    left() {
        return Math.max(0, this.#began + this.#span - performance.now());
    }
    /** Returns how long to wait after a failure. Throws `Unanswered` if that is too long. */
    pause(call, failure) {
        const longest = Math.min(PAUSE_MAX, PAUSE_FIRST * 2 ** this.failures);
        const asked = failure instanceof ApiError ? failure.retryAfter : 0;
        const pause = Math.max(asked, longest * (0.5 + Math.random() / 2));
        this.failures += 1;
        if (pause > this.left())
            throw new Unanswered(call, failure);
        return pause;
    }
}
/** Takes a stream of server-sent events apart. A frame counts once its blank line is there. */
class Frames {
    #rest = "";
    #fields = new Map();
    *feed(text) {
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
            const last = (name) => fields.get(name)?.at(-1) ?? "";
            const data = fields.get("data");
            if (data)
                yield { id: last("id"), event: last("event"), data: data.join("\n") };
        }
    }
    /** Takes a line. A comment is a field without a name. */
    #take(line) {
        const end = line.includes(":") ? line.indexOf(":") : line.length;
        const [name, value] = [line.slice(0, end), line.slice(end + 1)];
        const values = this.#fields.get(name) ?? [];
        this.#fields.set(name, [...values, value.startsWith(" ") ? value.slice(1) : value]);
    }
}
function sessionPath(session, rest = "") {
    if (["", ".", ".."].includes(session)) {
        throw new RangeError(`${JSON.stringify(session)} names no session in a URL`);
    }
    return `/v1/sessions/${encodeURIComponent(session)}${rest}`;
}
function conditions(options) {
    const { idempotencyKey, expected, producer } = options;
    const headers = {};
    if (idempotencyKey !== undefined)
        headers["Idempotency-Key"] = idempotencyKey;
    if (expected !== undefined)
        headers["If-Match"] = expected === "*" ? "*" : `"${expected}"`;
    if (producer) {
        headers["Producer-Id"] = producer.id;
        headers["Producer-Epoch"] = String(producer.epoch ?? 0);
        if (producer.seq !== undefined)
            headers["Producer-Seq"] = String(producer.seq);
    }
    return headers;
}
function withKey(options) {
    return { ...options, idempotencyKey: options.idempotencyKey ?? crypto.randomUUID() };
}
function inQuery(query) {
    const pairs = Object.entries(query).flatMap(([name, value]) => value === undefined ? [] : [value].flat().map((one) => [name, String(one)]));
    return pairs.length > 0 ? `?${new URLSearchParams(pairs)}` : "";
}
function pageQuery({ order = "asc", after, before, limit }) {
    if ((order === "asc" ? before : after) !== undefined) {
        throw new RangeError("after is for the order asc, and before for desc");
    }
    return { order, after, before, limit };
}
/**
 * The events of a session, stored ones first. Iterate over it once, with `for await`. It ends when
 * the session is closed or deleted, and `ended` then says which.
 */
export class Follow {
    ended;
    /** The ID of the event that was returned last. */
    last;
    /** The JSON of that event, as the server sent it. */
    text = "";
    #source;
    #signal;
    #silence;
    #retries;
    #stop = new AbortController();
    #events = this.#run();
    #wasThere = false;
    /** @internal */
    constructor(source, options) {
        this.#source = source;
        this.#signal = options.signal;
        this.#silence = options.silence ?? SILENCE;
        this.#retries = new Retries(options.giveUpAfter ?? Infinity);
        this.last = options.after;
    }
    [Symbol.asyncIterator]() {
        return this.#events;
    }
    /** Ends the connection and the iteration, also while an event is awaited. */
    close() {
        this.#stop.abort(CLOSED);
    }
    async *#run() {
        const stop = this.#stop;
        const abort = () => stop.abort(this.#signal?.reason);
        this.#signal?.addEventListener("abort", abort);
        if (this.#signal?.aborted)
            abort();
        try {
            while (this.ended === undefined) {
                const call = this.#source.call(this.last);
                try {
                    yield* this.#connection(call);
                }
                catch (error) {
                    await this.#failed(call, error);
                }
            }
        }
        catch (error) {
            if (error !== CLOSED)
                throw error;
        }
        finally {
            this.#signal?.removeEventListener("abort", abort);
        }
    }
    async *#connection(call) {
        const watch = new Watch(this.#stop.signal);
        try {
            watch.start(this.#silence);
            const response = await this.#source.open(call, watch);
            this.#wasThere = true;
            yield* this.#received(response, watch);
        }
        finally {
            watch.end();
        }
    }
    async *#received(response, watch) {
        if (!response.body)
            throw new Lost("the answer has no body");
        const [reader, decoder, frames] = [response.body.getReader(), new TextDecoder(), new Frames()];
        for (;;) {
            watch.start(this.#silence);
            const chunk = await watch.lost(reader.read());
            // The consumer may take its time with an event.
            watch.rest();
            if (chunk.done)
                throw new Lost("the stream ended");
            this.#retries.alive();
            for (const frame of frames.feed(decoder.decode(chunk.value, { stream: true }))) {
                this.#stop.signal.throwIfAborted();
                if (frame.id) {
                    const event = this.#source.parse(frame.data);
                    [this.last, this.text, this.#retries.failures] = [frame.id, frame.data, 0];
                    yield event;
                }
                else if (this.#takeSign(frame)) {
                    return;
                }
            }
        }
    }
    /**
     * Takes a frame without an event, and returns whether it is the last one. An event may be of any
     * type, so it is known by its ID.
     */
    #takeSign({ event, data }) {
        if (event === "closed" || event === "deleted")
            this.ended = event;
        // What does not pass by itself is answered with a status when the stream is opened.
        if (event === "error")
            throw new Lost(`the stream failed: ${data}`);
        if (event === "caught_up")
            this.#retries.failures = 0;
        return this.ended !== undefined;
    }
    async #failed(call, failure) {
        if (failure instanceof ApiError && failure.code === "unknown_session" && this.#wasThere) {
            this.ended = "deleted";
            return;
        }
        if (!mayPass(failure))
            throw failure;
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
    #url;
    #options;
    #json;
    constructor(url, options = {}) {
        this.#url = url.replace(/\/+$/, "");
        this.#options = options;
        this.#json = options.json ?? JSON;
    }
    /**
     * Appends events, all or none, and returns them as stored. Types other than `user.message`, a
     * producer and `close` need the key of a worker.
     */
    async append(session, events, options = {}) {
        const { producer, close, signal } = options;
        const isNumbered = producer?.seq !== undefined;
        const headers = conditions(isNumbered ? options : withKey(options));
        const body = close ? { ...(events.length > 0 && { events }), close } : { events };
        const call = this.#prepare("POST", sessionPath(session, "/events"), {}, headers, body);
        const answer = await this.#call(call, { signal });
        return { events: answer.body.events, replayed: answer.headers.has("idempotent-replayed") };
    }
    /** Appends a user message. The `message_id` of the returned event is that of its turn. */
    async sendMessage(session, content, options = {}) {
        const { metadata, ...rest } = options;
        const blocks = typeof content === "string" ? [{ type: "text", text: content }] : content;
        const event = { type: "user.message", content: blocks, ...(metadata && { metadata }) };
        const { events } = await this.append(session, [event], rest);
        return events[0];
    }
    getSession(session, options = {}) {
        return this.#get(sessionPath(session), options);
    }
    getEvent(eventId, options = {}) {
        return this.#get(`/v1/events/${encodeURIComponent(eventId)}`, options);
    }
    getMessage(messageId, options = {}) {
        return this.#get(`/v1/messages/${encodeURIComponent(messageId)}`, options);
    }
    /**
     * Waits until a turn is completed, failed or cancelled, and returns it. Throws `TurnNotOver`
     * after `timeout`, by default 300,000, or up to a second later.
     */
    async waitForTurn(messageId, { timeout = 300_000, signal } = {}) {
        const path = `/v1/messages/${encodeURIComponent(messageId)}`;
        const end = performance.now() + timeout;
        let turn;
        for (let left = timeout; left > 0; left = end - performance.now()) {
            const wait = Math.min(WAIT, Math.max(1, Math.floor(left / 1000)));
            const call = this.#prepare("GET", path, { wait });
            const limits = { deadline: left, patience: wait * 1000 + PATIENCE, signal };
            try {
                turn = (await this.#call(call, limits)).body;
            }
            catch (error) {
                throw error instanceof Unanswered ? new TurnNotOver(turn, error) : error;
            }
            if (FINAL.includes(turn.status))
                return turn;
            // A server that is about to stop answers at once.
            await sleep(PAUSE_FIRST, signal);
        }
        throw new TurnNotOver(turn);
    }
    /** Iterates over pages of events. */
    listEvents(session, options = {}) {
        const query = { ...pageQuery(options), type: options.types };
        return this.#pages(sessionPath(session, "/events"), query, "last_id", options);
    }
    /** Iterates over pages of turns. The status `open` is for those that are not over. */
    listMessages(session, options = {}) {
        const query = { ...pageQuery(options), status: options.status };
        return this.#pages(sessionPath(session, "/messages"), query, "last_id", options);
    }
    /** Iterates over pages of sessions. A page of a filtered list can be empty. */
    listSessions(options = {}) {
        const { signal, metadata = {}, activeSince, ...rest } = options;
        const query = { ...rest, active_since: activeSince };
        for (const [name, value] of Object.entries(metadata))
            query[`metadata[${name}]`] = value;
        return this.#pages("/v1/sessions", query, "last_cursor", { signal });
    }
    /**
     * Follows a session: stored events first, then live ones. Each comes once and in order, over any
     * number of lost connections.
     */
    follow(session, options = {}) {
        const path = sessionPath(session, "/stream");
        const query = { type: options.types, exclude_type: options.excludeTypes };
        const source = {
            call: (last) => {
                const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
                return this.#prepare("GET", path, query, headers);
            },
            open: async (call, watch) => {
                const response = await this.#open(call, watch);
                const type = response.headers.get("content-type") ?? "";
                if (!type.startsWith("text/event-stream"))
                    throw new Lost(`the answer is ${type}, no stream`);
                return response;
            },
            parse: (text) => this.#json.parse(text),
            onRetry: (failure, pause) => this.#options.onRetry?.(failure, pause),
        };
        return new Follow(source, options);
    }
    /** Creates a session. Without an ID the server makes one, and no lost call is repeated. */
    async createSession(session = {}, { signal, ...options } = {}) {
        const isRepeatable = session.id !== undefined;
        const headers = conditions(isRepeatable ? withKey(options) : options);
        const body = { ...session, events: session.events ?? [] };
        const call = this.#prepare("POST", "/v1/sessions", {}, headers, body);
        return (await this.#call(call, { signal, isRepeatable })).body;
    }
    /** Changes the title, the metadata, `closed` and `hold`, and returns the session. */
    async patchSession(session, patch, { signal, ...options } = {}) {
        const call = this.#prepare("PATCH", sessionPath(session), {}, conditions(options), patch);
        return (await this.#call(call, { signal })).body;
    }
    /**
     * Creates a session that begins with the events of this one, up to `at`, an ID or a seq. Without
     * `at`, that is the newest event. No lost call is repeated.
     */
    async forkSession(session, fork = {}, { signal } = {}) {
        const body = { ...fork, ...(fork.at !== undefined && { at: String(fork.at) }) };
        const call = this.#prepare("POST", sessionPath(session, "/fork"), {}, {}, body);
        return (await this.#call(call, { signal, isRepeatable: false })).body;
    }
    /**
     * Removes the events before one, given by its ID or seq. If the first answer was lost, the one to
     * the repeated call counts no events.
     */
    async trimSession(session, before, { signal } = {}) {
        const call = this.#prepare("DELETE", sessionPath(session, "/events"), { before });
        return (await this.#call(call, { signal })).body;
    }
    /** Removes the data of an event, and returns the event without it. */
    async redactEvent(eventId, { reason, signal } = {}) {
        const path = `/v1/events/${encodeURIComponent(eventId)}`;
        return (await this.#call(this.#prepare("DELETE", path, { reason }), { signal })).body;
    }
    /** Deletes a session. `unlessOpen` refuses while its newest turn is not over. */
    async deleteSession(session, options = {}) {
        const { reason, unlessOpen, signal, ...rest } = options;
        const query = { reason, unless_open: unlessOpen };
        const call = this.#prepare("DELETE", sessionPath(session), query, conditions(rest));
        const retries = new Retries(this.#options.deadline ?? DEADLINE);
        try {
            await this.#call(call, { signal, retries });
        }
        catch (error) {
            // After a lost answer, the session is gone by the first attempt.
            const isGone = error instanceof ApiError && error.code === "unknown_session";
            if (!isGone || retries.failures === 0)
                throw error;
        }
    }
    async *#pages(path, query, cursor, { signal }) {
        const parameter = query["order"] === "desc" ? "before" : "after";
        for (let next = query; next;) {
            const page = (await this.#call(this.#prepare("GET", path, next), { signal })).body;
            yield page;
            next = page.has_more ? { ...next, [parameter]: page[cursor] } : undefined;
        }
    }
    async #get(path, { signal }) {
        return (await this.#call(this.#prepare("GET", path), { signal })).body;
    }
    #prepare(method, path, query = {}, headers = {}, body) {
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
    async #call(call, options) {
        const { signal, patience, isRepeatable = true } = options;
        const deadline = options.deadline ?? this.#options.deadline ?? DEADLINE;
        const retries = options.retries ?? new Retries(deadline);
        for (;;) {
            try {
                return await this.#attempt(call, patience ?? Math.min(PATIENCE, retries.left()), signal);
            }
            catch (failure) {
                if (!mayPass(failure))
                    throw failure;
                if (!isRepeatable && failure instanceof Lost)
                    throw new Unanswered(call, failure);
                if (!isRepeatable && !NOT_BEGUN.includes(failure.status))
                    throw failure;
                const pause = retries.pause(call, failure);
                this.#options.onRetry?.(failure, pause);
                await sleep(pause, signal);
            }
        }
    }
    async #attempt(call, ms, signal) {
        const watch = new Watch(signal);
        watch.start(ms);
        try {
            const response = await this.#open(call, watch);
            const text = await watch.lost(response.text());
            return { body: text && this.#parsed(text), headers: response.headers };
        }
        finally {
            watch.end();
        }
    }
    #parsed(text) {
        try {
            return this.#json.parse(text);
        }
        catch (cause) {
            throw new Lost("the answer is no whole JSON", { cause });
        }
    }
    /** Sends a request, and returns the answer once its status says that it is one. */
    async #open({ url, method, headers, body }, watch) {
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
        if (response.ok)
            return response;
        throw new ApiError(response.status, response.headers, await watch.lost(response.text()));
    }
}
