"""The judge behind a service: a local HTTP server answers rightly, late, wrongly or not at all."""

import asyncio
import base64
import gzip
import io
import json
import logging
import math
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from genrl_core import Media, Prompt, RecipeError, RewardError
from genrl_core.cli.app import main
from genrl_rewards import VlmJudgeConfig, chat
from genrl_rewards.judge import score, yes_probability

KEY = "sk-very-secret-0123456789"
VARIABLE = "GENRL_TEST_JUDGE_KEY"


@dataclass
class Request:
    """What the server was asked: the number in the image's first pixel, and the rest."""

    place: int
    text: str
    body: dict[str, Any]
    headers: dict[str, str]
    attempt: int


Behaviour = Callable[[Request], Any]


@dataclass
class Service:
    """A server whose behaviour is a function: to a text, an object, bytes, or (status, bytes)."""

    behaviour: Behaviour = lambda request: f"Final Score: {1 + request.place % 5}"
    port: int = 0
    asked: list[Request] = field(default_factory=list)
    running: int = 0
    peak: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def attempts(self, place: int) -> int:
        return sum(request.place == place for request in self.asked)


def image_in(body: dict[str, Any]) -> np.ndarray:
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    head, data = url.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def reply_of(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}} | more]}


def handler_of(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            place = int(image_in(body)[0, 0, 0])
            text = body["messages"][0]["content"][1]["text"]
            with service.lock:
                attempt = service.attempts(place)
                request = Request(place, text, body, dict(self.headers), attempt)
                service.asked.append(request)
                service.running += 1
                service.peak = max(service.peak, service.running)
            try:
                given = service.behaviour(request)
            finally:  # before the reply is sent: the next request may come right after it
                with service.lock:
                    service.running -= 1
            self._give(given)

        def _give(self, given: Any) -> None:
            given = reply_of(given) if isinstance(given, str) else given
            status, data = given if isinstance(given, tuple) else (200, given)
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            if status == 0:  # hang up
                self.connection.close()
                return
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"http://127.0.0.1:{service.port}/elsewhere")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    return Handler


@pytest.fixture
def service() -> Iterator[Service]:
    found = Service()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(found))
    server.handle_error = lambda *_: None  # clients that give up are part of the tests
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "LONGEST_WAIT", 0.01)
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def config(service: Service, **fields: Any) -> VlmJudgeConfig:
    given = {
        "base_url": f"http://127.0.0.1:{service.port}/v1", "model": "judge", "mode": "score",
        "outage": 60.0, "timeout": 30.0, "api_key_env": VARIABLE,
    }  # fmt: skip
    return VlmJudgeConfig(**given | fields)


def judged(service: Service, count: int = 6, **fields: Any) -> list[float | None]:
    pixels = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    pixels[:, 0] = torch.arange(count).view(-1, 1, 1)
    prompts = [Prompt(str(i), f"thing {i}") for i in range(count)]
    return config(service, **fields).build()(Media("image", pixels), prompts)


def broken(service: Service, **fields: Any) -> str:
    with pytest.raises(RewardError) as caught:
        judged(service, **fields)
    assert KEY not in repr(caught.getrepr())
    return str(caught.value)


# Answers


def test_scores_go_to_their_images_whatever_the_order_of_the_answers(service: Service) -> None:
    def late(request: Request) -> str:
        time.sleep(0.03 * ((request.place * 7) % 5))
        assert request.text.endswith(f'"thing {request.place}"? Please answer yes or no.')
        return f"Thing {request.place}: 9 of 10. Final Score: {1 + request.place % 5}"

    service.behaviour = late
    assert judged(service, 24, concurrency=6) == [i % 5 / 4 for i in range(24)]
    assert 2 <= service.peak <= 6
    assert len(service.asked) == 24


def test_one_at_a_time(service: Service) -> None:
    assert judged(service, 5, concurrency=1) == [0, 0.25, 0.5, 0.75, 1]
    assert service.peak == 1


def test_what_is_sent(service: Service) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, 3, 20, 31), generator=generator, dtype=torch.uint8)
    prompt = Prompt("0", 'a "cat" {prompt} \N{SNOWMAN}')
    judge = config(service, question="[{prompt}] {x}", max_tokens=9).build()
    judge(Media("image", pixels), [prompt])
    [request] = service.asked
    assert np.array_equal(image_in(request.body), pixels[0].permute(1, 2, 0).numpy())
    assert request.text == '[a "cat" {prompt} \N{SNOWMAN}] {x}'
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.body | {"messages": 0} == {
        "model": "judge", "messages": 0, "temperature": 0, "max_tokens": 9,
    }  # fmt: skip


def test_no_key_is_sent_where_none_is_asked_for(service: Service) -> None:
    judged(service, 1, api_key_env=None)
    assert "Authorization" not in service.asked[0].headers


def candidates(**probabilities: float) -> dict[str, Any]:
    rows = [{"token": k, "logprob": math.log(v)} for k, v in probabilities.items()]
    return {"content": [{"token": "x", "logprob": -1.0, "top_logprobs": rows}]}


def test_yes_probability_sums_the_spellings(service: Service) -> None:
    given = candidates(**{"Yes": 0.4, " yes": 0.1, "NO": 0.2, "\u2581No": 0.1, "Yesterday": 0.15})
    service.behaviour = lambda _: reply_of("Yes", logprobs=given)
    [found] = judged(service, 1, mode="yes_probability")
    assert found == pytest.approx(0.5 / 0.8)
    body = service.asked[0].body
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)


def test_one_word_among_the_candidates_is_enough() -> None:
    assert yes_probability(reply_of("", logprobs=candidates(yes=0.3, maybe=0.7))) == 1
    assert yes_probability(reply_of("", logprobs=candidates(no=0.3, maybe=0.7))) == 0
    assert yes_probability(reply_of("", logprobs=candidates(maybe=1.0))) is None


def test_unified_reward_as_documented(service: Service) -> None:
    """The snippet in the docstring is a recipe's, and its answers are read."""
    text = VlmJudgeConfig.__doc__ or ""
    snippet = yaml.safe_load(text[text.index("vlm_judge:") :])["vlm_judge"]
    service.behaviour = lambda _: "The caption is met.\nFinal Score: 3.5"
    assert judged(service, 2, **snippet) == [0.625, 0.625]
    asked = min(service.asked, key=lambda request: request.place)  # two travel at a time
    assert asked.text.endswith("\nText Caption: [thing 0]") and asked.text.count("\n") == 5
    assert asked.body["model"] == "CodeGoat24/UnifiedReward-qwen-7b"


# Answers without a number: missing, never 0

GARBAGE: list[Any] = [
    "I cannot say.", "Final Score: seven", "Final Score: 7", "Final Score: -1", "", b"not JSON",
    b"[]", b"null", b"\xff\xfe", {"choices": []}, {"choices": "x"}, {"choices": [None]},
    {"choices": [{"message": None}]}, {"choices": [{"message": {"content": [1]}}]},
    {"error": "overloaded"}, b"[" * 100_000, b'{"choices": NaN}',
]  # fmt: skip


def test_what_is_no_answer_is_missing(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    service.behaviour = lambda r: GARBAGE[r.place] if r.place < len(GARBAGE) else "Final Score: 5"
    count = 2 * len(GARBAGE)
    assert judged(service, count) == [None] * len(GARBAGE) + [1.0] * len(GARBAGE)
    assert len(service.asked) == count, "an answer is an answer: it is not asked for again"
    assert f"{len(GARBAGE)} of {count} answers hold no number: the first was" in caplog.text


@pytest.mark.parametrize("said", ["nan", "inf", "-inf", "1e999", "None", "1.0.0", "\u0663\u0663"])
def test_what_is_not_a_finite_number_in_range_is_missing(service: Service, said: str) -> None:
    service.behaviour = lambda r: f"Final Score: {said if r.place == 1 else 3}"
    assert judged(service, 3, pattern=r"Final Score: (\S+)") == [0.5, None, 0.5]


@pytest.mark.parametrize("given", [
    {}, {"content": None}, {"content": [{}]}, {"content": [{"top_logprobs": [None, 3]}]},
    {"content": [{"top_logprobs": [{"token": "yes", "logprob": "0"}]}]}, candidates(),
    {"content": [{"top_logprobs": [{"token": "yes", "logprob": math.nan}]}]},
    {"content": [{"top_logprobs": [{"token": "yes", "logprob": -math.inf}]}]},
    {"content": [{"top_logprobs": [{"token": "yes", "logprob": 10**400}]}]},
    {"content": [{"top_logprobs": [{"token": 3, "logprob": -1.0}]}]},
])  # fmt: skip
def test_no_log_probabilities_are_missing(given: Any) -> None:
    assert yes_probability(reply_of("yes", logprobs=given)) is None


def test_the_last_number_counts() -> None:
    pattern = re.compile(r"Score: (\d+)(?:!)?")
    assert score("Score: 1, no: Score: 4", pattern) == 4
    assert score("x" * 50_000 + "Score: 2", pattern) == 2
    assert score("Score: 9" + "x" * 50_000, pattern) is None
    assert score("", pattern) is None
    assert score("ab", re.compile("a(x)?b")) is None


def test_too_many_without_a_number_stop_the_run(service: Service) -> None:
    service.behaviour = lambda r: "Lovely." if r.place < 4 else "Final Score: 2"
    said = broken(service)
    assert "4 of 6 answers of judge hold no number: the first was 'Lovely.'" in said
    assert "pattern" in said
    assert judged(service, min_answered=0.3) == [None] * 4 + [0.25] * 2
    assert "a yes or no as first token" in broken(service, mode="yes_probability")


def test_a_reply_that_is_too_long(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_REPLY", 1000)
    service.behaviour = lambda r: "Final Score: 3" + " " * (2000 if r.place == 2 else 0)
    assert judged(service, 4, retries=1) == [0.5, 0.5, None, 0.5]


# Failures


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 0])
def test_a_passing_failure_is_tried_again(service: Service, status: int) -> None:
    def fails_twice(request: Request) -> Any:
        return (status, b"later") if request.attempt < 2 else "Final Score: 4"

    service.behaviour = fails_twice
    assert judged(service, 3, retries=2) == [0.75] * 3
    assert [service.attempts(place) for place in range(3)] == [3, 3, 3]


def test_a_request_that_always_fails_is_missing(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.behaviour = lambda r: (500, b"") if r.place == 3 else "Final Score: 4"
    assert judged(service, 5, retries=3) == [0.75, 0.75, 0.75, None, 0.75]
    assert service.attempts(3) == 4
    assert "1 of 5 requests had no answer: HTTP 500" in caplog.text


def test_pauses_grow_and_heed_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(chat, "LONGEST_WAIT", 30.0)
    monkeypatch.setattr(chat.time, "sleep", pauses.append)
    asker = chat.Chat(
        "", None, timeout=1, retries=7, outage=1e6, least=0.5, concurrency=1, first_wait=1
    )
    waits = iter([0, 0, 0, 10, 0, 99, 0])

    def post(_: bytes) -> dict[str, Any]:
        wait = next(waits, None)
        if wait is None:
            return {"fine": True}
        raise chat.UnavailableError("no", wait)

    monkeypatch.setattr(asker, "_post", post)
    assert asker.ask([dict]) == [{"fine": True}]
    assert pauses == [1, 2, 4, 10, 16, 30, 30]
    assert chat._seconds("17") == 17
    assert chat._seconds(None) == chat._seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize(("status", "advice"), [
    (400, "model"), (401, "environment variable"), (403, "environment variable"),
    (404, "base_url"), (413, "model"), (422, "model"), (302, "Redirects are not followed"),
])  # fmt: skip
def test_a_refusal_stops_at_once(service: Service, status: int, advice: str) -> None:
    service.behaviour = lambda r: (status, f"bad key {r.headers['Authorization']}".encode())
    said = broken(service, count=1)
    assert f"refused a request with HTTP {status}: bad key Bearer ***" in said
    assert advice in said
    assert len(service.asked) == 1


def test_a_time_out_is_missing(service: Service) -> None:
    late = threading.Event()

    def slow(request: Request) -> str:
        if request.place == 0:
            late.wait(60)
        return "Final Score: 1"

    service.behaviour = slow
    start = time.monotonic()
    assert judged(service, 3, timeout=0.7, retries=1) == [None, 0, 0]
    assert time.monotonic() - start < 30
    assert service.attempts(0) == 2
    late.set()


WHOLE = json.dumps(reply_of("Final Score: 4")).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(WHOLE)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(WHOLE), WHOLE)
UNSAID = b"HTTP/1.1 200 OK\r\n\r\n"
DRIP = 0.2
"""Seconds between two bytes of a slow reply, which in all take 12 s."""


@dataclass
class Wire:
    """A server that writes bytes of its own: a part at once, the rest byte by byte, then no more.

    ``replies`` is by attempt, the last one for all that follow. ``closed`` is set when the client
    has hung up before the end.
    """

    replies: list[tuple[bytes, bytes]]
    port: int = 0
    asked: int = 0
    closed: threading.Event = field(default_factory=threading.Event)

    def serve(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(2**16)
        head, _, body = request.partition(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])
        while len(body) < length:
            body += connection.recv(2**16)
        at_once, slowly = self.replies[min(self.asked, len(self.replies) - 1)]
        self.asked += 1
        connection.sendall(at_once)
        connection.settimeout(DRIP)
        for byte in slowly:
            try:
                if connection.recv(1) == b"":
                    raise ConnectionError
            except TimeoutError:
                connection.sendall(bytes([byte]) if byte else b"")


@contextmanager
def wire(*replies: tuple[bytes, bytes]) -> Iterator[Wire]:
    found = Wire(list(replies))

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                found.serve(self.request)
            except OSError:
                found.closed.set()

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


SLOW = {
    "silent": (b"", bytes(60)),
    "status line": (b"", HEAD + WHOLE),
    "headers": (HEAD[:20], HEAD[20:] + WHOLE),
    "endless headers": (HEAD[:-2], b"x: y\r\n" * 10),
    "body": (HEAD, WHOLE),
    "chunk": (CHUNKED[:-20], CHUNKED[-20:] + b"1\r\n \r\n" * 6 + b"0\r\n\r\n"),
    "trailer": (CHUNKED + b"0\r\n", b"x: y\r\n" * 10 + b"\r\n"),
    "a refusal's reason": (b"HTTP/1.1 400 No\r\nContent-Length: 99\r\n\r\n", b"why? " * 12),
}


@pytest.mark.parametrize("kind", SLOW)
def test_an_attempt_ends_in_time_wherever_the_bytes_are_slow(kind: str) -> None:
    """A byte now and then in any part of a reply; the connection is closed, and it is no answer."""
    with wire(SLOW[kind]) as slow:
        start = time.monotonic()
        said = broken(slow, count=1, timeout=0.8, retries=0, outage=0.0)
        seconds = time.monotonic() - start
        assert 0.7 < seconds < 6, f"an attempt of 0.8 s took {seconds:.1f} s"
        assert "HTTP 400" in said if "refusal" in kind else "without an answer" in said
        assert slow.closed.wait(5), "the service still holds the connection"


@pytest.mark.parametrize("cut", [
    HEAD + WHOLE[:-5], HEAD, HEAD[:30], CHUNKED[:-9], CHUNKED, UNSAID + WHOLE[:-5], UNSAID,
])  # fmt: skip
def test_a_reply_that_is_cut_short_is_asked_for_again(cut: bytes) -> None:
    """Of a stated length, in chunks, or ended by the connection alone: then its JSON is broken."""
    for whole in (HEAD + WHOLE, CHUNKED + b"0\r\n\r\n", UNSAID + WHOLE):
        with wire((cut, b""), (cut, b""), (whole, b"")) as service:
            try:
                found: Any = judged(service, 1, retries=2)
            except RewardError as error:
                found = error
            assert found == [0.75], found
            assert service.asked == 3


@pytest.mark.parametrize("long", [
    HEAD[:-2] + b"x: y\r\n" * 100_000 + b"\r\n" + WHOLE,
    HEAD[:-2] + b"x: " + b"y" * 2**20 + b"\r\n\r\n" + WHOLE,
    UNSAID + b" " * 2**21 + WHOLE,
    CHUNKED + b"0\r\n" + b"x: y\r\n" * 100_000 + b"\r\n",
], ids=["headers", "header", "body", "trailer"])  # fmt: skip
def test_a_reply_of_endless_size_is_no_answer(long: bytes) -> None:
    with wire((long, b"")) as service:
        said = broken(service, count=1, retries=1, outage=0.0)
        assert "left 1 of 1 requests without an answer" in said


def test_what_is_packed_is_not_unfolded() -> None:
    """A megabyte could become a gigabyte: no packing is asked for, and none is undone."""
    packed = gzip.compress(WHOLE)
    head = (
        HEAD[: HEAD.index(b"Content-L")] + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    )
    with wire((head % len(packed) + packed, b"")) as service:
        assert "hold no number" in broken(service, count=1)


def test_a_judge_is_asked_from_a_thread_whose_loop_runs(service: Service) -> None:
    """A cell of a notebook is such a place."""

    async def cell() -> list[float | None]:
        return judged(service, 3)

    before = threading.active_count()
    assert asyncio.run(cell()) == [0.0, 0.25, 0.5]
    assert threading.active_count() <= before, "no loop is left behind"


@pytest.mark.parametrize("named", ["socks5://127.0.0.1:9", "ftp://127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_named(
    service: Service, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("http_proxy", named)
    with pytest.raises(RecipeError, match=r"proxy for http:// .* list judge\.test in no_proxy"):
        config(service, base_url="http://judge.test/v1").build()


def test_a_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """With or without http:// before it; and not for what no_proxy lists."""
    with wire((HEAD + WHOLE, b"")) as service:
        for named in (f"127.0.0.1:{service.port}", f"http://127.0.0.1:{service.port}"):
            monkeypatch.setenv("http_proxy", named)
            assert judged(service, 1, base_url="http://judge.test/v1") == [0.75]
        assert service.asked == 2
        monkeypatch.setenv("no_proxy", "judge.test")
        broken(service, count=1, base_url="http://judge.test/v1", retries=0, outage=0.0)
        assert service.asked == 2


def test_an_outage_is_waited_out(service: Service) -> None:
    """With fewer answers than wanted, the missing ones are asked for again until they come."""
    service.behaviour = lambda r: (503, b"") if r.place and r.attempt < 3 else "Final Score: 2"
    assert judged(service, 4, retries=0, min_answered=0.75) == [0.25] * 4
    assert [service.attempts(place) for place in range(4)] == [1, 4, 4, 4]


def test_an_outage_that_is_too_long_stops_the_run(service: Service) -> None:
    service.behaviour = lambda _: (503, b"")
    start = time.monotonic()
    said = broken(service, outage=0.2)
    assert 0.1 < time.monotonic() - start < 30
    assert "left 6 of 6 requests without an answer for 0.2 s" in said and "HTTP 503" in said
    assert "resume the run" in said


def test_nobody_listens(service: Service) -> None:
    said = broken(service, base_url="http://127.0.0.1:9/v1", outage=0.05, count=2)
    assert "Connection refused" in said and "127.0.0.1:9" in said


def test_no_proxy_stands_before_this_machine_itself(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    service.behaviour = lambda _: "Final Score: 3"
    assert judged(service, 2, retries=0, outage=0) == [0.5, 0.5]


def test_no_images_no_requests(service: Service) -> None:
    assert judged(service, 0) == [] and not service.asked


# Settings


@pytest.mark.parametrize(("fields", "words"), [
    ({"base_url": "ftp://host/v1"}, "http:// or https://"),
    ({"base_url": "file:///etc/passwd"}, "http:// or https://"),
    ({"base_url": f"http://me:{KEY}@host/v1"}, "more than an address"),
    ({"base_url": "http://host/v1?key=1"}, "more than an address"),
    ({"base_url": "http://host:99999/v1"}, "[Pp]ort"),
    ({"question": "How nice is it?"}, "lacks {prompt}"),
    ({"pattern": "("}, "no regular expression"),
    ({"pattern": r"\d"}, "0 groups"),
    ({"pattern": r"(\d)(\d)"}, "2 groups"),
    ({"minimum": 5.0}, "not below maximum"),
    ({"api_key_env": KEY}, "match pattern"),
])  # fmt: skip
def test_settings_that_cannot_work(service: Service, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(service, **fields)


def test_a_key_that_is_not_there(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(RecipeError, match=f"environment variable {VARIABLE}, which is not set"):
        config(service).build()
    monkeypatch.setenv(VARIABLE, "two\nlines")
    with pytest.raises(RecipeError, match="not printable ASCII") as caught:
        config(service).build()
    assert "lines" not in str(caught.value)


def test_only_images_are_judged(service: Service) -> None:
    with pytest.raises(RewardError, match="judges images and found text"):
        config(service).build()(Media("text", texts=("x",)), [Prompt("0", "x")])


RECIPE = """\
policy: {{use: digits_masked}}
sampler: {{use: confidence, num_inference_steps: 2}}
reward:
  vlm_judge: {{model: judge, mode: score, base_url: "http://127.0.0.1:{port}/v1",
    api_key_env: {variable}, pattern: 'Final Score: (\\S+)', maximum: 256.0}}
objective:
  grpo: {{epsilon: 0.1, epsilon_high: 0.2}}
prompts: {{file: train.txt}}
train: {{iterations: 1, num_prompts: 2, num_generations: 4, learning_rate: 1e-3}}
"""


def test_a_whole_run_and_its_key(
    service: Service, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A run with answers that fail now and then: it ends well, and nothing in it has the key."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text("a handwritten three\na handwritten five\n")
    recipe = RECIPE.format(port=service.port, variable=VARIABLE)
    (tmp_path / "mine.yaml").write_text(recipe)

    def moody(request: Request) -> Any:
        mood = len(service.asked) % 5
        brightness = 1 + image_in(request.body).mean()
        return ["what?", (500, KEY.encode())][mood] if mood < 2 else f"Final Score: {brightness}"

    service.behaviour = moody
    assert main(["run", "mine.yaml", "run.name=judged"]) == 0
    [folder] = tmp_path.rglob("judged")
    row = json.loads((folder / "metrics.jsonl").read_text())
    assert 0 < row["reward/vlm_judge"] < 1
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 8
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    captured = capfd.readouterr()
    assert KEY not in captured.out + captured.err + caplog.text
    assert {request.headers["Authorization"] for request in service.asked} == {f"Bearer {KEY}"}
