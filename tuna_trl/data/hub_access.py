"""Whether the Hub answers, asked once and not retried: the libraries that download from it try for 24 s each time.

Touches the network only to ask, and only for a name that is nothing on this machine; downloads nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import InputError


TIMEOUT = 3.0  # seconds for the connection; a Hub that is slow to answer counts as there
# `huggingface_hub` raises the errors of requests, httpx or httpx2, by its version; its offline mode a ConnectionError
_UNREACHED = {"ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError"}
_DATA_ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".gz", ".txt", ".yaml")


def hub_answers() -> bool:
    """Whether anything answers at `HF_ENDPOINT`; False in the offline mode of `HF_HUB_OFFLINE`."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:
        return not _UNREACHED & {kind.__name__ for kind in type(error).__mro__}
    return True


def is_path_only(name: str) -> bool:
    """Whether a name can be nothing but a path: no Hub id begins or ends so, or has two slashes.

    >>> [is_path_only(name) for name in ("./x", "runs/a/b", "rows.jsonl", "Qwen/Qwen3-0.6B", "gpt2")]
    [True, True, True, False, False]
    """
    return name.endswith(_DATA_ENDINGS) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name)


def reach_options(name: str, argument: str = "model", revision: str | None = None) -> dict[str, Any]:
    """What `from_pretrained` is to be told about the network: nothing where the Hub answers or a folder is there, to
    keep to its cache where the Hub does not answer.

    Args:
        name: a folder or a Hub id.
        argument: how the error names where it came from.
        revision: branch, tag or commit of the Hub id.

    Raises:
        InputError: a path that is not there; an id, and the Hub does not answer and the cache does not hold it.
    """
    if Path(name).expanduser().exists():
        return {}
    if is_path_only(name):
        raise InputError(
            f"`{argument}` {name!r} could not be loaded: there is no such folder. Give a Hub id, a folder with "
            "config.json, or 'embedded' for the model that comes with the demo."
        )
    from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache

    if is_offline_mode() or hub_answers():  # offline mode looks into the cache alone, at once
        return {}
    files = ("config.json", "adapter_config.json", "tokenizer_config.json")
    if any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files):
        return {"local_files_only": True}
    raise InputError(
        f"`{argument}` {name!r} could not be loaded: there is no such folder here, the cache does not hold it, and "
        f"{constants.ENDPOINT} does not answer. Check the name and the network, or give a folder with config.json, or "
        "'embedded' for the model that comes with the demo."
    )


def check_dataset_name(name: str, argument: str) -> None:
    """Refuse a dataset that cannot be had, before anything retries.

    Args:
        name: a path or a Hub id.
        argument: how the error names where it came from ("--data").

    Raises:
        InputError: a path that is not there; an id, and the Hub does not answer and the cache has no such dataset.
    """
    if Path(name).expanduser().exists():
        return
    if is_path_only(name):
        raise InputError(f"{argument} {name}: there is no such file or folder.")
    from datasets import config
    from huggingface_hub import is_offline_mode

    if is_offline_mode() or Path(config.HF_DATASETS_CACHE, name.replace("/", "___")).is_dir() or hub_answers():
        return
    raise InputError(
        f"{argument} {name!r} could not be loaded: there is no such file or folder here, and {config.HF_ENDPOINT} "
        "does not answer, so it cannot be looked up on the Hub. Check the name and the network."
    )
