"""A local sampler on the machines of a Ray cluster: Ray Data hands buckets to actors, this process keeps the journal.

The scheduling is Ray's; here stand the actor, the sampler that stands for it, and the pass that fills a journal. Rows
are those of the local sampler: the same buckets, the same seeds. `ray` is imported where it is used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from ..clients.base import Sample, Sampler, Sampling
from ..data.schema import Messages, canonical_json
from ..errors import BuildError, InputError
from .buckets import Ask, draw_bucket
from .diversity import RougeDiversity
from .items import PromptItem
from .journal import Journal
from .processes import Share
from .progress import progress
from .sampling import Begun, Windows


_WINDOWS = 64  # windows that are handed out together: the actors load their model once for 262,144 prompts


class RaySampler:
    """Stands for a local sampler that lives on a Ray cluster; see [`tuna_trl.clients.base.Sampler`].

    Args:
        make: makes the sampler, on the worker's machine; must be picklable, as a function of a module is, and the
            same sampler everywhere.
        name: the model id that goes into the rows.
        workers: actors, each with a model of its own.
        gpus, cpus: of each actor.
        address: of the cluster; default: RAY_ADDRESS, else a cluster of this machine that ends with the process.

    Raises:
        InputError: `ray` is not installed, or a number is out of range.
    """

    def __init__(
        self,
        make: Callable[[], Sampler],
        *,
        name: str,
        workers: int = 1,
        gpus: float = 0.0,
        cpus: float = 1.0,
        address: str | None = None,
    ) -> None:
        if workers < 1 or gpus < 0 or cpus < 0:
            raise InputError(f"RaySampler: workers={workers}, gpus={gpus}, cpus={cpus}: expected 1 and 0 or more.")
        self.make, self.name, self.workers = make, name, workers
        self._resources = {"num_gpus": gpus, "num_cpus": cpus}
        self._one: Any = None
        self._fingerprint: dict[str, Any] | None = None
        ray = _ray()
        if not ray.is_initialized():
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    def fingerprint(self) -> dict[str, Any]:
        """That of the sampler on the cluster, asked for once."""
        if self._fingerprint is None:
            self._fingerprint = self._ask("fingerprint")
        return self._fingerprint

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        """Tokens of each prompt, by a sampler on the cluster."""
        return self._ask("prompt_lengths", list(prompts))

    def sample(
        self, prompts: Sequence[Messages], n: int, sampling: Sampling, *, seeds: Sequence[Sequence[int]]
    ) -> list[list[Sample]]:
        """One call on one actor: for what [`fill`] leaves over (retries, buckets of another process that died)."""
        return self._ask("sample", list(prompts), n, sampling, seeds=[list(row) for row in seeds])

    def fill(
        self,
        items: Iterable[PromptItem],
        ask: Ask,
        journal: Journal,
        split: str,
        window_size: int,
        show_progress: bool = True,
    ) -> None:
        """Draw every bucket that the journal lacks, on all actors at once; each is journalled as it arrives.

        Raises:
            BuildError: an actor failed, or the cluster did.
        """
        windows = Windows(self, ask, journal, lambda drawn: None, lambda drawn: False, False, split, Share())
        source = iter(items)
        while due := list(self._due(source, windows, window_size)):
            open_buckets = {begun.key: begun for begun in due if begun.rest}
            self._let_go()  # its resources are wanted
            with progress(f"{self.name} on Ray", len(open_buckets), unit="buckets", show=show_progress) as advance:
                try:
                    for begun in due:
                        if not begun.rest:
                            _keep(begun, journal)
                    for key, record in self._run(list(open_buckets.values()), ask):
                        begun = open_buckets.pop(key)
                        begun.fill(record)
                        _keep(begun, journal)
                        advance(1)
                finally:
                    journal.release(list(open_buckets))

    def _due(self, source: Iterator[PromptItem], windows: Windows, size: int) -> Iterator[Begun]:
        """The buckets of the next windows that nobody has drawn or is drawing; passes windows without any."""
        seen = 0
        while seen < _WINDOWS and (items := list(islice(source, size))):
            missing, _ = windows.survey(items)
            seen += bool(missing)
            for bucket in missing:
                if windows.journal.claim([bucket.key]).state == "mine":
                    yield windows.begun(bucket, items)

    def _run(self, buckets: list[Begun], ask: Ask) -> Iterator[tuple[str, dict[str, Any]]]:
        """(key, record) of each bucket as it is done."""
        if not buckets:
            return
        import ray.data

        rows = [
            {"key": begun.key, "bucket": canonical_json([asdict(item) for item in begun.rest])} for begun in buckets
        ]
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=(self.make, ask),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(rows))),
            **self._resources,
        )
        try:
            for row in dataset.iter_rows():
                yield row["key"], json.loads(row["record"])
        except ray.exceptions.RayError as error:
            raise BuildError(f"Ray could not go on: {str(error).strip().splitlines()[-1]}") from error

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        ray = _ray()
        if self._one is None:
            self._one = ray.remote(_One).options(**self._resources).remote(self.make)
        try:
            return ray.get(self._one.call.remote(method, *args, **kwargs))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError | BuildError):
                raise error.cause from None
            raise BuildError(f"Ray could not go on: {str(error).strip().splitlines()[-1]}") from error
        except ray.exceptions.RayError as error:
            raise BuildError(f"Ray could not go on: {str(error).strip().splitlines()[-1]}") from error

    def _let_go(self) -> None:
        if self._one is not None:
            _ray().kill(self._one)
            self._one = None


class _One:
    """An actor that answers for the sampler."""

    def __init__(self, make: Callable[[], Sampler]) -> None:
        self.sampler = make()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.sampler, method)(*args, **kwargs)


class _Worker:
    """An actor of the pool: draws buckets."""

    def __init__(self, make: Callable[[], Sampler], ask: Ask) -> None:
        self.sampler, self.ask = make(), ask
        self.judge = RougeDiversity(ask.diversity.tokenizer if ask.diversity else "rouge")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        records = []
        for text in batch["bucket"]:
            items = [PromptItem(**item) for item in json.loads(text)]
            records.append(canonical_json(draw_bucket(items, self.sampler, self.ask, self.judge)))
        return {"key": list(batch["key"]), "record": records}


def _keep(begun: Begun, journal: Journal) -> None:
    journal.put(begun.key, {"prompts": begun.entries}, kind="samples", places=begun.keys)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("Ray's engine needs the package `ray`: pip install 'tuna-trl[ray]'.") from None
    return ray
