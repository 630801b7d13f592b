"""What both batch APIs need of a transport: a call that is sent once only, a list of batches read page by page, and a
file of results read line by line.

Serves the SDKs of Anthropic and OpenAI. No exception that leaves here carries a request, a header or a key.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

from ..errors import BuildError, InputError
from .base import BatchState, JudgeRequest, Usage
from .retry import MAX_TRIES, Fault, Refused, with_retries


T = TypeVar("T")

_PAGE = 100  # batches of a list that are asked for at once
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


class JudgeBatches(ABC):
    """Batches of one judge: what [`tuna_trl.clients.base.BatchTransport`] asks for and both APIs do alike.

    Args:
        call: how the provider is called.
        judge: the judge whose questions and prices these are.
        most: (requests, bytes) that the API takes in one batch.
        share: of its price that a request pays in a batch.
        max_requests, max_bytes: limits of one batch below the API's own.
    """

    after: str  # the option of a list that names the last batch of the page before

    def __init__(
        self,
        call: Caller,
        judge: Any,
        most: tuple[int, int],
        *,
        share: float,
        max_requests: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.max_requests = limit("max_requests", max_requests, most[0])
        self.max_bytes = limit("max_bytes", max_bytes, most[1])
        self._call, self._judge, self._share = call, judge, share

    @abstractmethod
    def _listed(self, **options: Any) -> str:
        """The body of a page of the list of batches, newest first."""

    @abstractmethod
    def _retrieved(self, batch_id: str) -> str:
        """The body that describes a batch."""

    @abstractmethod
    def _described(self, record: Mapping[str, Any]) -> BatchState:
        """A batch as the provider describes it; raises whatever comes of it where it is none."""

    def list(self, *, since: float) -> list[BatchState]:
        """The batches of the key's workspace or project that were created after `since`, newest first."""
        states: list[BatchState] = []
        options: dict[str, Any] = {}
        while True:
            page, more = self._call.read(partial(self._page, options))
            states += page
            if not page or not more or states[-1].created < since:
                return [state for state in states if state.created >= since]
            options = {self.after: states[-1].id}

    def state(self, batch_id: str) -> BatchState:
        return self._batch(self._record(batch_id))

    def worst_case_cost(self, request: JudgeRequest) -> float | None:
        worst = self._judge.worst_case_cost(request)
        return None if worst is None else worst * self._share

    def cost(self, usage: Usage) -> float | None:
        cost = self._judge.cost(usage)
        return None if cost is None else cost * self._share

    def _page(self, options: Mapping[str, Any]) -> tuple[Sequence[BatchState], bool]:
        page = decoded(self._listed(limit=_PAGE, **options))
        if not isinstance(page.get("data"), list):
            raise Fault("the body is no list")
        return [self._batch(record) for record in page["data"]], bool(page.get("has_more"))

    def _record(self, batch_id: str) -> dict[str, Any]:
        def retrieve() -> dict[str, Any]:
            record = decoded(self._retrieved(batch_id))
            self._batch(record)
            return record

        return self._call.read(retrieve)

    def _batch(self, record: Any) -> BatchState:
        try:
            return self._described(record)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Fault("the body is no batch") from None


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
