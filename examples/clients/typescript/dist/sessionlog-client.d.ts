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
export type NewEvent = {
    type: "user.message";
    content: ContentBlock[];
    metadata?: Record<string, unknown>;
} | {
    type: string;
    data: unknown;
    message_id?: string;
};
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
    parent: {
        id: string;
        generation: number;
        at: number;
    } | null;
    revision: number;
}
/** A JSON merge patch of a session. A title of `null` removes it. */
export interface SessionPatch {
    title?: string | null;
    metadata?: Record<string, unknown>;
    closed?: boolean;
    hold?: boolean;
}
export type Status = "queued" | "running" | "waiting_for_tool" | "completed" | "failed" | "cancelled";
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
    json?: {
        parse(text: string): any;
        stringify(value: any): string | undefined;
    };
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
export declare class SessionLogError extends Error {
    name: string;
}
/** The server refused the call. An answer of a proxy has an empty `code`. */
export declare class ApiError extends SessionLogError {
    name: string;
    readonly status: number;
    readonly type: string;
    readonly code: string;
    readonly fields: ErrorFields;
    /** The pause that the server asks for. */
    readonly retryAfter: number;
    constructor(status: number, headers: Headers, text: string);
}
/**
 * The deadline passed without a final answer, so the request may have been carried out. `cause` is
 * the last failure. To find out what became of an append, repeat it with `idempotencyKey`: it is
 * stored once.
 */
export declare class Unanswered extends SessionLogError {
    name: string;
    readonly idempotencyKey: string | undefined;
}
/** The time to wait for a turn is over. `turn` is its last known state. */
export declare class TurnNotOver extends SessionLogError {
    name: string;
    readonly turn: Message | undefined;
    constructor(turn: Message | undefined, cause?: unknown);
}
/**
 * The events of a session, stored ones first. Iterate over it once, with `for await`. It ends when
 * the session is closed or deleted, and `ended` then says which.
 */
export declare class Follow implements AsyncIterable<LogEvent> {
    #private;
    ended: "closed" | "deleted" | undefined;
    /** The ID of the event that was returned last. */
    last: string | undefined;
    /** The JSON of that event, as the server sent it. */
    text: string;
    [Symbol.asyncIterator](): AsyncGenerator<LogEvent, void, undefined>;
    /** Ends the connection and the iteration, also while an event is awaited. */
    close(): void;
}
/**
 * A client of one server.
 *
 * A call is repeated after a lost connection and after the statuses 408, 429 and 5xx, with growing
 * pauses, or those that the server asks for. It ends with the answer, with `ApiError` for any other
 * status, or with `Unanswered` when the deadline has passed.
 */
export declare class SessionLog {
    #private;
    constructor(url: string, options?: Options);
    /**
     * Appends events, all or none, and returns them as stored. Types other than `user.message`, a
     * producer and `close` need the key of a worker.
     */
    append(session: string, events: NewEvent[], options?: WorkerAppendOptions): Promise<Appended>;
    /** Appends a user message. The `message_id` of the returned event is that of its turn. */
    sendMessage(session: string, content: string | ContentBlock[], options?: AppendOptions & {
        metadata?: Record<string, unknown>;
    }): Promise<LogEvent>;
    getSession(session: string, options?: CallOptions): Promise<Session>;
    getEvent(eventId: string, options?: CallOptions): Promise<LogEvent>;
    getMessage(messageId: string, options?: CallOptions): Promise<Message>;
    /**
     * Waits until a turn is completed, failed or cancelled, and returns it. Throws `TurnNotOver`
     * after `timeout`, by default 300,000, or up to a second later.
     */
    waitForTurn(messageId: string, { timeout, signal }?: CallOptions & {
        timeout?: number;
    }): Promise<Message>;
    /** Iterates over pages of events. */
    listEvents(session: string, options?: PageOptions & {
        types?: string[];
    }): AsyncGenerator<EventPage, void, undefined>;
    /** Iterates over pages of turns. The status `open` is for those that are not over. */
    listMessages(session: string, options?: PageOptions & {
        status?: "open";
    }): AsyncGenerator<MessagePage, void, undefined>;
    /** Iterates over pages of sessions. A page of a filtered list can be empty. */
    listSessions(options?: SessionListOptions): AsyncGenerator<SessionPage, void, undefined>;
    /**
     * Follows a session: stored events first, then live ones. Each comes once and in order, over any
     * number of lost connections.
     */
    follow(session: string, options?: FollowOptions): Follow;
    /** Creates a session. Without an ID the server makes one, and no lost call is repeated. */
    createSession(session?: {
        id?: string;
        title?: string;
        metadata?: Record<string, unknown>;
        events?: NewEvent[];
    }, { signal, ...options }?: CallOptions & {
        idempotencyKey?: string;
    }): Promise<Session>;
    /** Changes the title, the metadata, `closed` and `hold`, and returns the session. */
    patchSession(session: string, patch: SessionPatch, { signal, ...options }?: CallOptions & {
        expected?: Expected;
    }): Promise<Session>;
    /**
     * Creates a session that begins with the events of this one, up to `at`, an ID or a seq. Without
     * `at`, that is the newest event. No lost call is repeated.
     */
    forkSession(session: string, fork?: {
        id?: string;
        at?: string | number;
        title?: string;
        metadata?: Record<string, unknown>;
    }, { signal }?: CallOptions): Promise<Session>;
    /**
     * Removes the events before one, given by its ID or seq. If the first answer was lost, the one to
     * the repeated call counts no events.
     */
    trimSession(session: string, before: string | number, { signal }?: CallOptions): Promise<Removed>;
    /** Removes the data of an event, and returns the event without it. */
    redactEvent(eventId: string, { reason, signal }?: CallOptions & {
        reason?: string;
    }): Promise<LogEvent>;
    /** Deletes a session. `unlessOpen` refuses while its newest turn is not over. */
    deleteSession(session: string, options?: CallOptions & {
        reason?: string;
        unlessOpen?: boolean;
        expected?: Expected;
    }): Promise<void>;
}
export {};
