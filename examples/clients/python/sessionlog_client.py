"""Client of the HTTP API of sessionlog, for blocking and for asyncio code.

`SessionLog` blocks, and `AsyncSessionLog` has the same calls for asyncio. Failed calls are repeated
so that nothing is stored twice. A follow resumes after its last event when the connection is lost.

All logic is written once, in coroutines over `_Io`. The blocking `_Io` never suspends, so
`_run` completes such a coroutine in one step.

    SESSIONLOG_API_KEY=secret python -m sessionlog_client URL SESSION [MESSAGE]

appends the message, if one is given, and prints each event of the session as a line of JSON.
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
import json
import logging
import os
import random
import socket
import sys
import threading
import time
import urllib.parse
import uuid
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Literal,
    NamedTuple,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
    cast,
)

import httpx

if TYPE_CHECKING:
    from typing_extensions import Concatenate, ParamSpec, Self

    P = ParamSpec("P")

__version__ = "0.2.0"
__all__ = [
    "ApiError",
    "Appended",
    "AsyncFollow",
    "AsyncSessionLog",
    "ErrorFields",
    "Event",
    "EventPage",
    "Follow",
    "Message",
    "MessagePage",
    "NewEvent",
    "Producer",
    "Removed",
    "Session",
    "SessionLog",
    "SessionLogError",
    "SessionPage",
    "SessionPatch",
    "TurnNotOver",
    "Unanswered",
]

T = TypeVar("T")

DEADLINE = 60.0
"""Seconds after which a call is not repeated any more."""
SILENCE = 25.0
"""Seconds without a byte after which a stream is lost. The server sends one every ten."""
PATIENCE = 30.0
"""Seconds without a byte after which an attempt of a call is lost."""
WAIT = 30
"""Seconds that the server waits in one poll for a turn. Proxies allow 60 by default."""
PAUSE_FIRST, PAUSE_MAX = 0.25, 8.0
"""Seconds before the first repetition, and the most that doubling makes of them."""

FINAL = frozenset({"completed", "failed", "cancelled"})
"""The statuses of a turn that is over."""

Expected = Union[int, Literal["*"]]
"""The last seq that a session must have: 0 for a new session, `*` for any that exists."""

_log = logging.getLogger("sessionlog_client")


class _EventExtras(TypedDict, total=False):
    data_base64: str
    redacted: bool


class Event(_EventExtras):
    """A stored event. `data` is any JSON, with integers of any size."""

    id: str
    session_id: str
    seq: int
    message_id: str | None
    type: str
    data: Any
    created_at: str


class _NewEventExtras(TypedDict, total=False):
    data: Any
    message_id: str
    content: list[dict[str, Any]]
    metadata: dict[str, Any]


class NewEvent(_NewEventExtras):
    """An event to append. A `user.message` has `content` and `metadata`, others have `data`."""

    type: str


class Session(TypedDict):
    """A session. `last_seq` is a value for `expected`."""

    id: str
    generation: int
    first_seq: int
    last_seq: int
    events: int
    bytes: int
    last_event_id: str | None
    last_event_at: str
    created_at: str
    closed: bool
    hold: bool
    title: str | None
    metadata: dict[str, Any]
    parent: dict[str, Any] | None
    revision: int


class SessionPatch(TypedDict, total=False):
    """A JSON merge patch of a session. A title of `None` removes it."""

    title: str | None
    metadata: dict[str, Any]
    closed: bool
    hold: bool


class _MessageExtras(TypedDict, total=False):
    redacted: bool


class Message(_MessageExtras):
    """A turn as one value."""

    id: str
    session_id: str
    sequence_number: int
    status: str
    content: list[dict[str, Any]]
    metadata: dict[str, Any]
    attempt: int
    output: list[Any]
    output_omitted: int
    error: Any
    created_at: str
    completed_at: str | None


class _Bounds(TypedDict):
    has_more: bool
    first_id: str | None
    last_id: str | None
    tail_id: str | None


class EventPage(_Bounds):
    """A page of events."""

    events: list[Event]


class MessagePage(_Bounds):
    """A page of turns."""

    messages: list[Message]


class SessionPage(TypedDict):
    """A page of sessions."""

    sessions: list[Session]
    has_more: bool
    first_cursor: str | None
    last_cursor: str | None


class Removed(TypedDict):
    """What a trim removed."""

    events: int
    bytes: int
    erased_by: str


@dataclass(frozen=True)
class Producer:
    """The writer of an append. A `seq` makes retries safe, also those of a restarted worker."""

    id: str
    epoch: int = 0
    seq: int | None = None


@dataclass(frozen=True)
class Appended:
    """The stored events. They are `replayed` if an earlier request had stored them."""

    events: list[Event]
    replayed: bool


class SessionLogError(Exception):
    """The base of all errors of this client."""


class ErrorFields(TypedDict, total=False):
    """What an error answer says beside code and message. The code decides which are there."""

    limit: int
    actual: int
    actual_seq: int
    first_kept_seq: int
    session_id: str
    message_id: str
    current_epoch: int
    expected: int
    received: int
    event_id: str
    event_seq: int


class ApiError(SessionLogError):
    """The server refused the call. An answer of a proxy has an empty `code`."""

    def __init__(self, status: int, headers: httpx.Headers, body: bytes) -> None:
        text = body.decode(errors="replace")
        try:
            fields = dict(json.loads(text)["error"])
        except (ValueError, TypeError, KeyError):
            fields = {}
        self.status = status
        self.type: str = fields.pop("type", "")
        self.code: str = fields.pop("code", "")
        self.message: str = fields.pop("message", text[:200])
        self.fields = cast(ErrorFields, fields)
        self.retry_after = _seconds(headers.get("retry-after", ""))
        super().__init__(" ".join(filter(None, [str(status), self.code, self.message])))


class Unanswered(SessionLogError):
    """The deadline passed without a final answer, so the request may have been carried out.

    `__cause__` is the last failure. To find out what became of an append, repeat it with
    `idempotency_key`: it is stored once.
    """

    def __init__(self, request: httpx.Request, failure: Exception) -> None:
        self.idempotency_key: str | None = request.headers.get("idempotency-key")
        super().__init__(f"{request.method} {request.url}: {_shown(failure)}")


class TurnNotOver(SessionLogError, TimeoutError):
    """The time to wait for a turn is over. `turn` is its last known state."""

    def __init__(self, turn: Message | None) -> None:
        self.turn = turn
        super().__init__(f"the turn is {turn['status'] if turn else 'unknown'}")


class _NoAnswer(Exception):
    """An answer that is not what the server sends: cut off, or from something else."""


class _Closed(Exception):
    """Another thread has closed the follow."""


_LOST = (
    httpx.NetworkError,
    httpx.TimeoutException,
    httpx.RemoteProtocolError,
    httpx.ProxyError,
    _NoAnswer,
)
"""Failures that leave open whether the server has carried out the request."""

_NOT_BEGUN = frozenset({408, 429, 503})
"""Answers after which even a call that is not repeatable is made again: it did nothing."""


def _may_pass(error: ApiError) -> bool:
    return error.status in (408, 429) or error.status >= 500


def _seconds(retry_after: str) -> float:
    """Reads `Retry-After`, which has seconds or a date."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
        return max(0.0, float(date.timestamp()) - time.time())
    except (ValueError, TypeError):
        return 0.0


def _shown(failure: Exception) -> str:
    return str(failure) or type(failure).__name__


class _Retries:
    """How long to pause after a failure, and when to give up."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self.failures = 0
        self.alive()

    def alive(self) -> None:
        """Begins the time anew."""
        self._began = time.monotonic()

    def left(self) -> float:
        if self._seconds is None:
            return float("inf")
        return max(0.0, self._began + self._seconds - time.monotonic())

    def pause(self, request: httpx.Request, failure: Exception) -> float:
        """Returns how long to wait after a failure. Raises `Unanswered` if that is too long."""
        longest = min(PAUSE_MAX, PAUSE_FIRST * 2.0 ** min(self.failures, 10))
        asked = failure.retry_after if isinstance(failure, ApiError) else 0.0
        pause = max(asked, longest * random.uniform(0.5, 1))
        self.failures += 1
        if pause > self.left():
            raise Unanswered(request, failure) from failure
        name, url = request.method, request.url
        _log.warning("%s %s: %s. Again in %.1f s", name, url, _shown(failure), pause)
        return pause


class _Frame(NamedTuple):
    id: str
    event: str
    data: str


class _Frames:
    """Takes a stream of server-sent events apart. A frame counts once its blank line is there.

    Works on bytes, since `str.splitlines` also splits at characters that JSON may hold.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, list[str]] = {}

    def feed(self, chunk: bytes) -> Iterator[_Frame]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.rstrip(b"\r").decode().partition(":")
            if name:
                value = value.removeprefix(" ")
                self._fields.setdefault(name, []).append(value)
            elif not line.startswith(b":"):
                fields, self._fields = self._fields, {}
                if "data" in fields:
                    id, event = (fields.get(name, [""])[-1] for name in ("id", "event"))
                    yield _Frame(id, event, "\n".join(fields["data"]))


class _Opened(NamedTuple):
    response: httpx.Response
    chunks: Any


class _Io(Protocol):
    """The part that differs between blocking and asyncio code."""

    async def open(self, request: httpx.Request) -> _Opened: ...

    async def read(self, opened: _Opened) -> bytes | None:
        """Returns the next bytes of the body, and `None` at its end."""

    async def close(self, opened: _Opened) -> None: ...

    async def sleep(self, seconds: float) -> None: ...

    def for_follow(self) -> _Io: ...


class _AsyncIo:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def open(self, request: httpx.Request) -> _Opened:
        response = await self._http.send(request, stream=True)
        return _Opened(response, response.aiter_bytes())

    async def read(self, opened: _Opened) -> bytes | None:
        try:
            return cast(bytes, await opened.chunks.__anext__())
        except StopAsyncIteration:
            return None

    async def close(self, opened: _Opened) -> None:
        await opened.response.aclose()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def for_follow(self) -> _AsyncIo:
        return self


class _BlockingIo:
    """Its methods never suspend. `stop` ends what another thread waits for here."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._stopped = threading.Event()
        self._socket: socket.socket | None = None

    def stop(self) -> None:
        self._stopped.set()
        connection = self._socket
        if connection is not None:
            try:
                # By the base class: a TLS socket would drop its state under the reading thread.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:
                pass  # It is closed already.

    def _check(self) -> None:
        if self._stopped.is_set():
            raise _Closed

    async def open(self, request: httpx.Request) -> _Opened:
        self._check()
        response = self._http.send(request, stream=True)
        if "network_stream" in response.extensions:
            self._socket = response.extensions["network_stream"].get_extra_info("socket")
        return _Opened(response, response.iter_bytes())

    async def read(self, opened: _Opened) -> bytes | None:
        # Checked after `open` has noted the socket, so that `stop` is seen here or there.
        self._check()
        return next(opened.chunks, None)

    async def close(self, opened: _Opened) -> None:
        self._socket = None
        opened.response.close()

    async def sleep(self, seconds: float) -> None:
        self._stopped.wait(seconds)
        self._check()

    def for_follow(self) -> _BlockingIo:
        return _BlockingIo(self._http)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Completes a coroutine over a blocking `_Io`."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    raise RuntimeError("a blocking call was suspended")


class _Answer(NamedTuple):
    body: Any
    headers: httpx.Headers


class AsyncPages(AsyncIterator[T]):
    """The pages of a list, each read when it is asked for."""

    def __init__(self, calls: _Calls, path: str, query: _Query, cursor: tuple[str, str]) -> None:
        self._calls, self._path, self._query, self._cursor = calls, path, query, cursor
        self._has_more = True

    async def __anext__(self) -> T:
        if not self._has_more:
            raise StopAsyncIteration
        request = self._calls._request("GET", self._path, query=self._query)
        page = (await self._calls._call(request)).body
        parameter, field = self._cursor
        self._query = {**self._query, parameter: page[field]}
        self._has_more = page["has_more"]
        return cast(T, page)


class AsyncFollow(AsyncIterator[Event]):
    """The events of a session, stored ones first. Ends when the session is closed or deleted.

    `ended` then says which. `last` is the ID of the event that was returned last, and `text` is its
    JSON as the server sent it.
    """

    def __init__(
        self,
        calls: _Calls,
        path: str,
        query: _Query,
        after: str | None,
        silence: float,
        give_up_after: float | None,
    ) -> None:
        self.last = after
        self.text = ""
        self.ended: Literal["closed", "deleted"] | None = None
        self._calls, self._path, self._query, self._silence = calls, path, query, silence
        self._io = calls._io.for_follow()
        self._retries = _Retries(give_up_after)
        self._opened: _Opened | None = None
        self._parser, self._frames = _Frames(), deque[_Frame]()
        self._was_there = self._is_closed = False

    async def __anext__(self) -> Event:
        while self.ended is None and not self._is_closed:
            if not self._frames:
                await self._receive()
                continue
            frame = self._frames.popleft()
            if frame.id:
                event = json.loads(frame.data)
                self.last, self.text = frame.id, frame.data
                self._retries.failures = 0
                return cast(Event, event)
            await self._take_sign(frame)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the connection and the iteration."""
        self._is_closed = True
        await self._disconnect()

    async def _disconnect(self) -> None:
        opened, self._opened = self._opened, None
        self._frames.clear()
        if opened is not None:
            await self._io.close(opened)

    async def _take_sign(self, frame: _Frame) -> None:
        """Takes a frame without an event. An event may be of any type, so it is known by its ID."""
        if frame.event == "closed" or frame.event == "deleted":
            self.ended = cast(Literal["closed", "deleted"], frame.event)
            await self._disconnect()
        elif frame.event == "error":
            # What does not pass by itself is answered with a status when the stream is opened.
            await self._pause(_NoAnswer(f"the stream failed: {frame.data}"))
        elif frame.event == "caught_up":
            self._retries.failures = 0

    async def _receive(self) -> None:
        try:
            if self._opened is None:
                await self._open()
            if self._opened is None:
                return
            chunk = await self._io.read(self._opened)
            if chunk is None:
                raise _NoAnswer("the stream ended")
        except _LOST as error:
            await self._pause(error)
        except ApiError as error:
            if error.code == "unknown_session" and self._was_there:
                self.ended = "deleted"
            elif _may_pass(error):
                await self._pause(error)
            else:
                raise
        else:
            self._retries.alive()
            self._frames.extend(self._parser.feed(chunk))

    def _request(self) -> httpx.Request:
        headers = {"Accept": "text/event-stream"}
        if self.last:
            headers["Last-Event-ID"] = self.last
        request = self._calls._request("GET", self._path, query=self._query, headers=headers)
        request.extensions["timeout"] = _timeout(self._silence)
        return request

    async def _open(self) -> None:
        opened = await self._io.open(self._request())
        try:
            if opened.response.status_code != 200:
                raise await _refusal(self._io, opened, time.monotonic() + self._silence)
            kind = opened.response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise _NoAnswer(f"the answer is {kind or 'of no type'} and no stream")
        except BaseException:
            await self._io.close(opened)
            raise
        self._opened, self._parser, self._was_there = opened, _Frames(), True

    async def _pause(self, failure: Exception) -> None:
        await self._disconnect()
        await self._io.sleep(self._retries.pause(self._request(), failure))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _body(io: _Io, opened: _Opened, end: float) -> bytes:
    body = bytearray()
    while (chunk := await io.read(opened)) is not None:
        body += chunk
        if time.monotonic() > end:
            raise httpx.ReadTimeout("the answer takes too long")
    return bytes(body)


async def _refusal(io: _Io, opened: _Opened, end: float) -> ApiError:
    body = await _body(io, opened, end)
    return ApiError(opened.response.status_code, opened.response.headers, body)


_Query = dict[str, Any]


def _timeout(seconds: float) -> dict[str, float | None]:
    return httpx.Timeout(seconds, connect=min(seconds, 10)).as_dict()


def _session_path(session: str, rest: str = "") -> str:
    if session in ("", ".", ".."):
        raise ValueError(f"{session!r} names no session in a URL")
    return f"/v1/sessions/{urllib.parse.quote(session, safe='')}{rest}"


def _id_path(kind: str, id: str) -> str:
    return f"/v1/{kind}/{urllib.parse.quote(id, safe='')}"


def _conditions(
    key: str | None = None, expected: Expected | None = None, producer: Producer | None = None
) -> dict[str, str]:
    headers = {}
    if key is not None:
        headers["Idempotency-Key"] = key
    if expected is not None:
        headers["If-Match"] = "*" if expected == "*" else f'"{expected}"'
    if producer is not None:
        headers["Producer-Id"] = producer.id
        headers["Producer-Epoch"] = str(producer.epoch)
        if producer.seq is not None:
            headers["Producer-Seq"] = str(producer.seq)
    return headers


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _types(types: Sequence[str]) -> list[str] | None:
    if isinstance(types, str):
        raise TypeError("types is a list of strings")
    return list(types) or None


class _Calls:
    """The calls of the API, over any `_Io`.

    A call is repeated after a lost connection and after the statuses 408, 429 and 5xx, with growing
    pauses, or those that the server asks for. It ends with the answer, with `ApiError` for any
    other status, or with `Unanswered` when `deadline` seconds have passed.
    """

    def __init__(self, url: str, key: str, deadline: float, io: _Io) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no URL of HTTP")
        self._url, self._key, self._deadline, self._io = url.rstrip("/"), key, deadline, io

    async def append(
        self,
        session: str,
        events: Iterable[NewEvent] = (),
        *,
        idempotency_key: str | None = None,
        expected: Expected | None = None,
        producer: Producer | None = None,
        close: bool = False,
    ) -> Appended:
        """Appends events, all or none, and returns them as stored.

        Types other than `user.message`, a producer and `close` need the key of a worker. Without
        `idempotency_key`, the call makes one.
        """
        if idempotency_key is None and (producer is None or producer.seq is None):
            idempotency_key = str(uuid.uuid4())
        body: dict[str, Any] = {"close": True} if close else {}
        events = list(events)
        if events or not close:
            body["events"] = events
        headers = _conditions(idempotency_key, expected, producer)
        request = self._request("POST", _session_path(session, "/events"), body, headers=headers)
        answer = await self._call(request)
        return Appended(answer.body["events"], "idempotent-replayed" in answer.headers)

    async def send_message(
        self,
        session: str,
        content: str | list[dict[str, Any]],
        *,
        metadata: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
        expected: Expected | None = None,
    ) -> Event:
        """Appends a user message. The `message_id` of the returned event is that of its turn."""
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        event: NewEvent = {"type": "user.message", "content": content}
        if metadata is not None:
            event["metadata"] = metadata
        key, at = idempotency_key, expected
        return (await self.append(session, [event], idempotency_key=key, expected=at)).events[0]

    async def get_session(self, session: str) -> Session:
        return cast(Session, await self._get(_session_path(session)))

    async def get_event(self, event_id: str) -> Event:
        return cast(Event, await self._get(_id_path("events", event_id)))

    async def get_message(self, message_id: str) -> Message:
        return cast(Message, await self._get(_id_path("messages", message_id)))

    async def wait_for_turn(self, message_id: str, timeout: float = 300.0) -> Message:
        """Waits until a turn is completed, failed or cancelled, and returns it.

        Raises `TurnNotOver` after `timeout` seconds, or up to a second later.
        """
        path = _id_path("messages", message_id)
        end, turn = time.monotonic() + timeout, None
        while (left := end - time.monotonic()) > 0:
            wait = min(WAIT, max(1, int(left)))
            request = self._request("GET", path, query={"wait": wait})
            try:
                answer = await self._call(request, _Retries(left), patience=wait + PATIENCE)
            except Unanswered as error:
                raise TurnNotOver(turn) from error
            turn = cast(Message, answer.body)
            if turn["status"] in FINAL:
                return turn
            # A server that is about to stop answers at once.
            await self._io.sleep(PAUSE_FIRST)
        raise TurnNotOver(turn)

    def list_events(
        self,
        session: str,
        *,
        order: Literal["asc", "desc"] = "asc",
        after: str | None = None,
        before: str | None = None,
        types: Sequence[str] = (),
        limit: int | None = None,
    ) -> AsyncPages[EventPage]:
        """Iterates over pages of events, of at most `limit` events each.

        `after` is for the order `asc`, and `before` for `desc`: a page is read from one cursor.
        """
        query = _given(type=_types(types))
        return self._pages(session, "/events", order, after, before, limit, query)

    def list_messages(
        self,
        session: str,
        *,
        order: Literal["asc", "desc"] = "asc",
        after: str | None = None,
        before: str | None = None,
        status: Literal["open"] | None = None,
        limit: int | None = None,
    ) -> AsyncPages[MessagePage]:
        """Iterates over pages of turns. The status `open` is for those that are not over."""
        query = _given(status=status)
        return self._pages(session, "/messages", order, after, before, limit, query)

    def list_sessions(
        self,
        *,
        order: Literal["recent", "created", "id"] = "recent",
        after: str | None = None,
        prefix: str | None = None,
        metadata: dict[str, str] | None = None,
        closed: bool | None = None,
        active_since: str | None = None,
        limit: int | None = None,
    ) -> AsyncPages[SessionPage]:
        """Iterates over pages of sessions. A page of a filtered list can be empty."""
        query = _given(
            order=order,
            after=after,
            prefix=prefix,
            closed=closed,
            active_since=active_since,
            limit=limit,
        )
        query.update({f"metadata[{name}]": value for name, value in (metadata or {}).items()})
        return AsyncPages(self, "/v1/sessions", query, ("after", "last_cursor"))

    def follow(
        self,
        session: str,
        after: str | None = None,
        *,
        types: Sequence[str] = (),
        exclude_types: Sequence[str] = (),
        silence: float = SILENCE,
        give_up_after: float | None = None,
    ) -> AsyncFollow:
        """Iterates over the events of a session, stored ones first, then live ones.

        Each comes once and in order, over any number of lost connections. A connection is lost
        after `silence` seconds without a byte. Raises `Unanswered` if the server sends nothing for
        `give_up_after` seconds, and never if that is `None`.
        """
        query = _given(type=_types(types), exclude_type=_types(exclude_types))
        path = _session_path(session, "/stream")
        return AsyncFollow(self, path, query, after, silence, give_up_after)

    async def create_session(
        self,
        id: str | None = None,
        *,
        title: str | None = None,
        metadata: dict[str, Any] | None = None,
        events: Iterable[NewEvent] = (),
        idempotency_key: str | None = None,
    ) -> Session:
        """Creates a session. Without an ID the server makes one, and no lost call is repeated."""
        body = _given(id=id, title=title, metadata=metadata, events=list(events))
        if id is not None and idempotency_key is None:
            idempotency_key = str(uuid.uuid4())
        headers = _conditions(idempotency_key)
        request = self._request("POST", "/v1/sessions", body, headers=headers)
        return cast(Session, (await self._call(request, is_repeatable=id is not None)).body)

    async def patch_session(
        self, session: str, patch: SessionPatch, *, expected: Expected | None = None
    ) -> Session:
        """Changes the title, the metadata, `closed` and `hold`, and returns the session."""
        headers = _conditions(expected=expected)
        request = self._request("PATCH", _session_path(session), patch, headers=headers)
        return cast(Session, (await self._call(request)).body)

    async def fork_session(
        self,
        session: str,
        id: str | None = None,
        *,
        at: str | int | None = None,
        title: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Session:
        """Creates a session that begins with the events of this one. No lost call is repeated.

        `at` is the last event that both share, by ID or seq. Without it, that is the newest event.
        """
        body = _given(id=id, title=title, metadata=metadata, at=None if at is None else str(at))
        request = self._request("POST", _session_path(session, "/fork"), body)
        return cast(Session, (await self._call(request, is_repeatable=False)).body)

    async def trim_session(self, session: str, before: str | int) -> Removed:
        """Removes the events before one, given by its ID or seq.

        If the first answer was lost, the one to the repeated call counts no events.
        """
        path = _session_path(session, "/events")
        request = self._request("DELETE", path, query={"before": before})
        return cast(Removed, (await self._call(request)).body)

    async def redact_event(self, event_id: str, reason: str | None = None) -> Event:
        """Removes the data of an event, and returns the event without it."""
        path = _id_path("events", event_id)
        request = self._request("DELETE", path, query=_given(reason=reason))
        return cast(Event, (await self._call(request)).body)

    async def delete_session(
        self,
        session: str,
        *,
        reason: str | None = None,
        unless_open: bool = False,
        expected: Expected | None = None,
    ) -> None:
        """Deletes a session. `unless_open` refuses while its newest turn is not over."""
        query = _given(reason=reason, unless_open=unless_open or None)
        headers = _conditions(expected=expected)
        request = self._request("DELETE", _session_path(session), query=query, headers=headers)
        retries = _Retries(self._deadline)
        try:
            await self._call(request, retries)
        except ApiError as error:
            # After a lost answer, the session is gone by the first attempt.
            if error.code != "unknown_session" or retries.failures == 0:
                raise

    def _pages(
        self,
        session: str,
        rest: str,
        order: str,
        after: str | None,
        before: str | None,
        limit: int | None,
        query: _Query,
    ) -> AsyncPages[Any]:
        if (after if order == "desc" else before) is not None:
            raise ValueError("after is for the order asc, and before for desc")
        query = {**query, **_given(order=order, after=after, before=before, limit=limit)}
        cursor = ("before" if order == "desc" else "after", "last_id")
        return AsyncPages(self, _session_path(session, rest), query, cursor)

    def _request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: _Query | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Request:
        pairs = {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in (query or {}).items()
        }
        url = self._url + path + ("?" + urllib.parse.urlencode(pairs, True) if pairs else "")
        headers = dict(headers or {})
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        content = None
        if body is not None:
            content = json.dumps(body, allow_nan=False).encode()
            headers["Content-Type"] = "application/json"
        return httpx.Request(method, url, headers=headers, content=content)

    async def _get(self, path: str) -> Any:
        return (await self._call(self._request("GET", path))).body

    async def _call(
        self,
        request: httpx.Request,
        retries: _Retries | None = None,
        *,
        is_repeatable: bool = True,
        patience: float | None = None,
    ) -> _Answer:
        retries = retries or _Retries(self._deadline)
        while True:
            failure: Exception
            try:
                seconds = patience or min(PATIENCE, retries.left())
                return await self._attempt(request, seconds)
            except ApiError as error:
                repeats = is_repeatable or error.status in _NOT_BEGUN
                if not (_may_pass(error) and repeats):
                    raise
                failure = error
            except _LOST as error:
                if not is_repeatable:
                    raise Unanswered(request, error) from error
                failure = error
            await self._io.sleep(retries.pause(request, failure))

    async def _attempt(self, request: httpx.Request, seconds: float) -> _Answer:
        request.extensions["timeout"] = _timeout(seconds)
        end = time.monotonic() + seconds
        opened = await self._io.open(request)
        try:
            if not opened.response.is_success:
                raise await _refusal(self._io, opened, end)
            body = await _body(self._io, opened, end)
        finally:
            await self._io.close(opened)
        try:
            return _Answer(json.loads(body) if body else None, opened.response.headers)
        except ValueError as error:
            raise _NoAnswer("the answer is no whole JSON") from error


_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""Each follow holds a connection, so their number has no limit."""


class AsyncSessionLog(_Calls):
    """A client for asyncio code.

    Calls are repeated for at most `deadline` seconds. Pass a client of httpx as `http` for
    certificates or proxies of your own, and close it yourself.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        deadline: float = DEADLINE,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._own = httpx.AsyncClient(limits=_LIMITS) if http is None else None
        super().__init__(url, key, deadline, _AsyncIo(http or cast(httpx.AsyncClient, self._own)))

    async def aclose(self) -> None:
        if self._own is not None:
            await self._own.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Pages(Iterator[T]):
    """The pages of a list, each read when it is asked for."""

    def __init__(self, pages: AsyncPages[T]) -> None:
        self._pages = pages

    def __next__(self) -> T:
        try:
            return _run(self._pages.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None


class Follow(Iterator[Event]):
    """The events of a session, stored ones first. Ends when the session is closed or deleted.

    `ended` then says which. `last` is the ID of the event that was returned last, and `text` is its
    JSON as the server sent it. `close` ends it from any thread, also while one waits for an event.
    """

    def __init__(self, follow: AsyncFollow) -> None:
        self._follow = follow
        self._lock = threading.Lock()

    @property
    def ended(self) -> Literal["closed", "deleted"] | None:
        return self._follow.ended

    @property
    def last(self) -> str | None:
        return self._follow.last

    @property
    def text(self) -> str:
        return self._follow.text

    def __next__(self) -> Event:
        with self._lock:
            try:
                return _run(self._follow.__anext__())
            except _Closed:
                _run(self._follow.aclose())
                raise StopIteration from None
            except StopAsyncIteration:
                raise StopIteration from None

    def close(self) -> None:
        self._follow._is_closed = True
        cast(_BlockingIo, self._follow._io).stop()
        # A thread that holds the lock is woken, and ends the connection itself.
        if self._lock.acquire(blocking=False):
            try:
                _run(self._follow.aclose())
            finally:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _blocking(
    call: Callable[Concatenate[_Calls, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SessionLog, P], T]:
    @functools.wraps(call)
    def blocking(self: SessionLog, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return _run(call(self._calls, *args, **kwargs))

    return blocking


def _blocking_pages(
    call: Callable[Concatenate[_Calls, P], AsyncPages[T]],
) -> Callable[Concatenate[SessionLog, P], Pages[T]]:
    @functools.wraps(call)
    def blocking(self: SessionLog, /, *args: P.args, **kwargs: P.kwargs) -> Pages[T]:
        return Pages(call(self._calls, *args, **kwargs))

    return blocking


def _blocking_follow(
    call: Callable[Concatenate[_Calls, P], AsyncFollow],
) -> Callable[Concatenate[SessionLog, P], Follow]:
    @functools.wraps(call)
    def blocking(self: SessionLog, /, *args: P.args, **kwargs: P.kwargs) -> Follow:
        return Follow(call(self._calls, *args, **kwargs))

    return blocking


class SessionLog:
    """A client for blocking code, with the calls of `AsyncSessionLog`. Threads can share it.

    Calls are repeated for at most `deadline` seconds. Pass a client of httpx as `http` for
    certificates or proxies of your own, and close it yourself.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        deadline: float = DEADLINE,
        http: httpx.Client | None = None,
    ) -> None:
        self._own = httpx.Client(limits=_LIMITS) if http is None else None
        io = _BlockingIo(http or cast(httpx.Client, self._own))
        self._calls = _Calls(url, key, deadline, io)

    append = _blocking(_Calls.append)
    send_message = _blocking(_Calls.send_message)
    get_session = _blocking(_Calls.get_session)
    get_event = _blocking(_Calls.get_event)
    get_message = _blocking(_Calls.get_message)
    wait_for_turn = _blocking(_Calls.wait_for_turn)
    list_events = _blocking_pages(_Calls.list_events)
    list_messages = _blocking_pages(_Calls.list_messages)
    list_sessions = _blocking_pages(_Calls.list_sessions)
    follow = _blocking_follow(_Calls.follow)
    create_session = _blocking(_Calls.create_session)
    patch_session = _blocking(_Calls.patch_session)
    fork_session = _blocking(_Calls.fork_session)
    trim_session = _blocking(_Calls.trim_session)
    redact_event = _blocking(_Calls.redact_event)
    delete_session = _blocking(_Calls.delete_session)

    def close(self) -> None:
        if self._own is not None:
            self._own.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _main(arguments: list[str]) -> None:
    if len(arguments) not in (2, 3):
        raise SystemExit("usage: python -m sessionlog_client URL SESSION [MESSAGE]")
    url, session, *message = arguments
    # An event is printed in the encoding of JSON, whatever the system uses.
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    with SessionLog(url, os.environ.get("SESSIONLOG_API_KEY", "")) as log:
        for text in message:
            log.send_message(session, text)
        with log.follow(session) as follow:
            for _ in follow:
                print(follow.text, flush=True)
    print(f"the session is {follow.ended}", file=sys.stderr)


if __name__ == "__main__":
    try:
        _main(sys.argv[1:])
    except SessionLogError as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        pass
