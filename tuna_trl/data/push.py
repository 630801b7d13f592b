"""Ranked datasets to the Hub: every push is one commit that holds data, card, build config and report together.

A push replaces the configs that it brings and leaves the others; `append` adds shards behind those that are there and
rewrites none. The commit names its parent, so that of two pushes at once the second starts again from what the first
left. Talks to the Hub through `huggingface_hub`, which finds the token; none is ever printed or written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BuildError, InputError
from .card import CardRows, updated_card
from .card_merge import Merged, merge_card, split_card
from .hub import yaml_fields
from .parquet import quiet_unless_terminal
from .ranked_source import CONFIG_FOLDERS, RankedSource, read_card, shard_files, shard_rows


if TYPE_CHECKING:
    from datasets import DatasetInfo
    from huggingface_hub import HfApi

BUILD_CONFIG, REPORT = "tuna_trl.yaml", "report.html"
_TRIES = 6  # of a commit whose parent is no longer the last one
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."


@dataclass(frozen=True)
class ConfigFiles:
    """One config as it lies on this machine: its description, and its Parquet shards by split."""

    info: DatasetInfo
    shards: Mapping[str, list[Path]]


@dataclass(frozen=True)
class Pushed:
    """What a push left on the Hub.

    Args:
        repo_id: where it is.
        revision: the commit, which pins exactly these rows.
        url: of the dataset at that commit.
        kept: sections of the card that a person had edited and that therefore stand as they were.
        notes: sentences about what else was left as it is.
    """

    repo_id: str
    revision: str
    url: str
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def load_line(self) -> str:
        """Python that loads exactly these rows."""
        return f'load_dataset("{self.repo_id}", revision="{self.revision}")'


@dataclass
class Payload:
    """What is to be pushed."""

    configs: Mapping[str, ConfigFiles]
    card: str | None = None
    license: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    build_config: str | None = None  # the text of tuna_trl.yaml; by default what all rows share of their provenance
    report: Callable[[RankedSource], bytes] | None = None  # given all rows that are there after the push


def folder_configs(folder: Path) -> dict[str, ConfigFiles]:
    """The configs of a folder that [`tuna_trl.save_ranked`] wrote.

    Raises:
        InputError: the folder holds no such dataset.
    """
    card = read_card(folder)
    infos = _infos(card)
    result = {}
    for config, name in CONFIG_FOLDERS.items():
        shards = shard_files(folder / name)
        if shards and config in infos:
            result[config] = ConfigFiles(infos[config], shards)
    if "default" not in result:
        raise InputError(
            f"{folder} is no ranked dataset as tuna_trl writes it (a README.md with `dataset_info`, and "
            "data/train-00000-of-00001.parquet). Write it with tuna_trl.save_ranked(dataset, folder)."
        )
    return result


def push_payload(
    payload: Payload, repo_id: str, *, private: bool = True, revision: str | None = None, append: bool = False
) -> Pushed:
    """Push to a dataset repo, which is created if it is not there; see [`tuna_trl.push_to_hub`] for the arguments."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not _HUB_ID.fullmatch(repo_id):
        raise InputError(f"`repo_id` is {repo_id!r}; a dataset on the Hub is written owner/name.")
    if "default" not in payload.configs and not append:
        raise InputError("Nothing to push: there is no config 'default' with ranked rows.")
    api = HfApi()
    with _hub_errors(repo_id), quiet_unless_terminal("huggingface_hub.utils"):
        _open_repo(api, repo_id, private, revision)
        for _ in range(_TRIES):
            plan = _Plan(api, payload, repo_id, revision, append)
            try:
                return plan.commit()
            except HfHubHTTPError as error:
                if error.response is None or error.response.status_code != 412:
                    raise
    raise BuildError(
        f"{repo_id} was changed by others during each of {_TRIES} attempts to push to it. Nothing was overwritten; "
        "run the same command again."
    )


class _Plan:
    """One attempt: what the repo holds now, and the commit that follows from it."""

    def __init__(self, api: HfApi, payload: Payload, repo_id: str, revision: str | None, append: bool) -> None:
        self.api, self.payload, self.repo_id, self.branch = api, payload, repo_id, revision or "main"
        self.head = api.dataset_info(repo_id, revision=self.branch).sha
        tree = api.list_repo_tree(repo_id, repo_type="dataset", revision=self.head, recursive=True)
        self.there = {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}
        self.card = self._download("README.md").read_text("utf-8") if "README.md" in self.there else None
        self.append = append and any(self._remote_shards(config) for config in payload.configs)
        self.old_infos = _infos(self.card) if self.append else {}

    def commit(self) -> Pushed:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        files: dict[str, Path] = {}
        for config, content in self.payload.configs.items():
            files |= self._placed(config, content)
        source, infos = self._after(), self._infos_after()
        rows = CardRows(source.splits)
        merged, notes = self._merged_card(rows, source, infos)
        texts = {"README.md": merged.text.encode(), BUILD_CONFIG: self._build_config(rows).encode()}
        if self.payload.report is not None:
            texts[REPORT] = self.payload.report(source)
        operations = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
        operations += [CommitOperationAdd(name, text) for name, text in texts.items()]
        if not self.append:
            stale = [
                n for config in self.payload.configs for files_ in self._remote_shards(config).values() for n in files_
            ]
            operations += [CommitOperationDelete(name) for name in stale if name not in files]
        done = self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=f"{'Append' if self.append else 'Write'} {self._new_rows():,} ranked rows",
            repo_type="dataset",
            revision=self.branch,
            parent_commit=self.head,
        )
        url = f"{self.api.endpoint}/datasets/{self.repo_id}/tree/{done.oid}"
        return Pushed(self.repo_id, done.oid, url, merged.kept, tuple(notes))

    def _new_rows(self) -> int:
        new = self.payload.configs.get("default")
        return sum(split.num_examples for split in new.info.splits.values()) if new else 0

    def _placed(self, config: str, content: ConfigFiles) -> dict[str, Path]:
        """Where each shard goes; appended ones get the numbers behind those that are there."""
        folder = CONFIG_FOLDERS.get(config, config)
        if not self.append:
            return {f"{folder}/{file.name}": file for files in content.shards.values() for file in files}
        self._check_appended(config, content)
        result, remote = {}, self._remote_shards(config)
        for split, files in content.shards.items():
            numbers = [int(re.findall(r"-(\d{5})-of-", name)[0]) for name in remote.get(split, [])]
            first = max(numbers, default=-1) + 1
            for i, file in enumerate(files):
                result[f"{folder}/{split}-{first + i:05d}-of-{first + len(files):05d}.parquet"] = file
        return result

    def _check_appended(self, config: str, content: ConfigFiles) -> None:
        remote = self._remote_shards(config)
        if not remote:
            return
        old = self.old_infos.get(config)
        if old is None or old.features is None:
            raise InputError(
                f"{self.repo_id} has shards of config {config!r}, but its card has no `dataset_info` of it, so that "
                "their columns are not known. Push the whole dataset without append."
            )
        if old.features != content.info.features:
            ours, theirs = content.info.features, old.features
            wrong = next(name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name))
            raise InputError(
                f"Config {config!r} cannot be appended to {self.repo_id}: column {wrong!r} is {theirs.get(wrong)} "
                f"there and {ours.get(wrong)} here. All shards of a config have the same columns."
            )
        known = {e.lfs.sha256 for names in remote.values() for n in names if (e := self.there[n]).lfs is not None}
        for file in (file for files in content.shards.values() for file in files):
            with open(file, "rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() in known:
                    raise InputError(
                        f"{file.name}: exactly these rows are in {self.repo_id} already; nothing was pushed."
                    )

    def _after(self) -> RankedSource:
        """All rows that are there after the push; those that are appended to come from the Hub, through its cache."""
        configs: dict[str, dict[str, Iterable[dict[str, Any]]]] = {}
        for config in CONFIG_FOLDERS:
            by_split: dict[str, list[Path]] = {}
            content = self.payload.configs.get(config)
            if self.append:
                for split, names in self._remote_shards(config).items():
                    by_split[split] = [self._download(name) for name in names]
            for split, files in (content.shards if content else {}).items():
                by_split.setdefault(split, []).extend(files)
            configs[config] = {split: shard_rows(files) for split, files in by_split.items()}
        return RankedSource(self.repo_id, configs["default"], configs["judgments"])

    def _infos_after(self) -> dict[str, DatasetInfo]:
        result = {}
        for config, content in self.payload.configs.items():
            old = self.old_infos.get(config) if self._remote_shards(config) else None
            result[config] = content.info if old is None else _added(old, content.info)
        return result

    def _merged_card(
        self, rows: CardRows, source: RankedSource, infos: Mapping[str, DatasetInfo]
    ) -> tuple[Merged, list[str]]:
        payload, notes = self.payload, []
        new = updated_card(
            payload.card,
            rows,
            infos=yaml_fields(infos),
            judgments=source.judgments or None,
            license=payload.license or (split_card(self.card)[0].get("license") if self.card else None),
            extra=payload.extra,
            name=self.repo_id,
        )
        given = {*payload.extra, *(["license"] if payload.license else [])}
        merged = merge_card(self.card, new.text, given=given)
        if merged.left_out:
            notes.append(
                "The card on the Hub has text of its own between the sections, which stays; that of the folder's "
                "README.md was left out."
            )
        stale = [c for c in ("judgments",) if not self.append and c not in payload.configs and self._remote_shards(c)]
        if stale:
            notes.append(
                "The judgments on the Hub are those of an earlier push: this one brought none. Delete them there if "
                "they are not of these rows."
            )
        return merged, notes

    def _build_config(self, rows: CardRows) -> str:
        """What was given, or what all rows share of how they were made."""
        import yaml

        if self.payload.build_config is not None:
            return self.payload.build_config
        text = yaml.safe_dump(rows.summary.provenance, sort_keys=True, allow_unicode=True, width=120)
        return "# What all rows share of how they were made (the column `provenance`).\n" + text

    def _remote_shards(self, config: str) -> dict[str, list[str]]:
        """The shards of a config in the repo by split, in order."""
        pattern = re.compile(re.escape(CONFIG_FOLDERS.get(config, config)) + r"/(\w+)-\d{5}-of-\d{5}\.parquet")
        found: dict[str, list[str]] = {}
        for name in sorted(self.there):
            if match := pattern.fullmatch(name):
                found.setdefault(match[1], []).append(name)
        return found

    def _download(self, name: str) -> Path:
        return Path(self.api.hf_hub_download(self.repo_id, name, repo_type="dataset", revision=self.head))


def _open_repo(api: HfApi, repo_id: str, private: bool, revision: str | None) -> None:
    """The repo and the branch are there afterwards; a public repo gets nothing that was meant to be private."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        known = api.dataset_info(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    else:
        if private and not known.private:
            raise InputError(
                f"{repo_id} exists and is public, and this push is private. Push with private=False (on the command "
                "line --public), or make the repo private in its settings; nothing was pushed."
            )
    if revision not in (None, "main"):
        api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)


def _infos(card: str | None) -> dict[str, DatasetInfo]:
    """The description of each config that a card holds."""
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    fields = split_card(card)[0] if card else {}
    if not fields.get("dataset_info"):
        return {}
    return dict(DatasetInfosDict.from_dataset_card_data(DatasetCardData(dataset_info=fields["dataset_info"])))


def _added(old: DatasetInfo, new: DatasetInfo) -> DatasetInfo:
    """A config's description after shards were appended to it."""
    from datasets import DatasetInfo, SplitDict, SplitInfo

    splits = SplitDict()
    for name in dict.fromkeys([*(old.splits or {}), *new.splits]):
        both = [info.splits[name] for info in (old, new) if info.splits and name in info.splits]
        splits[name] = SplitInfo(
            name, num_bytes=sum(s.num_bytes or 0 for s in both), num_examples=sum(s.num_examples or 0 for s in both)
        )
    return DatasetInfo(
        features=new.features,
        splits=splits,
        download_size=(old.download_size or 0) + new.download_size,
        dataset_size=(old.dataset_size or 0) + new.dataset_size,
    )


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """The Hub's errors as ours: what the user can mend, and what not. Messages of the Hub bear no token."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError:
        raise InputError(f"{repo_id}: no token. {_LOGIN}") from None
    except OfflineModeIsEnabled as error:
        raise InputError(f"{repo_id}: the Hub cannot be reached with HF_HUB_OFFLINE=1.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason = str(error.server_message or error).strip().splitlines()[0]
        if status in (401, 403):
            raise InputError(f"{repo_id}: the Hub refuses ({status}: {reason}). {_LOGIN}") from None
        if 400 <= status < 500 and status not in (408, 412, 429):
            raise InputError(f"{repo_id}: the Hub refuses ({status}: {reason}).") from None
        raise BuildError(f"{repo_id}: the Hub answered {status}: {reason}. Run the same command again.") from error
    except HfHubHTTPError.__bases__[0] as error:  # of the HTTP library that this version is built on
        raise BuildError(f"{repo_id}: the Hub could not be reached: {error}. Run the same command again.") from error
    except ValueError as error:
        if "Invalid metadata in README.md" in str(error):
            raise InputError(f"{repo_id}: the Hub refuses the card: {error}") from error
        raise
