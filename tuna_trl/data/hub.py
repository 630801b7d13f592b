"""The ranked dataset on disk, in the layout of a Hub repository: `save_ranked` and `stream_ranked` write it,
`load_ranked` reads it back.

`data/<split>-0000i-of-0000n.parquet` holds the ranked rows (config `default`), `judgments/…` one row per judge reply
(config `judgments`), README.md the card with the `configs` and `dataset_info` that `datasets.load_dataset` goes by.
Touches the folder it is given; the network only for an id of the form `owner/name`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BuildError, InputError, SchemaError, did_you_mean
from .files import SUFFIXES, data_files, read_rows, rows_to_dataset
from .folder import replace_folder
from .hub_access import check_dataset_name
from .parquet import cast_columns, quiet_unless_terminal, write_config
from .ranked_source import CONFIG_FOLDERS, read_card
from .schema import check_row, judgment_features, ranked_features


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, DatasetInfo, Features

_FOLDERS = CONFIG_FOLDERS  # config -> folder
_OWNED = ("README.md", *_FOLDERS.values())  # what a new save replaces; all else in the folder is carried over
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def save_ranked(
    dataset: Dataset | DatasetDict,
    path: str | Path,
    *,
    judgments: Dataset | DatasetDict | None = None,
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Write ranked rows as a folder that can be pushed to the Hub as it is.

    The folder appears whole or not at all: it is written beside `path` and renamed, and an existing dataset is
    replaced only once the new one is complete. Equal rows give equal Parquet bytes. Files in `path` that are not ours
    stay, and so does what a person wrote in its card ([`tuna_trl.data.card_merge`]).

    Args:
        dataset: ranked rows (columns of [`ranked_features`]; further columns are kept behind them). A plain `Dataset`
            is written as its own split, `train` if it has none.
        path: the folder.
        judgments: one row per judge reply, with [`judgment_features`]; none at all writes no such config.
        card: keyword arguments of [`tuna_trl.data.card.ranked_card`], `license` and `extra`.

    Returns:
        the absolute path of the folder.

    Raises:
        SchemaError: a column is missing or a row is wrong; nothing is written.
        InputError: `path` is a file, the current folder, or holds a README.md or data that are not a dataset of ours.
        BuildError: the disk is full or not writable; what stood at `path` is left whole.
    """
    card = _checked_card(card)
    ranked = _as_splits(dataset, "dataset", ranked_features())
    configs = {"default": ranked}
    if isinstance(judgments, Mapping):
        judgments = {split: part for split, part in judgments.items() if len(part)}
    if judgments:  # load_dataset cannot load a split without rows
        configs["judgments"] = _as_splits(judgments, "judgments", judgment_features())
    for split, part in ranked.items():
        _check_rows(part, f"split {split!r}, ")
    _refuse_foreign(Path(path).expanduser())

    def fill(folder: Path) -> None:
        infos = {}
        for config, splits in configs.items():
            features = next(iter(splits.values())).features
            infos[config], _ = write_config(splits.items(), features, folder / _FOLDERS[config])
        _write_card(folder, infos, ranked, configs.get("judgments"), card, read_card(Path(path).expanduser()))

    return replace_folder(Path(path), fill, owned=_OWNED)


def stream_ranked(
    splits: Iterable[tuple[str, Iterable[Mapping[str, Any]]]],
    path: str | Path,
    *,
    card: Mapping[str, Any] | None = None,
) -> Path:
    """As [`save_ranked`], with rows that are made while they are written: never more than a few thousand in memory.

    Args:
        splits: name and rows of each split, complete rows as [`tuna_trl.data.schema.make_row`] makes them; each is
            read once, after `path` was checked.
        path, card: see [`save_ranked`]. Equal rows give the same bytes here as there.

    Returns:
        the absolute path of the folder.

    Raises:
        InputError: `path` is a file, the current folder, or holds a README.md or data that are not a dataset of ours.
        BuildError: the disk is full or not writable; what stood at `path` is left whole.
    """
    card = _checked_card(card)
    _refuse_foreign(Path(path).expanduser())

    def fill(folder: Path) -> None:
        info, written = write_config(splits, ranked_features(), folder / _FOLDERS["default"])
        _write_card(folder, {"default": info}, written, None, card, read_card(Path(path).expanduser()))

    return replace_folder(Path(path), fill, owned=_OWNED)


def load_ranked(
    path_or_id: str | Path, split: str | None = None, revision: str | None = None
) -> DatasetDict | Dataset:
    """Ranked rows from a folder or file on this machine, or from the Hub.

    Args:
        path_or_id: a folder written by [`save_ranked`]; a folder or file of your own rows (`.jsonl`, `.json`,
            `.parquet`; files named train, test or validation become those splits), each of which goes through
            [`tuna_trl.data.schema.normalise_row`]; or a Hub id `owner/name`.
        split: one split, also sliced as in `"train[:100]"`; all of them by default.
        revision: branch, tag or commit of a Hub dataset.

    Returns:
        a `DatasetDict`, or a `Dataset` when `split` is given, with the columns of [`ranked_features`].

    Raises:
        SchemaError: a row is wrong; the message names it.
        InputError: there is no such path or dataset, or no such split.
    """
    from datasets import DatasetDict

    path = Path(path_or_id).expanduser()
    if path.exists():
        if revision is not None:
            raise InputError(f"`revision` is {revision!r}, but {path_or_id} is a local path; only Hub ids have one.")
        if "\nconfigs:\n" in _front_matter(path):
            dataset = _normalised(_load(str(path.resolve())), str(path_or_id))
        else:
            dataset = DatasetDict({name: read_rows(files) for name, files in data_files(path).items()})
    else:
        dataset = _normalised(_load_from_hub(path_or_id, revision), str(path_or_id))
    return dataset if split is None else _one_split(dataset, split, str(path_or_id))


def _checked_card(card: Mapping[str, Any] | None) -> dict[str, Any]:
    card = dict(card or {})
    if unknown := set(card) - {"license", "extra"}:
        raise InputError(f"`card` has an unknown key {sorted(unknown)[0]!r}; known keys: 'license', 'extra'.")
    return card


def _write_card(
    folder: Path,
    infos: Mapping[str, DatasetInfo],
    ranked: Any,
    judgments: Any,
    card: Mapping[str, Any],
    old: str | None,
) -> None:
    from .card import updated_card

    merged = updated_card(
        old, ranked, infos=yaml_fields(infos), judgments=judgments, **card, owned=_FOLDERS, drop_missing=True
    )
    (folder / "README.md").write_text(merged.text, encoding="utf-8", newline="\n")


def _as_splits(dataset: Dataset | DatasetDict, argument: str, ours: Features) -> DatasetDict:
    """The dataset as splits whose columns begin with `ours`, in that order and of those types."""
    from datasets import Dataset, DatasetDict, Features

    if isinstance(dataset, Dataset):
        name = str(dataset.split or "train")  # "train[:10]" is still the training split
        dataset = {name if re.fullmatch(r"\w+", name) else "train": dataset}
    if not isinstance(dataset, Mapping) or not dataset or not all(isinstance(p, Dataset) for p in dataset.values()):
        found = type(dataset).__name__
        raise InputError(f"`{argument}` must be a Dataset or a DatasetDict with a split in it, got {found}.")
    result, extra = DatasetDict(), None
    for split, part in dataset.items():
        if not re.fullmatch(r"\w+", split) or split == "all":
            raise InputError(f"`{argument}` has a split named {split!r}; a split's name is a word other than 'all'.")
        if len(part) == 0:
            raise InputError(
                f"`{argument}`, split {split!r} has no rows; load_dataset cannot load that. Leave it out."
            )
        if missing := [column for column in ours if column not in part.column_names]:
            raise SchemaError(
                f"`{argument}`, split {split!r}: column {missing[0]!r} is missing "
                f"(columns: {', '.join(part.column_names) or 'none'}).{did_you_mean(missing[0], part.column_names)} "
                "Mend it by passing each of your own rows through tuna_trl.normalise_row."
            )
        more = {name: feature for name, feature in part.features.items() if name not in ours}
        if extra not in (None, more):
            raise SchemaError(
                f"`{argument}`: the splits {next(iter(result))!r} and {split!r} differ in their extra columns; all "
                "splits have the same ones. Mend it with dataset.remove_columns or dataset.cast."
            )
        extra = more
        result[split] = cast_columns(part, Features({**ours, **more}), f"`{argument}`, split {split!r}")
    return result


def _check_rows(dataset: Dataset, where: str) -> None:
    """Every row through [`check_row`], with the row named in the error."""
    from tqdm import tqdm

    columns = dataset.select_columns(["ranking_method", "status", "responses"])
    for i, row in enumerate(tqdm(columns, desc="checking rows", disable=None, delay=3.0)):
        check_row(row, f"{where}row {i}")


def _refuse_foreign(path: Path) -> None:
    """A README.md or data folder that some other hand made is not ours to replace."""
    if "\n- tuna-trl\n" in _front_matter(path):
        return
    if there := [name for name in _OWNED if (path / name).exists()]:
        raise InputError(
            f"{path} already holds {there[0]}, which is not part of a dataset written by tuna_trl; "
            "name an empty or new folder."
        )


def yaml_fields(infos: Mapping[str, DatasetInfo]) -> dict[str, Any]:
    """The card fields that tell `load_dataset` which files are which config, and with which features."""
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    configs = [
        {
            "config_name": config,
            "data_files": [
                {"split": split, "path": f"{_FOLDERS.get(config, config)}/{split}-*"} for split in info.splits
            ],
        }
        for config, info in infos.items()
    ]
    data = DatasetCardData()
    DatasetInfosDict(infos).to_dataset_card_data(data)
    return {"configs": configs, "dataset_info": data.to_dict()["dataset_info"]}


def _front_matter(folder: Path) -> str:
    """The YAML of the card of a folder; empty when it has none."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    return text.split("\n---", 1)[0] if text.startswith("---") else ""


def _load(name: str, revision: str | None = None) -> DatasetDict:
    """The default config through `datasets`, whose errors are told apart: the input's, or the world's."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        with quiet_unless_terminal():
            return load_dataset(name, revision=revision)
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError):
            raise BuildError(f"{name} could not be read into the cache of `datasets`: {cause}.") from error
        raise InputError(f"{name} holds a data file that cannot be read: {cause}.") from error
    except ValueError as error:  # no default config, files that match no split
        raise InputError(f"{name} could not be loaded: {error}") from error


def _load_from_hub(path_or_id: str | Path, revision: str | None) -> DatasetDict:
    """The default config of a Hub dataset; a missing path is told from a missing dataset as well as can be."""
    from datasets.exceptions import DatasetNotFoundError

    absent = f"{path_or_id} is no file or folder here (the current folder is {os.getcwd()})"
    if isinstance(path_or_id, Path) or not _HUB_ID.fullmatch(path_or_id) or path_or_id.endswith(SUFFIXES):
        raise InputError(f"{absent}; a Hub dataset is written owner/name.")
    check_dataset_name(path_or_id, "`path_or_id`")
    try:
        return _load(path_or_id, revision)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise InputError(f"{absent}, and as a Hub dataset it could not be loaded: {error}") from error


def _normalised(dataset: DatasetDict, name: str) -> DatasetDict:
    """Rows as they are where the columns are ours already (and the rows check out); otherwise each one normalised."""
    from datasets import DatasetDict

    ours = ranked_features()
    result = {}
    for split, part in dataset.items():
        if all(part.features.get(column) == feature for column, feature in ours.items()):
            _check_rows(part, f"{name}, split {split!r}, ")
            result[split] = part
        else:
            result[split] = rows_to_dataset((f"{name}, split {split!r}, row {i}", row) for i, row in enumerate(part))
    return DatasetDict(result)


def _one_split(dataset: DatasetDict, split: str, name: str) -> Dataset:
    """One split by name, or a slice or sum of splits in the syntax of `datasets`."""
    from datasets import ReadInstruction, concatenate_datasets

    if split in dataset:
        return dataset[split]
    try:
        parts = ReadInstruction.from_spec(split).to_absolute({s: len(part) for s, part in dataset.items()})
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"{name} has no split {split!r}; it has {', '.join(map(repr, dataset))}.{did_you_mean(split, dataset)}"
        ) from error
    return concatenate_datasets([dataset[p.splitname].select(range(p.from_, p.to)) for p in parts])
