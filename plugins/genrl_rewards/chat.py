"""A client of services that speak OpenAI's chat completions, over httpx2.

It sends JSON and reads JSON, follows no redirect (the key would travel along), reads no more than
``MAX_REPLY`` bytes and shows the key to nobody but the service. An attempt is one connection under
one clock: a time-out per read, which is what synchronous clients have, never ends where a service
sends a byte now and then, be it of the headers, the body or what follows the body.
"""

import asyncio
import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from genrl_core import RecipeError, RewardError

MAX_REPLY = 2**20
"""Bytes of a reply that are read; a longer one is no answer. Headers have 100 kB, by h11."""
LONGEST_WAIT = 30.0
"""Seconds between two attempts at the most."""
_RETRIED = {408, 429}
_HERE = {"127.0.0.1", "::1", "localhost"}
_log = logging.getLogger("genrl_rewards")

Json = dict[str, Any]


class UnavailableError(Exception):
    """An attempt failed in a way that another one may not: the reason, without the key."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class Chat:
    """Sends requests, several at a time, and gives the replies in the order of the requests.

    Only a transport error, a time-out, 408, 429 and 5xx are tried again, after ``first_wait``,
    twice as long, and so on up to ``LONGEST_WAIT`` seconds, or after what ``Retry-After`` says
    (no longer than that either). What then has no reply is missing. While fewer than the share
    ``least`` of a call's requests are answered, all that are missing are sent again, until
    ``outage`` seconds have passed without a single answer or with too few; nothing is tried again
    after them.

    Args:
        url: of ``chat/completions``.
        key: sent as a bearer token; None for none.
        timeout: seconds that an attempt may take in all, from the name's look-up to the last byte.
        retries: attempts after the first one.
        outage: seconds without an answer after which a call gives up.
        least: share of the requests that must be answered, 0 to 1.
        concurrency: requests at a time.
        first_wait: seconds before the second attempt.

    Raises:
        RecipeError: the environment names a proxy that cannot be used.
    """

    def __init__(
        self, url: str, key: str | None, *, timeout: float, retries: int, outage: float,
        least: float, concurrency: int, first_wait: float = 1.0,
    ):  # fmt: skip
        self._url, self._key = url, key
        self._timeout, self._retries, self._outage = timeout, retries, outage
        self._least, self._concurrency, self._first_wait = least, concurrency, first_wait
        self._answered_at, self._reason = 0.0, ""
        self._client: dict[str, Any] = {
            "trust_env": False, "proxy": _proxy(url), "verify": ssl.create_default_context(),
            "follow_redirects": False, "timeout": None,
        }  # fmt: skip

    def ask(self, bodies: Sequence[Callable[[], Json]]) -> list[Json | None]:
        """The reply to every request, None where there was none; a body is made when it is sent.

        Raises:
            RewardError: the service refused a request, or was down for longer than ``outage``.
        """
        self._answered_at, self._reason = time.monotonic(), ""
        replies: list[Json | None] = [None] * len(bodies)
        wait = self._first_wait
        while places := [place for place, reply in enumerate(replies) if reply is None]:
            for place, reply in zip(places, self._round([bodies[p] for p in places]), strict=True):
                replies[place] = reply
            missing = replies.count(None)
            if 0 < missing < len(bodies) and len(bodies) - missing >= self._least * len(bodies):
                _log.warning(
                    "%s of %s requests had no answer: %s", missing, len(bodies), self._reason
                )
                break
            if missing:
                self._pause(missing, len(bodies), min(wait, LONGEST_WAIT))
                wait *= 2
        return replies

    def _pause(self, missing: int, count: int, seconds: float) -> None:
        """Wait before all of the missing requests are sent again.

        Raises:
            RewardError: the outage would be longer than allowed.
        """
        if self._over(seconds):
            raise RewardError(
                f"{self._url} left {missing} of {count} requests without an answer for "
                f"{self._outage:g} s, the last one because of {self._reason}. See to the service, "
                "then resume the run, or raise the reward's `outage`"
            )
        _log.warning(
            "%s gives no answers (%s); trying again in %.0f s", self._url, self._reason, seconds
        )
        time.sleep(seconds)

    def _over(self, pause: float) -> bool:
        """Whether the outage is longer than allowed at the end of a pause."""
        return time.monotonic() + pause > self._answered_at + self._outage

    def _round(self, bodies: Sequence[Callable[[], Json]]) -> list[Json | None]:
        """Every request with its retries."""
        workers = min(self._concurrency, len(bodies))
        with _event_loop() as self._loop, ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(self._persist, body) for body in bodies]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _persist(self, body: Callable[[], Json]) -> Json | None:
        """One request with its retries; None where none was answered."""
        if self._reason and self._over(0):
            return None
        data = json.dumps(body()).encode()
        wait = self._first_wait
        for attempt in range(self._retries + 1):
            try:
                reply = self._post(data)
            except UnavailableError as error:
                self._reason = str(error)
                pause = min(max(wait, error.wait), LONGEST_WAIT)
            else:
                self._answered_at = time.monotonic()
                return reply
            if attempt == self._retries or self._over(pause):
                break
            time.sleep(pause)
            wait *= 2
        return None

    def _post(self, data: bytes) -> Json:
        """One attempt.

        Raises:
            UnavailableError: another attempt may succeed.
            RewardError: none will.
        """
        reply = asyncio.run_coroutine_threadsafe(self._exchange(data), self._loop).result()
        if 200 <= reply.status < 300:
            return self._json(reply)
        said = reply.body.decode("utf-8", "replace")
        raise RewardError(
            f"{self._url} refused a request with HTTP {reply.status}: "
            f"{self._hidden(said)[:300].strip() or 'it gave no reason'}. {_advice(reply.status)}"
        )

    async def _exchange(self, data: bytes) -> "_Reply":
        """The reply to one request; when the time is over the connection is closed.

        Raises:
            UnavailableError: another attempt may be met otherwise.
            RewardError: the address is none.
        """
        # What is packed could unfold to more than is read.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        reply = _Reply()
        try:
            async with (
                asyncio.timeout(self._timeout),
                httpx2.AsyncClient(**self._client) as client,
                client.stream("POST", self._url, content=data, headers=headers) as response,
            ):
                reply.status, reply.headers = response.status_code, response.headers
                if reply.passing:
                    wait = _seconds(reply.headers.get("Retry-After"))
                    raise UnavailableError(f"HTTP {reply.status}", wait)
                async for part in response.aiter_raw():
                    reply.body += part
                    if len(reply.body) > MAX_REPLY:
                        raise UnavailableError(f"a reply of more than {MAX_REPLY:,} bytes")
        except httpx2.InvalidURL as error:
            raise RewardError(f"{self._url} is no address: {error}; look at `base_url`") from None
        except (UnavailableError, TimeoutError, httpx2.TransportError, OSError) as error:
            if reply.status >= 300 and not reply.passing:
                return reply  # refused, whatever became of the reason
            if isinstance(error, UnavailableError):
                raise
            late = f"no whole reply in {self._timeout:g} s"
            reason = late if isinstance(error, TimeoutError) else self._hidden(_reason(error))
            raise UnavailableError(reason) from None
        return reply

    def _json(self, reply: "_Reply") -> Json:
        """The object in a reply; an empty one where there is none, which no answer is read from.

        Raises:
            UnavailableError: the reply's length was not said, and it may have been cut short.
        """
        try:
            found = json.loads(reply.body)
        except (ValueError, RecursionError):
            if not {"content-length", "transfer-encoding"} & reply.headers.keys():
                raise UnavailableError("a reply that ended before its JSON did") from None
            return {}
        return found if isinstance(found, dict) else {}

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


@dataclass
class _Reply:
    """What has come of a reply so far; status 0 before any of it has."""

    status: int = 0
    headers: Any = field(default_factory=dict)
    body: bytes = b""

    @property
    def passing(self) -> bool:
        """Whether another attempt may be met otherwise."""
        return self.status in _RETRIED or self.status >= 500


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread of its own: the caller's may have one that runs, as notebooks do."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="genrl-chat", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _proxy(url: str) -> httpx2.Proxy | None:
    """The proxy that the environment names for an address; none before this machine's own.

    Raises:
        RecipeError: it is no HTTP proxy.
    """
    address = urlsplit(url)
    host = address.hostname or ""
    named = getproxies().get(address.scheme)
    if named is None or host in _HERE or proxy_bypass(host):
        return None
    named = named if "://" in named else f"http://{named}"
    if urlsplit(named).scheme not in ("http", "https"):
        raise RecipeError(
            f"the environment names a proxy for {address.scheme}:// that is no http:// or https:// "
            f"one: set {address.scheme}_proxy to another, or list {host} in no_proxy"
        )
    return httpx2.Proxy(named)


def _reason(error: BaseException | None) -> str:
    """The innermost of an error's causes that says anything: the system's own word."""
    found, at = "", error
    while at is not None:
        said = os.strerror(at.errno) if isinstance(at, ConnectionError) and at.errno else f"{at}"
        found = f"{type(at).__name__}: {said}" if said or not found else found
        at = at.__cause__ or at.__context__
    return found


def _seconds(said: str | None) -> float:
    """What ``Retry-After`` says in seconds; 0 where it says nothing, or a date."""
    return float(said) if said is not None and said.isdecimal() else 0.0


def _advice(status: int) -> str:
    if status in (401, 403):
        return "Put the right key into the environment variable that `api_key_env` names"
    if status == 404:
        return "Look at `base_url`, which mostly ends in /v1, and at `model`"
    if 300 <= status < 400:
        return "Redirects are not followed: give the address that it points to as `base_url`"
    return "Look at `model`, `max_tokens` and `mode`: the service may not know what they ask for"
