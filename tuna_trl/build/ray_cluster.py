"""Something that lives on the machines of a Ray cluster: made in actors there, asked from here.

The scheduling is Ray's; here stand the actor that answers and the pool that works off rows. `ray` is imported where
it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import BuildError, InputError


WINDOWS = 64  # windows that are handed out together: the actors load their model once for 262,144 rows


class OnRay:
    """Stands for what `make` makes, on a cluster.

    Args:
        make: makes the sampler or scorer, on the worker's machine; must be picklable, as a function of a module is,
            and make the same everywhere.
        name: the model id that goes into the rows.
        workers: actors, each with a model of its own.
        gpus, cpus: of each actor.
        address: of the cluster; default: RAY_ADDRESS, else a cluster of this machine that ends with the process.

    Raises:
        InputError: `ray` is not installed, or a number is out of range.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        name: str,
        workers: int = 1,
        gpus: float = 0.0,
        cpus: float = 1.0,
        address: str | None = None,
    ) -> None:
        if workers < 1 or gpus < 0 or cpus < 0:
            own = type(self).__name__
            raise InputError(f"{own}: workers={workers}, gpus={gpus}, cpus={cpus}: expected 1 and 0 or more.")
        self.make, self.name, self.workers = make, name, workers
        self._resources: dict[str, Any] = {"num_gpus": gpus, "num_cpus": cpus}
        self._one: Any = None
        self._fingerprint: dict[str, Any] | None = None
        ray = _ray()
        if not ray.is_initialized():
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    def fingerprint(self) -> dict[str, Any]:
        """That of what lives on the cluster, asked for once."""
        if self._fingerprint is None:
            self._fingerprint = self.ask("fingerprint")
        return self._fingerprint

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One call on one actor.

        Raises:
            InputError, BuildError: what the method raised; BuildError also where the cluster failed.
        """
        ray = _ray()
        if self._one is None:
            self._one = ray.remote(_One).options(**self._resources).remote(self.make)
        try:
            return ray.get(self._one.call.remote(method, *args, **kwargs))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError | BuildError):
                raise error.cause from None
            raise _failed(error) from error
        except ray.exceptions.RayError as error:
            raise _failed(error) from error

    def let_go(self) -> None:
        """End the actor of [`ask`]: its resources are wanted."""
        if self._one is not None:
            _ray().kill(self._one)
            self._one = None

    def map(self, rows: list[dict[str, Any]], worker: type, arguments: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
        """What the workers make of the rows, in the order in which it is done.

        Args:
            worker: a class whose instances, made once an actor with `arguments`, turn a batch of Ray Data (one row)
                into another.

        Raises:
            BuildError: an actor failed, or the cluster did.
        """
        if not rows:
            return
        _ray()  # says how to get it
        import ray
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            worker,
            fn_constructor_args=arguments,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(rows))),
            **self._resources,
        )
        try:
            yield from dataset.iter_rows()
        except ray.exceptions.RayError as error:
            raise _failed(error) from error


class _One:
    """An actor that answers for what it has made."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.made = make()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.made, method)(*args, **kwargs)


def _failed(error: Exception) -> BuildError:
    return BuildError(f"Ray could not go on: {str(error).strip().splitlines()[-1]}")


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("Ray's engine needs the package `ray`: pip install 'tuna-trl[ray]'.") from None
    return ray
