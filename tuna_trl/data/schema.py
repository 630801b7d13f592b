"""The ranked row: one instruction, N responses, best first. Its `Features`, how a row is made, how it is checked.

A leaf: knows nothing of models, tokenizers or builders. `datasets` is imported where it is used, so that reading a row
costs no second. The columns are described in docs/data_format.md; competition ranks share a rank on ties (1, 2, 2, 4).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from ..errors import SchemaError, did_you_mean


if TYPE_CHECKING:
    from datasets import Features

Messages = list[dict[str, str]]

RANKING_METHODS = ("teacher_logprob", "judge", "reward_model", "reference", "human", "import")
STATUSES = ("ok", "partial", "refused", "malformed", "inconsistent", "truncated", "over_budget", "failed")
SOURCES = ("teacher", "student", "judge", "dataset")
RESPONSE_FIELDS = {
    "index": "int32",  # sampling order, so that storing best first loses nothing
    "rank": "int32",  # 1 = best, ties share a rank, null = not ranked
    "score": "float64",  # higher is better, comparable only within one row
    "model": "string",
    "content": "string",
    "logprob": "float64",  # sum over the scored tokens, nats
    "num_tokens": "int32",
    "finish_reason": "string",  # stop | length | null
    "duplicate_of": "int32",  # `index` of the response with the same text
    "source": "string",
}
ROW_COLUMNS = (
    "prompt_id", "prompt", "reference", "responses", "ranking_method", "ranker", "status", "agreement_w",
    "agreement_tau", "num_responses", "num_ties", "score_gap", "source", "provenance",
)  # fmt: skip


def ranked_features() -> Features:
    """The explicit `Features` of a ranked dataset; passed on every write, so that no column is ever typed `null`."""
    from datasets import Features, Json, List, Value

    return Features(
        {
            "prompt_id": Value("string"),
            "prompt": List({"role": Value("string"), "content": Value("string")}),
            "reference": Value("string"),
            "responses": List({name: Value(dtype) for name, dtype in RESPONSE_FIELDS.items()}),
            "ranking_method": Value("string"),
            "ranker": Value("string"),
            "status": Value("string"),
            "agreement_w": Value("float64"),
            "agreement_tau": Value("float64"),
            "num_responses": Value("int32"),
            "num_ties": Value("int32"),
            "score_gap": Value("float64"),
            "source": Value("string"),
            "provenance": Json(),
        }
    )


def judgment_features() -> Features:
    """The `Features` of the `judgments` config: one row per judge reply, from which every rank can be recomputed."""
    from datasets import Features, Json, List, Value

    return Features(
        {
            "prompt_id": Value("string"),
            "occurrence": Value("int32"),
            "repeat": Value("int32"),
            "attempt": Value("int32"),
            "judge": Value("string"),
            "permutation": List(Value("int32")),  # permutation[shown position] = response index
            "labels": List(Value("string")),  # labels[shown position]
            "scores": List(Value("float64")),  # by shown position; null where the verdict has none
            "status": Value("string"),
            "raw": Value("string"),
            "stop_reason": Value("string"),
            "request_id": Value("string"),
            "usage": Json(),
            "cost": Value("float64"),
        }
    )


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and UTF-8 text kept: the text that every hash in this package is taken of.

    >>> canonical_json({"b": 1, "a": "é"})
    '{"a":"é","b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """sha256 hex digest of [`canonical_json`] of `value`."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def prompt_id(prompt: Messages) -> str:
    """sha256 of the canonical JSON of a conversational prompt."""
    return digest(prompt)


def as_messages(prompt: str | Sequence[Mapping[str, str]]) -> Messages:
    """A prompt as messages: a string becomes one user turn.

    >>> as_messages("Hi")
    [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or not prompt:
        raise SchemaError(f"`prompt` must be a non-empty string or list of messages, got {_shown(prompt)}.")
    messages = []
    for message in prompt:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise SchemaError(f"`prompt`: each message needs `role` and `content`, got {_shown(message)}.")
        if not isinstance(message["role"], str) or not isinstance(message["content"], str):
            raise SchemaError(f"`prompt`: `role` and `content` of a message must be strings, got {_shown(message)}.")
        messages.append({"role": message["role"], "content": message["content"]})
    return messages


def competition_ranks(scores: Sequence[float], tie_delta: float = 0.0) -> list[int]:
    """Ranks of `scores`, 1 = highest; from the top, a score within `tie_delta` of its group's first shares its rank.

    Args:
        scores: one finite number per response, higher is better.
        tie_delta: the largest distance (in units of the score) from the first of a group that is still a tie.

    >>> competition_ranks([0.5, 2.0, 2.0, 1.0])
    [4, 1, 1, 3]
    >>> competition_ranks([3.0, 2.9, 2.8, 1.0], tie_delta=0.15)
    [1, 1, 3, 4]
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    ranks = [0] * len(scores)
    first = None
    for place, i in enumerate(order, start=1):
        if first is None or scores[first] - scores[i] > tie_delta:
            first, rank = i, place
        ranks[i] = rank
    return ranks


def dense_to_competition(ranks: Sequence[int]) -> list[int]:
    """Any ascending ranks (1 = best) as competition ranks: `[1, 2, 2, 3] -> [1, 2, 2, 4]`."""
    return competition_ranks([-rank for rank in ranks])


def mark_duplicates(texts: Sequence[str]) -> list[int | None]:
    """For each text the index of the first equal text, None for the first itself; white space is folded.

    >>> mark_duplicates(["a b", "c", " a  b "])
    [None, None, 0]
    """
    seen: dict[str, int] = {}
    result = []
    for i, text in enumerate(texts):
        key = " ".join(text.split())
        result.append(seen.get(key))
        seen.setdefault(key, i)
    return result


def make_row(
    prompt: str | Sequence[Mapping[str, str]],
    responses: Iterable[Mapping[str, Any]],
    *,
    ranking_method: str,
    ranker: str | None,
    status: str = "ok",
    reference: str | None = None,
    agreement_w: float | None = None,
    agreement_tau: float | None = None,
    source: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One ranked row in full: responses sorted best first (unranked last), the flat statistics filled in.

    Args:
        prompt: a string or messages.
        responses: dicts with at least `content`; `rank` (or None) decides the order, `index` breaks ties.

    Returns:
        a dict with the columns of [`ranked_features`].

    Raises:
        SchemaError: what [`check_row`] finds.
    """
    full = []
    for i, response in enumerate(responses):
        if unknown := set(response) - set(RESPONSE_FIELDS):
            name = sorted(unknown)[0]
            raise SchemaError(
                f"`responses[{i}]` has an unknown field {name!r}.{did_you_mean(name, RESPONSE_FIELDS)} "
                f"Known fields: {', '.join(RESPONSE_FIELDS)}."
            )
        full.append({name: response.get(name) for name in RESPONSE_FIELDS} | {"index": response.get("index", i)})
    full.sort(key=lambda r: (r["rank"] is None, r["rank"] or 0, r["index"]))
    ranked = [r for r in full if r["rank"] is not None]
    scores = [r["score"] for r in ranked if r["score"] is not None]
    messages = as_messages(prompt)
    row = {
        "prompt_id": prompt_id(messages),
        "prompt": messages,
        "reference": reference,
        "responses": full,
        "ranking_method": ranking_method,
        "ranker": ranker,
        "status": status,
        "agreement_w": agreement_w,
        "agreement_tau": agreement_tau,
        "num_responses": len(full),
        "num_ties": len(ranked) - len({r["rank"] for r in ranked}),
        "score_gap": max(scores) - min(scores) if scores else None,
        "source": source,
        "provenance": dict(provenance or {}),
    }
    check_row(row)
    return row


def normalise_row(row: Mapping[str, Any], where: str = "row 0") -> dict[str, Any]:
    """A user's own row as a full ranked row.

    Accepted: `prompt` (string or messages) with `responses` as dicts that have `content` and `rank` or `score`, or as
    strings beside a parallel list `ranks` or `scores`. Extra columns are dropped; nothing in `row` is changed.

    Args:
        row: the row.
        where: how errors name the row ("row 17").

    Raises:
        SchemaError: naming the row, the column, what was found and what mends it.
    """
    for column in ("prompt", "responses"):
        if column not in row:
            others = ", ".join(repr(c) for c in row) or "none"
            raise SchemaError(
                f"{where}: column {column!r} is missing (columns: {others}).{did_you_mean(column, row)} "
                f"Mend it with dataset.rename_column(<yours>, {column!r}); a row needs `prompt` and `responses`."
            )
    responses = row["responses"]
    if isinstance(responses, str) or not isinstance(responses, Sequence):
        raise SchemaError(f"{where}: column 'responses' must be a list of strings or dicts, got {_shown(responses)}.")
    if not responses:
        mend = "Mend it with dataset.filter(lambda row: len(row['responses']) > 0)."
        raise SchemaError(f"{where}: column 'responses' is an empty list. {mend}")
    try:
        messages = as_messages(row["prompt"])
    except SchemaError as error:
        raise SchemaError(f"{where}: {error}") from None
    kinds = {"reference": str, "ranker": str, "source": str, "provenance": Mapping}
    for column, kind in kinds.items():
        if not isinstance(row.get(column), kind | None):
            expected = "a string" if kind is str else "an object"
            raise SchemaError(f"{where}: column {column!r} is {_shown(row[column])}, expected {expected} or null.")
    known = {name: row[name] for name in ("reference", "agreement_w", "agreement_tau", "source") if name in row}
    try:
        return make_row(
            messages,
            _ranked_responses(row, where),
            ranking_method=row.get("ranking_method") or "import",
            ranker=row.get("ranker"),
            status=row.get("status") or "ok",
            provenance=row.get("provenance"),
            **known,
        )
    except SchemaError as error:
        message = str(error).removeprefix("row: ")
        raise SchemaError(message if message.startswith(where) else f"{where}: {message}") from None


def check_row(row: Mapping[str, Any], where: str = "row") -> None:
    """Raise a [`SchemaError`] that names the first thing wrong in a full ranked row."""
    for column, known in (("ranking_method", RANKING_METHODS), ("status", STATUSES)):
        if row[column] not in known:
            raise SchemaError(f"{where}: column {column!r} is {row[column]!r}, expected one of {', '.join(known)}.")
    for k, response in enumerate(row["responses"]):
        _check_response(response, len(row["responses"]), f"{where}: column 'responses[{k}]")
        if response["content"] is None:
            raise SchemaError(f"{where}: column 'responses[{k}].content' is null, expected a string.")
    ranks = [response["rank"] for response in row["responses"]]
    expected = sorted(dense_to_competition([rank for rank in ranks if rank is not None]))
    if ranks != expected + [None] * (len(ranks) - len(expected)):
        raise SchemaError(
            f"{where}: column 'responses.rank' is {ranks}, which is no competition ranking stored best first: that "
            f"would read {expected} (1 = best, ties share a rank, the next rank is skipped), then the unranked. "
            "Mend it with tuna_trl.normalise_row(row)."
        )


def _ranked_responses(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The responses of a user's row as dicts with `content` and competition `rank`."""
    responses = row["responses"]
    if all(isinstance(r, str) for r in responses):
        given = {name: row[name] for name in ("scores", "ranks") if row.get(name) is not None}
        if not given and len(responses) > 1 and row.get("status") in (None, "ok"):
            raise SchemaError(
                f"{where}: column 'responses' holds strings, so a parallel list column 'scores' or 'ranks' is needed. "
                "Mend it with dataset.add_column('scores', [[...], ...])."
            )
        full = [{"content": r, "index": i, "source": "dataset"} for i, r in enumerate(responses)]
        for name, values in given.items():
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise SchemaError(f"{where}: column {name!r} must be a list beside 'responses', got {_shown(values)}.")
            if len(values) != len(responses):
                raise SchemaError(
                    f"{where}: column {name!r} has {len(values)} entries for {len(responses)} responses; "
                    "each response needs exactly one (null if there is none)."
                )
            for response, value in zip(full, values, strict=True):
                response[name[:-1]] = value
    elif all(isinstance(r, Mapping) for r in responses):
        full = []
        for i, response in enumerate(responses):
            if "content" not in response:
                fields = f"(fields: {', '.join(response)}).{did_you_mean('content', response)}"
                raise SchemaError(f"{where}: column 'responses[{i}]' has no field 'content' {fields}")
            kept = {name: response.get(name) for name in RESPONSE_FIELDS}
            kept["index"] = i if kept["index"] is None else kept["index"]
            kept["source"] = kept["source"] or "dataset"
            full.append(kept)
    else:
        kinds = ", ".join(sorted({type(r).__name__ for r in responses}))
        raise SchemaError(f"{where}: column 'responses' holds {kinds}; use strings only, or dicts with 'content'.")
    return _fill_ranks(full, row.get("status"), where)


def _fill_ranks(responses: list[dict[str, Any]], status: str | None, where: str) -> list[dict[str, Any]]:
    """Ranks from scores where no rank is given, and any ascending ranks turned into competition ranks.

    A row whose status says that its ranking did not come off keeps what it has: its scores are no ranking.
    """
    for k, response in enumerate(responses):
        _check_response(response, len(responses), f"{where}: column 'responses[{k}]")
    ranked = [r for r in responses if r.get("rank") is not None]
    scored = [r for r in responses if r.get("score") is not None]
    if ranked:
        for response, rank in zip(ranked, dense_to_competition([r["rank"] for r in ranked]), strict=True):
            response["rank"] = rank
    elif scored and status in (None, "ok", "partial"):
        for response, rank in zip(scored, competition_ranks([r["score"] for r in scored]), strict=True):
            response["rank"] = rank
    elif status in (None, "ok"):
        if len(responses) > 1:
            raise SchemaError(
                f"{where}: column 'responses' has neither 'rank' nor 'score' in any response, so nothing orders them. "
                "Mend it by giving each response a 'score' (higher is better) or a 'rank' (1 = best)."
            )
        responses[0]["rank"] = 1
    return responses


def _check_response(response: Mapping[str, Any], responses: int, column: str) -> None:
    """Raise a [`SchemaError`] if a field of one of so many `responses` is not what [`RESPONSE_FIELDS`] says."""
    for name, dtype in RESPONSE_FIELDS.items():
        value = response.get(name)
        kind = {"int32": Real if name == "rank" else Integral, "float64": Real, "string": str}[dtype]
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise SchemaError(f"{column}.{name}' is {_shown(value)}, expected {dtype} or null.")
    rank, score = response.get("rank"), response.get("score")
    if rank is not None and (rank % 1 != 0 or rank < 1):  # NaN % 1 is NaN
        raise SchemaError(f"{column}.rank' is {rank!r}; ranks are integers, 1 = best, null = not ranked.")
    if rank is not None and rank > responses:
        raise SchemaError(
            f"{column}.rank' is {rank}, but there are only {responses} responses: a rank for a response that "
            "isn't there. Mend it with tuna_trl.data.schema.dense_to_competition(ranks)."
        )
    if score is not None and not math.isfinite(score):
        raise SchemaError(
            f"{column}.score' is {score!r}; a score is a finite number, or null for a response that could not be "
            "scored (then its rank is null too)."
        )


def _shown(value: Any) -> str:
    """A value as an error shows it: its type and at most 60 characters."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
