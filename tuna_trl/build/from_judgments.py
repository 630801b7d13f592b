"""Ranks computed again from the judge's stored replies: other ties, fewer repeats, no request and no money.

Each reply is read anew from its raw text where the protocol is known, and goes through the builder's own `rank_case`;
with unchanged settings the rows come out as they were. Reads what it is given, and changes none of it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..clients.base import JudgeRequest, Reply, Sample, Usage, Verdict
from ..clients.protocols import protocol_by_name
from ..data.schema import digest, make_row, mark_duplicates, ranked_features
from ..errors import InputError, SchemaError
from .bias import row_key
from .buckets import Drawn
from .case import Case, rank_case
from .items import PromptItem
from .judging import Answer, Question, read
from .progress import progress


if TYPE_CHECKING:
    from datasets import DatasetDict

_WORDING = {"templates", "template", "system"}  # of a fingerprint: changes what is asked, not how a reply is read
_SWITCHES = {
    "contextual": ("judge_answer", "show_reference"),
    "pairwise": ("show_reference",),
    "pointwise": ("scale", "show_reference"),
}


class Reader(Protocol):
    """What can read a reply: a judge, or its protocol."""

    def fingerprint(self) -> dict[str, Any]: ...

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict: ...


def rank_from_judgments(
    ranked: Any,
    judgments: Any,
    *,
    tie_delta: float | None = None,
    repeats: Collection[int] | None = None,
    judge: Reader | None = None,
    show_progress: bool = True,
) -> DatasetDict:
    """Compute every score, rank, agreement and status of judged rows again.

    Args:
        ranked: rows that a judge has ranked, a Dataset, a list, or splits of them.
        judgments: the replies, in the same splits (config `judgments`); those of rows that are not in `ranked` are not
            looked at.
        tie_delta: scores within this distance of their group's first tie; None: as each row was ranked.
        repeats: only these repeats (0, 1, ...); None: all.
        judge: what reads the replies, a judge or a protocol; default: the protocol that each row's provenance names.
            Where there is none (a reward model, a protocol of one's own) the stored scores stand.
        show_progress: progress on stderr.

    Returns:
        the same rows in the same order, with the columns of [`tuna_trl.data.schema.ranked_features`].

    Raises:
        SchemaError: a row was not ranked by a judge, has no judgments, or a judgment does not fit its row; the message
            names the row and the column.
        InputError: an argument is out of range, or `judge` reads otherwise than the judge that the rows had.
    """
    from datasets import Dataset, DatasetDict

    splits = dict(ranked) if isinstance(ranked, Mapping) else {"train": ranked}
    replies = dict(judgments) if isinstance(judgments, Mapping) else {"train": judgments}
    result, features = DatasetDict(), ranked_features()
    for split, rows in splits.items():
        found = ranked_again(rows, replies.get(split, []), split, tie_delta=tie_delta, repeats=repeats, judge=judge)
        total = len(rows) if hasattr(rows, "__len__") else None
        again = []
        with progress(f"Ranking {split} by its judgments", total, unit="rows", show=show_progress) as advance:
            for row in found:
                again.append(row)
                advance(1)
        columns = {name: [row[name] for row in again] for name in features}
        result[split] = Dataset.from_dict(columns, features=features)
    return result


def ranked_again(
    rows: Iterable[Mapping[str, Any]],
    judgments: Iterable[Mapping[str, Any]],
    split: str = "train",
    *,
    tie_delta: float | None = None,
    repeats: Collection[int] | None = None,
    judge: Reader | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows of one split, one at a time; see [`rank_from_judgments`]. Of the judgments two columns are in memory,
    the rest is read row by row where `judgments` is a Dataset."""
    if tie_delta is not None and not 0 <= tie_delta < math.inf:  # NaN is in no range
        raise InputError(f"`tie_delta` is {tie_delta}, expected a number from 0 on.")
    if repeats is not None and not repeats:
        raise InputError("`repeats` names no repeat, so there is nothing to rank by; None takes all.")
    index = _Judgments(judgments, split)
    readers = _Readers(judge)
    for i, row in enumerate(rows):
        where = f"split {split!r}, row {i}"
        _check_judged(row, where)
        provenance = dict(row["provenance"])
        delta = float(provenance.get("tie_delta") or 0.0) if tie_delta is None else tie_delta
        case, indices = _case(row, index, readers, where, repeats)
        if tie_delta is not None:
            provenance["tie_delta"] = tie_delta
        if repeats is not None:
            provenance |= {"repeats": len(set(repeats)), "repeats_used": sorted(set(repeats))}
        yield _row(row, case, indices, delta, provenance)


def _check_judged(row: Mapping[str, Any], where: str) -> None:
    if row["ranking_method"] not in ("judge", "reference", "reward_model"):
        raise SchemaError(
            f"{where}: column 'ranking_method' is {row['ranking_method']!r}; only rows that a judge has ranked have "
            "judgments to rank them by."
        )
    if not isinstance(row["provenance"], Mapping) or "judge" not in row["provenance"]:
        raise SchemaError(f"{where}: column 'provenance' names no judge, so its judgments cannot be read again.")


class _Judgments:
    """The judgments of one split, by row; each is fetched when it is asked for."""

    def __init__(self, judgments: Iterable[Mapping[str, Any]], split: str) -> None:
        self._rows: Any = judgments if hasattr(judgments, "__getitem__") else list(judgments)
        self._split = split
        self._places: dict[tuple[str, int], list[int]] = defaultdict(list)
        if hasattr(self._rows, "column_names"):  # a Dataset: two columns, not a row of texts each
            columns: Any = self._rows
            keys: Iterable[tuple[str, int]] = zip(columns["prompt_id"], columns["occurrence"], strict=True)
        else:
            keys = ((row["prompt_id"], row["occurrence"]) for row in self._rows)
        for place, key in enumerate(keys):
            self._places[key].append(place)

    def of(self, key: tuple[str, int], repeats: Collection[int] | None) -> list[tuple[str, Mapping[str, Any]]]:
        """(where, judgment) of one row, in the order in which the builder asks: by repeat, then as stored."""
        found = [(f"judgments, split {self._split!r}, row {k}", self._rows[k]) for k in self._places.get(key, ())]
        if repeats is not None:
            found = [(where, row) for where, row in found if row["repeat"] in repeats]
        return sorted(found, key=lambda each: each[1]["repeat"])


class _Readers:
    """What reads the replies of a row: the one given, or the protocol that its provenance names; each made once."""

    def __init__(self, given: Reader | None) -> None:
        self._given = given
        self._known: dict[str, Reader | None] = {}

    def of(self, row: Mapping[str, Any], where: str) -> Reader | None:
        fingerprint = row["provenance"]["judge"]
        key = digest(fingerprint)
        if key not in self._known:
            self._known[key] = _protocol(fingerprint) if self._given is None else self._checked(fingerprint, where)
        return self._known[key]

    def _checked(self, fingerprint: Mapping[str, Any], where: str) -> Reader:
        assert self._given is not None
        # of a judge with a protocol only that reads: another effort or token limit changes no reading
        for name, value in getattr(self._given, "protocol", self._given).fingerprint().items():
            if name not in _WORDING and fingerprint.get(name) != value:
                raise InputError(
                    f"{where}: column 'provenance' says that the judge had {name}={fingerprint.get(name)!r}, and the "
                    f"one given has {value!r}: it would read the replies otherwise. Leave `judge` out to read each "
                    "row by the protocol that it names."
                )
        return self._given


def _protocol(fingerprint: Mapping[str, Any]) -> Reader | None:
    """The protocol that a judge's fingerprint names; None where it cannot be made from it or reads otherwise today."""
    if str(fingerprint.get("judge")).startswith("reference:"):
        from ..clients.judges import judge_by_name

        reference: Reader = judge_by_name(fingerprint["judge"])
        return reference
    name = fingerprint.get("protocol")
    if name not in _SWITCHES:
        return None
    options = {option: fingerprint[option] for option in _SWITCHES[name] if option in fingerprint}
    protocol: Reader = protocol_by_name(name, **options)
    own = {key: value for key, value in protocol.fingerprint().items() if key not in _WORDING | {"rubric"}}
    return protocol if all(fingerprint.get(key) == value for key, value in own.items()) else None


def _case(
    row: Mapping[str, Any], index: _Judgments, readers: _Readers, where: str, repeats: Collection[int] | None
) -> tuple[Case, list[int]]:
    """A row as the builder had it before it was ranked, and the `index` of each of its responses by place."""
    responses = sorted((r for r in row["responses"] if r["source"] != "judge"), key=lambda r: r["index"])
    indices = [response["index"] for response in responses]
    texts = [response["content"] for response in responses]
    _, occurrence = row_key(row)
    item = PromptItem(row["prompt"], row["prompt_id"], occurrence, row["reference"], row["source"])
    drawn = Drawn(item, tuple(Sample(text, (), "stop") for text in texts), 1.0, 1, None)
    duplicate_of = mark_duplicates(texts)
    if duplicate_of.count(None) < 2:
        return Case(drawn, duplicate_of, []), indices
    found = index.of(row_key(row), repeats)
    if not found:
        only = "" if repeats is None else f" of the repeats {sorted(set(repeats))}"
        raise SchemaError(
            f"{where}: column 'prompt_id' is {row['prompt_id'][:12]}..., occurrence {occurrence}, and there is no "
            f"judgment{only} of it. Pass the judgments that were written with these rows."
        )
    reader = readers.of(row, where)
    if reader is None and any(response["source"] == "judge" for response in row["responses"]):
        raise InputError(
            f"{where}: column 'responses' holds the judge's own answer, whose score stands in the reply's text only. "
            "Pass the judge's protocol as `judge`."
        )
    return Case(drawn, duplicate_of, _questions(found, item, texts, indices, reader)), indices


def _questions(
    found: Sequence[tuple[str, Mapping[str, Any]]],
    item: PromptItem,
    texts: Sequence[str],
    indices: Sequence[int],
    reader: Reader | None,
) -> list[Question]:
    place = {index: k for k, index in enumerate(indices)}
    questions: dict[tuple[int, tuple[int, ...]], Question] = {}
    attempts: dict[tuple[int, tuple[int, ...]], list[tuple[int, Answer]]] = defaultdict(list)
    for where, judgment in found:
        permutation = tuple(judgment["permutation"])
        if unknown := [i for i in permutation if i not in place]:
            raise SchemaError(
                f"{where}: column 'permutation' names response {unknown[0]}, which its row does not have (index: "
                f"{', '.join(map(str, indices))})."
            )
        shown = tuple(place[i] for i in permutation)
        key = (judgment["repeat"], shown)
        request = JudgeRequest(item.prompt, tuple(texts[k] for k in shown), item.reference, judgment["repeat"])
        questions.setdefault(key, Question(where, request, shown))
        attempts[key].append((judgment["attempt"], _answer(judgment, request, reader, where)))
    for key, question in questions.items():
        question.answers.extend(answer for _, answer in sorted(attempts[key], key=lambda each: each[0]))
    return list(questions.values())


def _answer(judgment: Mapping[str, Any], request: JudgeRequest, reader: Reader | None, where: str) -> Answer:
    """A stored reply, read; `over_budget` was never answered, so that there is nothing to read."""
    usage = {
        name: int(value or 0) for name, value in (judgment["usage"] or {}).items() if name in Usage.__annotations__
    }
    reply = Reply(judgment["raw"] or "", judgment["stop_reason"], judgment["request_id"], None, Usage(**usage))
    n = len(request.candidates)
    if reader is not None and judgment["status"] != "over_budget":
        return Answer(reply, read(reader, request, reply))  # type: ignore[arg-type]  # a protocol parses as a judge
    scores = tuple(judgment["scores"] or ()) or (None,) * n
    if len(scores) != n:
        raise SchemaError(f"{where}: column 'scores' has {len(scores)} entries for {n} responses in 'permutation'.")
    return Answer(reply, Verdict(judgment["status"], scores))


def _row(
    row: Mapping[str, Any], case: Case, indices: Sequence[int], delta: float, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    ranking = rank_case(case, delta)
    place = {index: k for k, index in enumerate(indices)}
    responses: list[dict[str, Any]] = [
        {
            **response,
            "rank": ranking.ranks[place[response["index"]]],
            "score": ranking.scores[place[response["index"]]],
        }
        for response in row["responses"]
        if response["source"] != "judge"
    ]
    if ranking.answer is not None:
        first = ranking.answer.duplicate_of
        responses.append(
            {
                "index": max(indices) + 1,
                "rank": ranking.answer.rank,
                "score": ranking.answer.score,
                "model": row["ranker"],
                "content": ranking.answer.text,
                "duplicate_of": None if first is None else indices[first],
                "source": "judge",
            }
        )
    return make_row(
        row["prompt"],
        responses,
        ranking_method=row["ranking_method"],
        ranker=row["ranker"],
        status=ranking.status,
        reference=row["reference"],
        agreement_w=ranking.agreement_w,
        agreement_tau=ranking.agreement_tau,
        source=row["source"],
        provenance=provenance,
    )
