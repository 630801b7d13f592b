"""What both batch APIs need of a transport: a call that is sent once only, and a file of results read line by line.

Serves the SDKs of Anthropic and OpenAI. No exception that leaves here carries a request, a header or a key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from ..errors import BuildError, InputError
from .retry import MAX_TRIES, Fault, Refused, with_retries


T = TypeVar("T")

_MAY_HAVE_ARRIVED = (408, 409)  # of the statuses from 400 to 499; every other one says that nothing was taken


class NotTaken(BuildError):
    """The provider did certainly not take the request (429, no connection): it may be sent again."""


class BatchRefused(Refused):
    """A batch was refused as a whole, after it was taken: none of its requests was asked, none is billed."""


class Torn(BuildError):
    """The stream of results broke off; what came before is good, and the file can be fetched again."""


@dataclass(frozen=True)
class Caller:
    """How one judge's provider is called. `hide` takes secrets out of a server's words."""

    sdk: ModuleType
    name: str
    ways_out: Mapping[int, str]
    hide: Callable[[str], str] = str
    max_retries: int = MAX_TRIES - 1

    def read(self, call: Callable[[], T]) -> T:
        """The result of a call that changes nothing, repeated while transport fails ([`with_retries`])."""
        return self._with_retries(call, self.max_retries)

    def once(self, call: Callable[[], T]) -> T:
        """The result of a call that must not be made twice.

        Raises:
            Refused: (an InputError) the request or the key is wrong.
            NotTaken: it certainly did not arrive.
            BuildError: it may have arrived, its answer was lost.
        """
        import httpx2

        taken = True

        def attempt() -> T:
            nonlocal taken
            try:
                return call()
            except self.sdk.APIStatusError as error:
                taken = not (400 <= error.status_code < 500 and error.status_code not in _MAY_HAVE_ARRIVED)
                raise
            except self.sdk.APIConnectionError as error:
                taken = not isinstance(error.__cause__, (httpx2.ConnectError, httpx2.ConnectTimeout))
                raise

        try:
            return self._with_retries(attempt, 0)
        except BuildError as error:
            if taken:
                raise
            said = str(error)
        raise NotTaken(said)

    def records(self, open_stream: Callable[[], Any]) -> Iterator[dict[str, Any]]:
        """The JSON objects of a file with one a line, as they arrive.

        Args:
            open_stream: gives the SDK's context manager of a streamed response.

        Raises:
            Refused: there is no such file (any more), or the key may not read it.
            Torn: the file broke off, or is no such file.
        """
        import httpx2

        def opened() -> tuple[Any, Any]:
            manager = open_stream()
            try:
                return manager, manager.__enter__()
            except self.sdk.APIError:
                raise
            except (self.sdk.APIError.__base__, AttributeError, TypeError, ValueError) as error:
                # Anthropic's SDK looks up where the results are first, and takes any 200 for a batch.
                raise Fault(f"the results could not be found ({type(error).__name__})") from None

        manager, response = self.read(opened)
        fault = ""
        try:
            for line in lines(response.iter_bytes()):
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise Fault("a line is no object")
                yield record
        except (self.sdk.APIError, httpx2.HTTPError, httpx2.StreamError, ValueError, RecursionError, Fault) as error:
            fault = self.hide(f"{type(error).__name__}: {error}")[:200]
        finally:
            manager.__exit__(None, None, None)
        if fault:  # raised out here, the error has no context that could hold the request
            raise Torn(f"The results of {self.name} broke off ({fault}).")

    def _with_retries(self, call: Callable[[], T], max_retries: int) -> T:
        return with_retries(
            lambda tried: call(),
            sdk=self.sdk,
            name=self.name,
            max_retries=max_retries,
            ways_out=self.ways_out,
            hide=self.hide,
        )


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream of bytes, cut at line feeds alone: JSON may hold U+2028 and its like unescaped."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n") if b"\n" in chunk else (rest + chunk,)
        yield from (line for line in whole if line.strip())
    if rest.strip():
        yield rest


def limit(name: str, value: int | None, most: int) -> int:
    """A limit of a batch: the provider's, or a lower one of the user's."""
    if value is not None and value < 1:
        raise InputError(f"batch: `{name}` is {value}, expected 1 or more.")
    return most if value is None else min(value, most)


def decoded(text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Fault: it is none.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Fault(f"the body is no JSON ({type(error).__name__})") from None
    if not isinstance(record, dict):
        raise Fault("the body is no object")
    return record
