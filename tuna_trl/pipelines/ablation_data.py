"""The rows of a sweep: ranked datasets loaded and named by their content, cut down or re-ranked as an arm asks.

Every arm is given the same rows in the same order; what differs between arms is here or in its options.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.fitting import TRAINED_STATUSES
from ..data.schema import (
    ROW_COLUMNS,
    Messages,
    as_messages,
    canonical_json,
    competition_ranks,
    dense_to_competition,
    make_row,
)
from ..errors import InputError, SchemaError
from .ablation_config import Arm, Sweep


if TYPE_CHECKING:
    from datasets import Dataset

_ANSWERS = ("completion", "response", "output", "answer")


def load_rows(name: str, split: str | None, default: str) -> Dataset:
    """One split of a ranked dataset: the one named, the only one, or `default`.

    Raises:
        InputError: no such dataset, several splits and none of them called `default`.
    """
    from ..data.hub import load_ranked

    if split is not None:
        return load_ranked(name, split)
    splits = load_ranked(name)
    if len(splits) == 1:
        return next(iter(splits.values()))
    if default not in splits:
        raise InputError(f"{name} has the splits {', '.join(splits)}: say which by `{default}_split`.")
    return splits[default]


def load_heldout(sweep: Sweep) -> Dataset:
    """The rows that rank accuracy is measured on.

    Raises:
        InputError: see [`load_rows`], or none of them has two ranked responses.
    """
    rows = load_rows(sweep.heldout, sweep.heldout_split, "test")
    if not any(len({r["rank"] for r in row["responses"] if r["rank"] is not None}) > 1 for row in rows):
        raise InputError(f"`heldout` {sweep.heldout}: no row has two responses of different ranks.")
    return rows


def load_prompts(sweep: Sweep, heldout: Dataset) -> list[dict[str, Any]]:
    """`prompt` (messages) and `reference` of what the arms answer: the file's rows, or those of `heldout`.

    Raises:
        InputError: no rows, or a row without a prompt.
    """
    if sweep.prompts is None:
        return [{"prompt": row["prompt"], "reference": row["reference"]} for row in heldout]
    from ..data.row_streams import stream_rows

    found = []
    for rows in stream_rows(sweep.prompts, "`prompts`").values():
        for i, row in enumerate(rows):
            if "prompt" not in row:
                raise InputError(f"`prompts` {sweep.prompts}, row {i}: there is no `prompt`.")
            found.append({"prompt": as_messages(row["prompt"]), "reference": row.get("reference")})
    if not found:
        raise InputError(f"`prompts` {sweep.prompts}: no rows.")
    return found


def refuse_overlap(sweep: Sweep, name: str, rows: Dataset, measured: Iterable[Messages]) -> None:
    """A prompt that is trained on and measured says nothing about others.

    Raises:
        InputError: there is one, and the file does not allow it.
    """
    if sweep.allow_overlap:
        return
    held = {canonical_json(prompt) for prompt in measured}
    shared = sum(canonical_json(prompt) in held for prompt in rows["prompt"])
    if shared:
        raise InputError(
            f"{shared} of {len(rows)} prompts of {name} are measured on too (`heldout` or `prompts`): figures on them "
            "say how well the arms remember. Give disjoint prompts, or `allow_overlap: true`."
        )


def rows_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """What a training or a measurement depends on in ranked rows or prompts, as one digest."""
    summary = hashlib.sha256()
    for row in rows:
        responses = [(r["content"], r["rank"], r["score"], r["index"]) for r in row.get("responses") or ()]
        kept = [row["prompt"], row.get("reference"), row.get("status"), responses]
        summary.update(canonical_json(kept).encode("utf-8", "surrogatepass") + b"\n")
    return summary.hexdigest()


def model_identity(name: str) -> Any:
    """A model's name; of a local folder also its files, so that another model in the same place is another run."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".md")
    return [name, [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]]


def stage_rows(arm: Arm, stage: int, sources: Mapping[str, Dataset], mixed_in: Dataset | None) -> Dataset:
    """The ranked rows of one stage of an arm, cut down as its data options say.

    Args:
        sources: the datasets by name.
        mixed_in: rows of `mix_sft`, put behind; no option cuts them down.
    """
    from datasets import concatenate_datasets

    parts = [sources[name].select_columns(list(ROW_COLUMNS)) for name in arm.source.stages[stage]]
    limit = arm.data.get("train_rows")
    if limit is not None:
        parts = [part.select(range(min(limit, len(part)))) for part in parts]
    rows = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    drawn, best = arm.data.get("num_responses"), arm.data.get("max_responses")
    if drawn is not None or best is not None:
        rows = as_dataset([fewer_responses(row, drawn, best) for row in rows])
    return rows if mixed_in is None else concatenate_datasets([rows, mixed_in])


def fewer_responses(row: Mapping[str, Any], drawn: int | None, best: int | None) -> dict[str, Any]:
    """A row with its first `drawn` responses in the order of sampling, then the best `best` of those; ranks among
    what is left are counted anew."""
    kept = sorted(row["responses"], key=lambda response: response["index"])[:drawn]
    ranked = sorted((r for r in kept if r["rank"] is not None), key=lambda r: (r["rank"], r["index"]))[:best]
    ranks = dense_to_competition([response["rank"] for response in ranked])
    unranked = [r for r in kept if r["rank"] is None] if best is None else []
    responses = [{**response, "rank": rank} for response, rank in zip(ranked, ranks, strict=True)] + unranked
    left = {response["index"] for response in responses}
    for k, response in enumerate(responses):
        if response["duplicate_of"] not in left:
            responses[k] = {**response, "duplicate_of": None}
    return {**row, "responses": responses, "num_responses": len(responses)}


def reranked(rows: Dataset, judge: Any) -> Dataset:
    """Rows ranked anew by a reward model, whose scores replace those that are there; statuses that do not train stay.

    Raises:
        InputError: the judge could score no response of any row.
    """
    from ..clients.base import JudgeRequest

    result, scored = [], 0
    for row in rows:
        texts = tuple(response["content"] for response in row["responses"])
        if row["status"] not in TRAINED_STATUSES or not texts:
            result.append(dict(row))
            continue
        request = JudgeRequest(row["prompt"], texts, row["reference"])
        verdict = judge.parse(request, judge.ask([request])[0])
        scores = verdict.scores if verdict.status == "ok" else (None,) * len(texts)
        known = [score for score in scores if score is not None]
        ranks = iter(competition_ranks(known))
        scored += bool(known)
        responses = [
            {**response, "score": score, "rank": None if score is None else next(ranks)}
            for response, score in zip(row["responses"], scores, strict=True)
        ]
        responses.sort(key=lambda r: (r["rank"] is None, r["rank"] or 0, r["index"]))
        result.append({**row, "responses": responses, "ranking_method": "reward_model", "ranker": judge.name})
    if not scored:
        raise InputError(f"{judge.name} could score none of {len(rows)} rows.")
    return as_dataset(result)


def load_sft(name: str) -> Dataset:
    """Instruction data as ranked rows of one response, which train the likelihood term and make no pair.

    Accepted: ranked rows (their best response), and rows with `messages`, or `prompt` or `instruction` (and `input`)
    beside `completion`, `response`, `output` or `answer`.

    Raises:
        SchemaError: a row is none of these.
        InputError: no rows.
    """
    from ..data.row_streams import stream_rows

    splits = stream_rows(name, "`mix_sft`")
    rows = splits.get("train") or next(iter(splits.values()))
    found = [_sft_row(row, f"`mix_sft` {name}, row {i}") for i, row in enumerate(rows)]
    if not found:
        raise InputError(f"`mix_sft` {name}: no rows.")
    return as_dataset(found)


def _sft_row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    responses = row.get("responses")
    answer: Any = None
    if responses and isinstance(responses[0], Mapping):
        ranked = [response for response in responses if response.get("rank") is not None]
        answer = min(ranked, key=lambda response: response["rank"])["content"] if ranked else None
    prompt = row.get("prompt")
    if prompt is None and row.get("instruction") is not None:
        prompt = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
    if answer is None and row.get("messages") and row["messages"][-1]["role"] == "assistant":
        prompt, answer = row["messages"][:-1], row["messages"][-1]["content"]
    answer = answer or next((row[column] for column in _ANSWERS if row.get(column)), None)
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        answer = answer[-1]["content"]
    if not prompt or not isinstance(answer, str) or not answer:
        raise SchemaError(
            f"{where} has the columns {', '.join(map(repr, row))}; expected `messages`, or `prompt` or `instruction` "
            f"beside one of {', '.join(_ANSWERS)}."
        )
    response = {"content": answer, "rank": 1, "index": 0, "source": "dataset"}
    return make_row(as_messages(prompt), [response], ranking_method="import", ranker=None)


def as_dataset(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Full ranked rows as a `Dataset` with explicit features."""
    from datasets import Dataset

    from ..data.schema import ranked_features

    return Dataset.from_list([{column: row[column] for column in ROW_COLUMNS} for row in rows], ranked_features())
