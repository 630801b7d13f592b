"""One retry loop for every client: an exchange over an SDK whose own retries are off, repeated after transport faults.

Serves the SDKs of OpenAI and Anthropic, which come from one generator and share their errors. Sleeps between tries;
touches nothing else. No exception that leaves here carries a request, a header or a key, not even as its context.
"""

from __future__ import annotations

import email.utils
import math
import random
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

from ..errors import BuildError, InputError
from .too_long import error_of, says_too_long


T = TypeVar("T")

MAX_TRIES = 6  # of one exchange; a repeated request may be billed twice, so this is all the help a server gets
MAX_RETRY_AFTER = 60.0  # seconds; the SDKs obey any `retry-after`, and 4.3 million seconds have been seen
_LONGEST_WORDS = 500  # characters of a server's words that an error quotes


class Fault(Exception):
    """A 200 whose body is no reply: torn, empty, HTML, `null`, an error, another shape. Repeated like a 500."""


class Refused(InputError):
    """The server says that the request or the key is wrong, so that repeating it cannot help.

    `too_long`: what is wrong is that the request does not fit the model or the server, which says nothing of others.
    """

    def __init__(self, message: str, status: int = 400, too_long: bool = False) -> None:
        super().__init__(message)
        self.status, self.too_long = status, too_long


def with_retries(
    attempt: Callable[[int], T],
    *,
    sdk: ModuleType,
    name: str,
    max_retries: int = MAX_TRIES - 1,
    ways_out: Mapping[int, str] | None = None,
    hide: Callable[[str], str] = str,
) -> T:
    """The result of `attempt(k)`, k = 0, 1, ..., repeated with growing pauses while transport fails.

    Repeated are connection errors and timeouts, 408, 409, 429, 5xx (529 too), and [`Fault`]; the server's
    `x-should-retry` goes before its status. A used-up quota is a 429 that waiting does not mend.

    Args:
        attempt: one exchange; it raises the SDK's errors or [`Fault`].
        sdk: the module `openai` or `anthropic`.
        name: the model id, for messages.
        ways_out: what the user can do, by status.
        hide: takes secrets out of a server's words, should it echo the request.

    Raises:
        Refused: (an InputError) statuses of `ways_out` and 422.
        BuildError: another final status, or `max_retries + 1` tries without a reply.
    """
    import httpx2

    fault = ""
    for tried in range(max_retries + 1):
        final, retry_after = None, None
        try:
            return attempt(tried)
        except sdk.APIStatusError as error:
            fault = _shown(f"HTTP {error.status_code}: {_words(error)}", hide)
            retry_after = retry_after_seconds(error.response.headers)
            if not _retryable(error):
                final = _final(name, error, fault, ways_out or {})
        except (sdk.APIConnectionError, httpx2.HTTPError, Fault) as error:
            fault = _shown(f"{type(error).__name__}: {error}", hide)
        # Raised out here, an error has no context: the SDK's own error holds the request with its headers.
        if final is not None:
            raise final
        if tried < max_retries:
            time.sleep(pause(tried, retry_after))
    raise BuildError(
        f"{name} gave no reply in {max_retries + 1} tries (last: {fault}). Everything received before is kept; run "
        "the same command again to go on."
    )


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, or `retry-after` as seconds or as an HTTP date."""
    for header, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[header]) / unit
        except (KeyError, ValueError):
            continue
        return seconds if seconds >= 0 else None  # NaN compares false
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, OverflowError):
        return None


def pause(tried: int, retry_after: float | None) -> float:
    """Seconds to wait after try number `tried` (from 0).

    Full jitter: uniform between 0 and 1, 2, 4, 8, ... s, at most [`MAX_RETRY_AFTER`]. The server's `retry-after` is
    waited out up to that cap, plus up to a second, so that clients do not return as one.
    """
    if retry_after is not None and math.isfinite(retry_after):
        return min(retry_after, MAX_RETRY_AFTER) + random.uniform(0.0, 1.0)
    return random.uniform(0.0, min(2.0**tried, MAX_RETRY_AFTER))


def _retryable(error: Any) -> bool:
    """Whether the same request may succeed later; the server's own word on it counts more than its status."""
    asked = error.response.headers.get("x-should-retry")
    if asked in ("true", "false"):
        return asked == "true"
    if _quota_is_used_up(error):
        return False
    return error.status_code in (408, 409, 429) or error.status_code >= 500


def _quota_is_used_up(error: Any) -> bool:
    inner = error_of(error.body)
    return "insufficient_quota" in (inner.get("code"), inner.get("type"))


def _shown(fault: str, hide: Callable[[str], str]) -> str:
    return hide(fault)[:_LONGEST_WORDS]  # cut last: half a key is not found


def _words(error: Any) -> str:
    """The server's own words in its error, without the rest of the body; the kind of the error if it has none."""
    body = error.body if isinstance(error.body, Mapping) else {}
    said = error_of(body).get("message") or body.get("error") or body.get("detail")
    return said if isinstance(said, str) and said else type(error).__name__


def _final(name: str, error: Any, fault: str, ways_out: Mapping[int, str]) -> Exception:
    status = error.status_code
    if status in ways_out or status == 422:
        too_long = status == 413 or (status in (400, 422) and says_too_long(error.body))
        return Refused(f"{name} refused the request ({fault}). {ways_out.get(status, '')}".rstrip(), status, too_long)
    return BuildError(f"{name} refused the request and asked not to be asked again ({fault}).")
