"""A client of services that speak OpenAI's chat completions, over the standard library's HTTP.

It sends JSON and reads JSON, follows no redirect (the key would travel along), reads no more than
``MAX_REPLY`` bytes and shows the key to nobody but the service.
"""

import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any, NoReturn
from urllib.parse import urlsplit

from genrl_core import RewardError

MAX_REPLY = 2**20
"""Bytes of a reply that are read; a longer one is no answer."""
LONGEST_WAIT = 30.0
"""Seconds between two attempts at the most."""
_CHUNK = 2**16
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
        timeout: seconds that an attempt may take in all.
        retries: attempts after the first one.
        outage: seconds without an answer after which a call gives up.
        least: share of the requests that must be answered, 0 to 1.
        concurrency: requests at a time.
        first_wait: seconds before the second attempt.
    """

    def __init__(
        self, url: str, key: str | None, *, timeout: float, retries: int, outage: float,
        least: float, concurrency: int, first_wait: float = 1.0,
    ):  # fmt: skip
        self._url, self._key = url, key
        self._timeout, self._retries, self._outage = timeout, retries, outage
        self._least, self._concurrency, self._first_wait = least, concurrency, first_wait
        self._answered_at, self._reason = 0.0, ""
        here = urlsplit(url).hostname in _HERE
        # A proxy that the environment names cannot reach this machine's own services.
        handlers = [_NoRedirect, urllib.request.ProxyHandler({})] if here else [_NoRedirect]
        self._opener = urllib.request.build_opener(*handlers)

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
        with ThreadPoolExecutor(min(self._concurrency, len(bodies))) as pool:
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
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, data, headers, method="POST")  # noqa: S310
        deadline = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return _json(_read(response, deadline))
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error, deadline)
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UnavailableError(self._hidden(f"{type(error).__name__}: {reason}")) from None

    def _refused(self, error: urllib.error.HTTPError, deadline: float) -> NoReturn:
        """What a status other than 200 means.

        Raises:
            UnavailableError: another attempt may be met otherwise.
            RewardError: none will.
        """
        if error.code in _RETRIED or error.code >= 500:
            raise UnavailableError(
                f"HTTP {error.code}", _seconds(error.headers.get("Retry-After"))
            ) from None
        try:
            said = _read(error, deadline).decode("utf-8", "replace")
        except (OSError, HTTPException, UnavailableError):
            said = ""
        raise RewardError(
            f"{self._url} refused a request with HTTP {error.code}: "
            f"{self._hidden(said)[:300].strip() or 'it gave no reason'}. {_advice(error.code)}"
        ) from None

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None: the redirect is an error, with its status."""


def _read(response: Any, deadline: float) -> bytes:
    """All of a reply.

    Raises:
        UnavailableError: it is too long, or does not end in time.
    """
    parts, size = [], 0
    while part := response.read1(_CHUNK):
        size += len(part)
        if size > MAX_REPLY:
            raise UnavailableError(f"a reply of more than {MAX_REPLY:,} bytes")
        if time.monotonic() > deadline:
            raise UnavailableError("a reply that did not end in time")
        parts.append(part)
    return b"".join(parts)


def _json(data: bytes) -> Json:
    """The object in a reply; an empty one where there is none, which no answer can be read from."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


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
