"""`push_to_hub`: a ranked dataset with its card, build config and report, to the Hub in one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.hub import save_ranked
from ..data.parquet import write_config
from ..data.push import BUILD_CONFIG, ConfigFiles, Payload, Pushed, folder_configs, push_payload
from ..data.ranked_source import CONFIG_FOLDERS, RankedSource, read_card
from ..errors import InputError


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def push_to_hub(
    dataset: str | Path | Dataset | DatasetDict,
    repo_id: str,
    *,
    judgments: Dataset | DatasetDict | None = None,
    configs: Mapping[str, Dataset | DatasetDict] | None = None,
    private: bool = True,
    license: str | None = None,
    revision: str | None = None,
    append: bool = False,
    extra: Mapping[str, Any] | None = None,
    build_config: str | Mapping[str, Any] | None = None,
    report: bool = True,
) -> Pushed:
    """Push a ranked dataset to the Hub: data of all configs, card, build config and report, in one commit.

    The card that is there is merged with, not replaced: its text, its edited sections, its licence, tags and further
    configs stay ([`tuna_trl.data.card_merge`]). The token is the one that `huggingface_hub` finds (`hf auth login`
    or HF_TOKEN). Pushing the same rows twice makes no second commit.

    Args:
        dataset: a folder of [`tuna_trl.save_ranked`], or ranked rows.
        repo_id: `owner/name`; created if it is not there.
        judgments: with rows, one row per judge reply.
        configs: further views by name, for example `{"preference": tuna_trl.to_preference(ranked)}`.
        private: how a new repo is created. A push that is private to a repo that is public is refused.
        license: a Hub licence id; never guessed. None leaves what stands in the card.
        revision: a branch, created if it is not there; the main one by default.
        append: add the rows as new shards behind those that are there, which are neither changed nor sent again. The
            card's and the report's figures are those of all rows, for which the old ones are downloaded once.
        extra: more YAML fields of the card (`language`, `pretty_name`, `source_datasets`, …).
        build_config: what `tuna_trl.yaml` in the repo says; by default that file of the folder, else what all rows
            share of their provenance.
        report: whether `report.html` goes along.

    Returns:
        a [`Pushed`] with the commit's id (`revision`) and the line that loads exactly these rows (`load_line`).

    Raises:
        InputError: no such folder or token, a public repo for a private push, columns that do not fit those that are
            appended to, rows that are there already, a card whose YAML cannot be read, or what else the Hub refuses.
        BuildError: the Hub cannot be reached, fails, or was changed by others at every try.
    """
    with tempfile.TemporaryDirectory(prefix="tuna_trl-") as temporary:
        if isinstance(dataset, str | Path):
            folder = Path(dataset).expanduser()
            if judgments is not None:
                raise InputError("`judgments` goes with rows; a folder has its own.")
            if not folder.is_dir():
                raise InputError(f"{folder} is no folder; push one that tuna_trl.save_ranked wrote, or ranked rows.")
        else:
            folder = save_ranked(dataset, Path(temporary) / "dataset", judgments=judgments)
        payload = Payload(
            configs=folder_configs(folder) | _views(configs or {}, Path(temporary)),
            card=read_card(folder),
            license=license,
            extra=dict(extra or {}),
            build_config=_build_config(build_config, folder),
            report=_report if report else None,
        )
        return push_payload(payload, repo_id, private=private, revision=revision, append=append)


def _views(configs: Mapping[str, Any], temporary: Path) -> dict[str, ConfigFiles]:
    """Further configs, written as shards."""
    result = {}
    for name, dataset in configs.items():
        if not name.isidentifier() or name in CONFIG_FOLDERS or name in CONFIG_FOLDERS.values():
            raise InputError(
                f"`configs` has the name {name!r}; name a view in one word other than 'default' and 'data'."
            )
        splits = dict(dataset) if isinstance(dataset, Mapping) else {"train": dataset}
        features = next(iter(splits.values())).features
        info, written = write_config(splits.items(), features, temporary / name)
        result[name] = ConfigFiles(info, {split: rows.files for split, rows in written.items()})
    return result


def _build_config(given: str | Mapping[str, Any] | None, folder: Path) -> str | None:
    import yaml

    if isinstance(given, Mapping):
        return yaml.safe_dump(dict(given), sort_keys=False, allow_unicode=True, width=120)
    file = folder / BUILD_CONFIG
    return given if given is not None or not file.is_file() else file.read_text(encoding="utf-8")


def _report(source: RankedSource) -> bytes:
    from ..report.dataset import report_page

    return report_page(source).encode("utf-8", "replace")
