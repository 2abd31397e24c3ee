"""Follows a session of a sessionlog server, and resumes when the connection is lost.

    SESSIONLOG_API_KEY=secret python3 tail.py http://127.0.0.1:8080 sess_123 ["a message to send first"]

Needs Python 3.9 and nothing else. Prints each event as a line of JSON.
"""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

SILENCE = 25  # seconds; the server sends a comment every ten
LOST = (OSError, http.client.HTTPException)  # a lost connection


def request(url, headers=None, body=None):
    headers = {"Authorization": f"Bearer {os.environ.get('SESSIONLOG_API_KEY', '')}", **(headers or {})}
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=SILENCE)


def tried_again(call):
    """Repeats a call until it is answered. Exits with what the server refuses for good."""
    wait = 0.5
    while True:
        try:
            return call()
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise SystemExit(f"{error.code}: {error.read().decode()}") from error
        except LOST as error:
            print(f"{error}, retrying in {wait} s", file=sys.stderr)
        time.sleep(wait)
        wait = min(wait * 2, 8)


def send(session, text):
    """Sends a message once: a retry with the same key gets the answer of the first."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": str(uuid.uuid4())}
    event = {"type": "user.message", "content": [{"type": "text", "text": text}]}

    def call():
        with request(f"{session}/events", headers, {"events": [event]}) as answer:
            return json.load(answer)["events"][0]

    return tried_again(call)


def follow(session):
    """Yields each event once and in order, without an end."""
    last = None
    while True:
        answer = tried_again(lambda: request(f"{session}/stream", {"Last-Event-ID": last} if last else {}))
        try:
            event = None
            for line in answer:
                if not line.endswith(b"\n"):
                    break  # A proxy can end an answer in the middle of a line.
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "id":
                    event = value
                elif name == "data" and event:
                    # Remember the ID only when the whole event has arrived.
                    whole = json.loads(value)
                    last, event = event, None
                    yield whole
        except LOST as error:
            print(f"{error}, resuming after {last}", file=sys.stderr)
        finally:
            answer.close()
        time.sleep(0.5)


def main():
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    session = f"{sys.argv[1]}/v1/sessions/{urllib.parse.quote(sys.argv[2], safe='')}"
    if len(sys.argv) == 4:
        send(session, sys.argv[3])
    for event in follow(session):
        print(json.dumps(event), flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
