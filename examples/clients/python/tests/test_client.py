"""The client against a server, and against a proxy that loses answers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
import unittest
from contextlib import redirect_stdout
from email.utils import formatdate
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
from harness import KEY, WORKER_KEY, Server, WithServer, accepting, answer, eventually

from sessionlog_client import (
    ApiError,
    AsyncSessionLog,
    Follow,
    NewEvent,
    Producer,
    SessionLog,
    TurnNotOver,
    Unanswered,
    _Frames,
    _seconds,
)

BUSY = answer("503 Service Unavailable")
logging.getLogger("sessionlog_client").addHandler(logging.NullHandler())
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def note(data: Any) -> NewEvent:
    return {"type": "note", "data": data}


class Calls(WithServer):
    def setUp(self) -> None:
        super().setUp()
        self.log = self.client(self.proxy.url)

    def client(self, url: str, key: str = WORKER_KEY, deadline: float = 20) -> SessionLog:
        log = SessionLog(url, key, deadline=deadline)
        self.addCleanup(log.close)
        return log

    def data(self, session: str) -> list[Any]:
        pages = self.log.list_events(session)
        return [event["data"] for page in pages for event in page["events"]]

    def refused(self, status: int, code: str, call: Any, *arguments: Any, **named: Any) -> ApiError:
        with self.assertRaises(ApiError) as caught:
            call(*arguments, **named)
        self.assertEqual((caught.exception.status, caught.exception.code), (status, code))
        return caught.exception

    def test_an_append_whose_answer_is_lost_is_stored_once(self) -> None:
        self.proxy.plan = ["lose", "lose", BUSY]
        with self.assertLogs("sessionlog_client") as logs:
            appended = self.log.append("s", [note(1), note(2)])
        self.assertTrue(appended.replayed)
        self.assertEqual([event["seq"] for event in appended.events], [1, 2])
        self.assertEqual(self.data("s"), [1, 2])
        self.assertEqual(len(logs.records), 3)

    def test_a_pause_is_as_long_as_the_server_asks(self) -> None:
        self.proxy.plan = [answer("503 Service Unavailable", "Retry-After: 1")]
        with self.assertLogs("sessionlog_client") as logs:
            self.log.append("s", [note(1)])
        self.assertIn("Again in 1.0 s", logs.output[0])
        # It would be longer than the deadline, so the call ends at once.
        self.proxy.plan = [answer("429 Too Many Requests", "Retry-After: 3600")]
        with self.assertRaises(Unanswered) as caught:
            self.log.append("s", [note(2)])
        assert isinstance(caught.exception.__cause__, ApiError)
        self.assertEqual(caught.exception.__cause__.status, 429)
        self.assertEqual(self.data("s"), [1])
        self.assertAlmostEqual(_seconds(formatdate(time.time() + 100)), 100, delta=10)
        self.assertEqual([_seconds(text) for text in ("", "-1", "soon", "\u0664")], [0] * 4)

    def test_what_the_server_refuses_is_not_repeated(self) -> None:
        self.log.append("s", [note(1)])
        before = len(self.proxy.requests)
        error = self.refused(412, "expected_mismatch", self.log.append, "s", [note(2)], expected=0)
        self.assertEqual((error.fields, error.type), ({"actual_seq": 1}, "precondition_failed"))
        self.proxy.plan = [answer("404 Not Found", body="<html>")]
        error = self.refused(404, "", self.log.get_session, "s")
        self.assertEqual(error.message, "<html>")
        self.refused(400, "invalid", self.log.append, "s", [{"type": "note"}])
        self.assertEqual(len(self.proxy.requests), before + 3)

    def test_a_call_ends_at_its_deadline_and_can_be_continued_under_its_key(self) -> None:
        self.proxy.plan = ["lose"] * 9
        with self.assertRaises(Unanswered) as caught:
            self.client(self.proxy.url, deadline=0.4).append("s", [note(1)])
        self.assertIsInstance(caught.exception.__cause__, httpx.RemoteProtocolError)
        self.proxy.plan = []
        key = caught.exception.idempotency_key
        self.assertTrue(self.log.append("s", [note(1)], idempotency_key=key).replayed)
        self.assertEqual(self.data("s"), [1])

    def test_an_answer_that_never_comes_or_is_cut_off_is_no_answer(self) -> None:
        whole = answer("200 OK", body='{"id": "s"}')
        with accepting(b"") as url, self.assertRaises(Unanswered):
            self.client(url, deadline=0.3).get_session("s")
        # Without a length, only the JSON shows that it is cut off.
        endless = whole.replace(b"Content-Length: 11\r\n", b"")
        self.log.append("s", [note(1)])
        for begin in (whole[:-3], endless[:-3]):
            self.proxy.plan = [begin]
            with self.assertLogs("sessionlog_client"):
                self.assertEqual(self.log.get_session("s")["last_seq"], 1)

    def test_a_fork_whose_answer_is_lost_is_not_made_twice(self) -> None:
        self.log.append("s", [note(1)])
        self.proxy.plan = [BUSY, "lose"]
        with self.assertRaises(Unanswered):
            self.log.fork_session("s")
        self.assertEqual(sum(len(page["sessions"]) for page in self.log.list_sessions()), 2)

    def test_the_calls_of_workers(self) -> None:
        log = self.log
        self.proxy.plan = ["lose"]
        created = log.create_session("s", title="T", metadata={"agent": "a1"})
        self.assertEqual((created["title"], created["last_seq"]), ("T", 0))
        self.refused(409, "session_exists", log.create_session, "s")
        self.assertEqual(log.create_session("t", events=[note(1)])["last_seq"], 1)
        self.assertTrue(log.create_session()["id"].startswith("sess_"))
        first, second, third = log.append("s", [note(n) for n in (1, 2, 3)], expected=0).events
        fork = log.fork_session("s", "f", at=second["id"], metadata={"agent": None})
        self.assertEqual((fork["last_seq"], fork["metadata"]), (2, {}))
        self.proxy.plan = ["lose"]
        self.assertEqual(log.trim_session("s", third["id"])["events"], 0)
        self.assertEqual([event["seq"] for event in next(log.list_events("s"))["events"]], [3])
        error = self.refused(410, "cursor_trimmed", lambda: next(log.follow("s", first["id"])))
        self.assertEqual(error.fields["first_kept_seq"], 3)
        self.proxy.plan = ["lose"]
        self.assertIs(log.redact_event(third["id"], reason="asked for").get("redacted"), True)
        self.assertIsNone(log.get_event(third["id"])["data"])
        patched = log.patch_session("s", {"title": None, "hold": True}, expected=3)
        self.assertEqual((patched["title"], patched["hold"]), (None, True))
        self.refused(409, "held", log.delete_session, "s")
        log.patch_session("s", {"hold": False})
        self.refused(412, "expected_mismatch", log.delete_session, "s", expected=1)
        self.proxy.plan = ["lose"]
        log.delete_session("s", reason="asked for", unless_open=True, expected="*")
        self.refused(404, "unknown_session", log.delete_session, "s")

    def test_a_producer_is_answered_once_per_number_and_fenced(self) -> None:
        self.proxy.plan = ["lose"]
        one = Producer("worker-1", 1, 0)
        self.assertTrue(self.log.append("s", [note(1)], producer=one).replayed)
        self.assertNotIn("idempotency-key", self.proxy.requests[0].lower())
        gap = Producer("worker-1", 1, 7)
        error = self.refused(409, "producer_gap", self.log.append, "s", [note(2)], producer=gap)
        self.assertEqual(error.fields, {"expected": 1, "received": 7})
        self.log.append("s", producer=Producer("worker-1", 2), close=True)
        error = self.refused(403, "fenced", self.log.append, "s", [note(2)], producer=one)
        self.assertEqual(error.fields, {"current_epoch": 2})
        error = self.refused(409, "session_closed", self.log.append, "s", [note(2)])
        self.assertEqual(error.fields, {"actual_seq": 1})

    def test_a_key_of_a_client_is_refused_what_workers_do(self) -> None:
        log = self.client(self.server.url, KEY)
        self.refused(403, "forbidden", log.create_session, "s")
        self.refused(401, "wrong_token", self.client(self.server.url, "wrong").get_session, "s")
        self.assertEqual(log.send_message("s", "Hi")["seq"], 1)

    def test_lists_are_read_page_by_page_in_both_orders(self) -> None:
        self.log.append("s", [note(n) for n in range(7)])
        self.log.append("s", [{"type": "other", "data": 7}])
        turns = [self.log.send_message("s", [{"type": "text", "text": t}]) for t in "ab"]
        pages = list(self.log.list_events("s", limit=4))
        self.assertEqual([len(page["events"]) for page in pages], [4, 4, 2])
        newest = [
            e["seq"] for p in self.log.list_events("s", order="desc", limit=3) for e in p["events"]
        ]
        self.assertEqual(newest, list(range(10, 0, -1)))
        after = pages[0]["last_id"]
        some = self.log.list_events("s", after=after, types=["note", "other"], limit=2)
        self.assertEqual([e["data"] for page in some for e in page["events"]], [4, 5, 6, 7])
        messages = [
            m
            for page in self.log.list_messages("s", status="open", limit=1)
            for m in page["messages"]
        ]
        self.assertEqual([m["id"] for m in messages], [turn["message_id"] for turn in turns])
        with self.assertRaises(ValueError):
            self.log.list_events("s", before=after)
        for n in range(3):
            self.log.create_session(f"t/{n}", metadata={"agent": f"a{n % 2}"})
        self.log.append("t/2", close=True)
        listed = self.log.list_sessions(
            order="id", prefix="t/", metadata={"agent": "a0"}, closed=False, limit=1
        )
        self.assertEqual([s["id"] for page in listed for s in page["sessions"]], ["t/0"])

    def test_a_session_can_have_any_name(self) -> None:
        punctuation = "".join(chr(code) for code in range(32, 127) if not chr(code).isalnum())
        for name in ("a b/c", "%41", "...", "\u00fc\u2028\U0001f980", punctuation, "../x?y=z#w"):
            self.log.append(name, [note(name)])
            self.assertEqual(self.log.get_session(name)["id"], name)
            with self.log.follow(name) as follow:
                self.assertEqual(next(follow)["session_id"], name)
        for name in ("", ".", ".."):
            with self.assertRaises(ValueError):
                self.log.get_session(name)

    def test_data_comes_back_as_it_was_sent(self) -> None:
        odd = ["x\n\u2028\u0085y\r\n", 12345678901234567890123, "\ud83d", {"": [None, True]}]
        for event in self.log.append("s", [note(value) for value in odd]).events:
            self.assertEqual(self.log.get_event(event["id"]), event)
        # A frame with an ID is an event, whatever its type says.
        for kind in ("closed", "error", "caught_up"):
            self.log.append("s", [{"type": kind, "data": 1.5}])
        with self.log.follow("s") as follow:
            followed = [next(follow)["data"] for _ in range(7)]
            self.assertIn('"data":1.5', follow.text)
        self.assertEqual(followed, [*odd, 1.5, 1.5, 1.5])
        self.assertEqual(self.data("s"), followed)
        with self.assertRaises(ValueError):
            self.log.append("s", [note(float("nan"))])


class Turns(WithServer):
    def test_a_turn_is_awaited_until_it_is_over(self) -> None:
        log, worker = SessionLog(self.proxy.url, KEY), SessionLog(self.server.url, WORKER_KEY)
        self.addCleanup(log.close)
        self.addCleanup(worker.close)
        turn = log.send_message("s", "Hi")["message_id"]
        assert turn is not None
        with self.assertRaises(TurnNotOver) as caught:
            log.wait_for_turn(turn, timeout=0.1)
        assert caught.exception.turn is not None
        self.assertEqual(caught.exception.turn["status"], "queued")
        done: list[NewEvent] = [
            {"type": "assistant.message_completed", "message_id": turn, "data": {"text": "Done."}},
            {"type": "message.status_changed", "message_id": turn, "data": {"status": "completed"}},
        ]

        polls = len(self.proxy.requests)

        def work() -> None:
            eventually("it waits", lambda: len(self.proxy.requests) > polls)
            self.server.kill()
            self.server.start()
            worker.append("s", done)

        working = threading.Thread(target=work)
        working.start()
        message = log.wait_for_turn(turn)
        working.join()
        self.assertEqual((message["status"], len(message["output"])), ("completed", 1))
        self.assertEqual(log.get_message(turn), message)


class Follows(WithServer):
    def setUp(self) -> None:
        super().setUp()
        self.worker = SessionLog(self.server.url, WORKER_KEY)
        self.addCleanup(self.worker.close)
        self.log = SessionLog(self.proxy.url, KEY)
        self.addCleanup(self.log.close)

    def test_a_follow_resumes_over_a_server_that_ends(self) -> None:
        seen: list[int] = []
        self.worker.create_session("s")
        follow = self.log.follow("s")

        def take() -> None:
            seen.extend(event["data"] for event in follow)

        taking = threading.Thread(target=take)
        taking.start()
        for n, end in enumerate([Server.kill, Server.stop, Server.kill]):
            self.worker.append("s", [note(n * 10 + i) for i in range(10)])
            eventually("some have come", partial(self.has, seen, n * 10 + 1))
            end(self.server)
            self.server.start()
        self.worker.append("s", [note(30)], close=True)
        taking.join(20)
        self.assertEqual((seen, follow.ended), (list(range(31)), "closed"))
        self.assertEqual(list(follow), [])

    @staticmethod
    def has(seen: list[int], count: int) -> bool:
        return len(seen) >= count

    def test_a_follow_ends_when_the_session_is_deleted(self) -> None:
        first = self.worker.append("s", [note(1), note(2)]).events[0]
        follow = self.log.follow("s", first["id"])
        self.assertEqual(next(follow)["data"], 2)
        deleting = threading.Thread(target=self.worker.delete_session, args=["s"])
        deleting.start()
        self.assertEqual((list(follow), follow.ended), ([], "deleted"))
        deleting.join()
        with self.assertRaises(ApiError) as caught:
            next(self.log.follow("s"))
        self.assertEqual(caught.exception.code, "unknown_session")

    def test_a_session_that_is_deleted_during_a_lost_connection_is_deleted(self) -> None:
        self.worker.append("s", [note(1)])
        follow = self.log.follow("s")
        next(follow)
        self.server.kill()
        self.server.start()
        self.worker.delete_session("s")
        self.assertEqual((list(follow), follow.ended), ([], "deleted"))

    def test_types_are_chosen_and_left_out(self) -> None:
        events: list[NewEvent] = [{"type": kind, "data": kind} for kind in "abcab"]
        self.worker.append("s", events, close=True)
        only = [event["data"] for event in self.log.follow("s", types=["a", "b"])]
        others = [event["data"] for event in self.log.follow("s", exclude_types=["a", "b"])]
        self.assertEqual((only, others), (list("abab"), ["c"]))
        with self.assertRaises(TypeError):
            self.log.follow("s", types="note")

    def test_a_silent_connection_is_lost(self) -> None:
        frame = b'id: 1\ndata: {"id": "1"}\n\n'
        ends = b"event: closed\ndata: {}\n\n"
        with accepting(STREAM + b":\n\n", STREAM + frame + frame[:-1], STREAM + ends) as url:
            log = SessionLog(url)
            follow = log.follow("s", silence=0.2)
            self.assertEqual(([event["id"] for event in follow], follow.ended), (["1"], "closed"))
            log.close()

    def test_a_follow_gives_up_when_told_so(self) -> None:
        self.proxy.plan = [BUSY] * 9
        with self.assertRaises(Unanswered):
            next(self.log.follow("s", give_up_after=0.5))

    def test_a_follow_is_closed_by_another_thread(self) -> None:
        self.worker.append("s", [note(1)])
        follow, seen = self.follow_in_thread(self.server.url)
        eventually("it has the event", lambda: seen == [1])
        self.end(follow)
        eventually("the connection ends", lambda: self.server.open_streams() == 0)
        self.proxy.plan = [answer("503 Service Unavailable", "Retry-After: 3600")]
        with self.assertLogs("sessionlog_client") as logs:
            follow, _ = self.follow_in_thread(self.proxy.url)
            eventually("it pauses", lambda: logs.records)
        self.end(follow)

    def follow_in_thread(self, url: str) -> tuple[Follow, list[int]]:
        log, seen = SessionLog(url, KEY), list[int]()
        self.addCleanup(log.close)
        follow = log.follow("s")

        def take() -> None:
            seen.extend(event["seq"] for event in follow)

        self.taking = threading.Thread(target=take)
        self.taking.start()
        return follow, seen

    def end(self, follow: Follow) -> None:
        follow.close()
        self.taking.join(20)
        self.assertFalse(self.taking.is_alive())
        self.assertEqual((list(follow), follow.ended), ([], None))


class Command(WithServer):
    def test_the_command_sends_a_message_and_prints_what_follows(self) -> None:
        worker = SessionLog(self.server.url, WORKER_KEY)
        self.addCleanup(worker.close)
        worker.append("a b", [note(1.10)])
        command = [sys.executable, "-m", "sessionlog_client", self.server.url, "a b"]
        with subprocess.Popen(
            [*command, "Hi"],
            env={**os.environ, "SESSIONLOG_API_KEY": KEY},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            eventually("the message is there", lambda: worker.get_session("a b")["last_seq"] == 2)
            worker.append("a b", close=True)
            output, trouble = running.communicate(timeout=20)
        lines = [json.loads(line) for line in output.splitlines()]
        self.assertEqual([line["type"] for line in lines], ["note", "user.message"])
        self.assertEqual(trouble, "the session is closed\n")
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual((refused.returncode, refused.stdout), (1, ""))
        self.assertIn("401 missing_token", refused.stderr)


class Readme(WithServer):
    def test_the_example_runs(self) -> None:
        text = (Path(__file__).parent.parent / "README.md").read_text()
        code = text.split("```python\n")[1].split("```")[0]
        code = code.replace("http://127.0.0.1:8080", self.server.url).replace("secret", WORKER_KEY)
        with redirect_stdout(StringIO()) as output:
            exec(code, names := dict[str, Any]())  # noqa: S102
        names["log"].close()
        lines = output.getvalue().splitlines()
        self.assertIn("1 user.message {'content': ", lines[0])
        self.assertEqual(lines[1], "412 expected_mismatch {'actual_seq': 1}")


class Asyncio(WithServer, unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.log = AsyncSessionLog(self.proxy.url, WORKER_KEY)
        self.addAsyncCleanup(self.log.aclose)

    async def test_the_calls_are_those_of_blocking_code(self) -> None:
        self.proxy.plan = ["lose", BUSY]
        appended = await self.log.append("s", [note(1), note(2)])
        self.assertTrue(appended.replayed)
        pages = [page async for page in self.log.list_events("s", limit=1)]
        self.assertEqual([page["events"] for page in pages], [[e] for e in appended.events])
        turn = (await self.log.send_message("s", "Hi"))["message_id"]
        assert turn is not None
        waiting = asyncio.create_task(self.log.wait_for_turn(turn))
        over: NewEvent = {
            "type": "message.status_changed",
            "message_id": turn,
            "data": {"status": "failed"},
        }
        await self.log.append("s", [over])
        self.assertEqual((await waiting)["status"], "failed")
        with self.assertRaises(ApiError):
            await self.log.get_session("t")

    async def test_a_follow_resumes_while_other_tasks_run(self) -> None:
        await self.log.create_session("s")
        seen: list[int] = []

        async def take() -> str | None:
            async with self.log.follow("s") as follow:
                async for event in follow:
                    seen.append(event["data"])
                return follow.ended

        taking = asyncio.create_task(take())
        for n in range(2):
            await self.log.append("s", [note(n * 10 + i) for i in range(10)])
            while len(seen) <= n * 10:
                await asyncio.sleep(0.01)
            self.server.kill()
            self.server.start()
        await self.log.append("s", [note(20)], close=True)
        self.assertEqual(await asyncio.wait_for(taking, 20), "closed")
        self.assertEqual(seen, list(range(21)))

    async def test_a_follow_that_is_cancelled_leaves_no_connection(self) -> None:
        await self.log.append("s", [note(1)])
        direct = AsyncSessionLog(self.server.url, KEY)
        self.addAsyncCleanup(direct.aclose)
        follow = direct.follow("s")
        self.assertEqual((await follow.__anext__())["data"], 1)
        # A wait with a limit cancels the step alone. The follow then goes on.
        with self.assertRaises(asyncio.TimeoutError):
            await asyncio.wait_for(follow.__anext__(), 0.05)
        await self.log.append("s", [note(2)])
        self.assertEqual((await follow.__anext__())["data"], 2)
        task = asyncio.ensure_future(follow.__anext__())
        await asyncio.sleep(0)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        async with direct.follow("s") as other:
            await other.__anext__()
        await follow.aclose()
        self.assertEqual([event async for event in follow], [])
        while self.server.open_streams() > 0:
            await asyncio.sleep(0.01)


class Frames(unittest.TestCase):
    def test_a_frame_is_taken_when_it_is_whole_however_it_is_cut(self) -> None:
        text = (
            ": comment\n\nid: 1\nevent: x\ndata: {\u2028\u0085\u00e9}\n\nevent: closed\r\ndata:{}\r\n\r\n"
            "data: a\ndata: b\n\nid: 2\n\nretry\ndata: cut off\n"
        ).encode()
        expected = [("1", "x", "{\u2028\u0085\u00e9}"), ("", "closed", "{}"), ("", "", "a\nb")]
        for size in (1, 2, 3, 7, len(text)):
            frames = _Frames()
            cuts = [text[at : at + size] for at in range(0, len(text), size)]
            self.assertEqual([frame for cut in cuts for frame in frames.feed(cut)], expected)
            self.assertEqual(list(frames.feed(b"\n")), [("", "", "cut off")])


if __name__ == "__main__":
    unittest.main()
