"""The part of the report on ranked data: figures, charts, judges, token lengths and example rows of each dataset.

Each dataset is gone through once, a row at a time, whatever its size; see [`tuna_trl.data.summary`] for what is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..data.judgment_summary import JudgmentSummary, summarise_judgments
from ..data.summary import RankedCounter, RankedSummary, rows_of
from ..errors import InputError
from .examples import ExamplePicker
from .matrix import matrix_plot
from .plots import histogram, interval_plot, range_plot
from .sections import Chart, counted_rows
from .text import first_line, number
from .token_lengths import TokenLengths


_SHOWN_ROWS = 24  # of all datasets of a report together
_SHOWN_MODELS = 12
_SHOWN_PLACES = 10


def ranked_sections(
    datasets: Mapping[str, Any], judgments: Mapping[str, Any] | None = None, tokenizer: Any = None
) -> list[dict[str, Any]]:
    """For each ranked dataset its figures, charts and example rows.

    Args:
        datasets: by name a `Dataset`, its splits, or anything that gives full ranked rows.
        judgments: by the same names the judge replies, or splits of them.
        tokenizer: of the model to be trained; adds how long the responses are for it.

    Raises:
        InputError: a dataset is not ranked.
    """
    parts = list(_flat(datasets))
    each = max(4, _SHOWN_ROWS // max(1, len(parts)))
    sections: list[dict[str, Any]] = []
    for name, key, part in parts:
        section = _ranked_section(name, part, each, tokenizer)
        replies = (judgments or {}).get(key)
        if replies and key not in {known for _, known, _ in parts[: len(sections)]}:  # once, however many splits
            section["judging"] = judging(
                summarise_judgments(replies.values() if isinstance(replies, Mapping) else [replies]), name
            )
        sections.append(section)
    return sections


def _flat(datasets: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for name, dataset in datasets.items():
        splits = dataset.items() if isinstance(dataset, Mapping) else [("", dataset)]
        for split, part in splits:
            columns = getattr(part, "features", None) or getattr(part, "column_names", None)
            if columns is not None and "responses" not in columns:
                raise InputError(f"`datasets[{name!r}]` is no ranked dataset; load it with tuna_trl.load_ranked.")
            yield f"{name} {split}".strip(), name, part


def _ranked_section(name: str, rows: Iterable[Any], shown_rows: int, tokenizer: Any) -> dict[str, Any]:
    from tqdm import tqdm

    counter, picker = RankedCounter(), ExamplePicker(shown_rows)
    lengths = None if tokenizer is None else TokenLengths(tokenizer, rows)
    for row in tqdm(rows_of([rows]), desc=f"reading {name}", disable=None, delay=3.0):
        counter.add(row)
        picker.add(row)
        if lengths is not None:
            lengths.add(row)
    s = counter.summary()
    facts = [f"{s.rows:,} rows", f"{s.responses:,} responses"]
    facts += [f"ranked by {ranker} ({method})" if ranker else method for method, ranker in list(s.rankers)[:3]]
    return {
        "name": name or "Ranked rows",
        "facts": [first_line(fact, 200) for fact in facts],
        "charts": _charts(s, name),
        "wins": _win_matrix(s, name),
        "length": _length_sentence(s),
        "agreement": _agreement_sentence(s),
        "tables": [
            _share_table("Status", s.status, s.rows),
            _share_table("Responses a row", s.num_responses, s.rows),
            _share_table("Tied responses a row", s.num_ties, s.rows),
        ],
        "judging": None,
        "tokens": None if lengths is None else lengths.section(name),
        "examples": picker.chosen(),
    }


def _charts(s: RankedSummary, name: str) -> list[Chart]:
    by_rank = [(f"rank {rank}", lengths) for rank, lengths in list(s.lengths.items())[:10]]
    charts = [
        ("Scores", histogram(s.scores, label=f"{name}: scores", x_label="score")),
        (
            "Score gap, best to worst of a row",
            histogram(s.score_gaps, label=f"{name}: score gaps", x_label="score gap of a row"),
        ),
        ("Length against rank", range_plot(by_rank, label=f"{name}: length against rank", x_label=s.length_unit)),
    ]
    for column, title in (("agreement_w", "Agreement, Kendall’s W"), ("agreement_tau", "Agreement, mean τ-b")):
        charts.append((title, histogram(s.agreements[column], label=f"{name}: {title}", x_label=f"{column} of a row")))
    return [Chart(title, svg) for title, svg in charts if svg]


def _win_matrix(s: RankedSummary, name: str) -> Chart | None:
    """Of each two models, how often the one's response ranks above the other's in the same row."""
    models = [model for model in s.models if any(model == a for a, _ in s.wins)][:_SHOWN_MODELS]
    if len(models) < 2:
        return None
    won = {m: [s.wins[m, other].value or 0.0 for other in models if (m, other) in s.wins] for m in models}
    models.sort(key=lambda m: -sum(won[m]) / max(1, len(won[m])))
    left = len({a for a, _ in s.wins}) - len(models)
    cells = [[_win(s, a, b) for b in models] for a in models]
    title = "How often the row’s model ranks above the column’s, %"
    if left:
        title += f" (the {len(models)} with most responses; {left} more not shown)"
    return Chart(title, matrix_plot([first_line(m, 60) for m in models], cells, label=f"{name}: win rates"))


def _win(s: RankedSummary, a: str, b: str) -> tuple[float, str] | None:
    won = s.wins.get((a, b))
    if won is None or won.value is None:
        return None
    return won.value, f"{first_line(a, 60)} above {first_line(b, 60)}: {100 * won.value:.1f} % of {won.rows:,}"


def judging(s: JudgmentSummary, name: str) -> dict[str, Any]:
    """The judges of a dataset: what they read and cost, whether they agree, which places they prefer."""
    charts = []
    for judge, figures in ({"all judges": s.all} if len(s.by_judge) > 4 else s.by_judge).items():
        rows = []
        for place, found in enumerate(figures.places[:_SHOWN_PLACES], start=1):
            if found.excess.value is not None and found.error is not None:
                mean, reach = 100 * found.excess.value, 196 * found.error
                rows.append((f"place {place}", mean, mean - reach, mean + reach))
        title = f"{first_line(judge, 60)}: won by place shown"
        svg = interval_plot(rows, label=f"{name}: {title}", x_label="won, less 1/N, percentage points", reference=0.0)
        if svg:
            charts.append(Chart(title, svg))
    agreement = [
        (first_line(a, 60) + (", repeated" if a == b else f" and {first_line(b, 60)}"), number(tau.value, 2), tau.rows)
        for (a, b), tau in s.agreement.items()
    ]
    return {
        "facts": [f"{s.replies:,} replies", *(f"{n:,} {status}" for status, n in s.status.items())],
        "judges": [
            {
                "name": first_line(judge, 60),
                "replies": f"{figures.replies:,}",
                "read": f"{figures.read:,}",
                "tokens": ", ".join(f"{kind} {n:,}" for kind, n in list(figures.tokens.items())[:4]),
                "cost": "–" if figures.cost is None else f"{figures.cost:,.2f}",
            }
            for judge, figures in list(s.by_judge.items())[:20]
        ],
        "agreement": [(pair, tau, f"{n:,}") for pair, tau, n in agreement[:20]],
        "charts": charts,
        "first": _first_sentence(s),
    }


def _first_sentence(s: JudgmentSummary) -> str:
    if s.first_wins.value is None or s.first_expected is None:
        return ""
    return (
        f"The response shown first scored best in {100 * s.first_wins.value:.1f} % of {s.first_wins.rows:,} replies; "
        f"without a preference for a place it would be {100 * s.first_expected:.1f} %."
    )


def _length_sentence(s: RankedSummary) -> str:
    if s.length_rho.value is None:
        return ""
    rows = counted_rows(s.length_rho.rows)
    value = number(s.length_rho.value, 2, sign=True)
    return f"Spearman’s ρ of length and rank quality is {value} on average over {rows}; above 0, longer ranks better."


def _agreement_sentence(s: RankedSummary) -> str:
    parts = [
        f"{title} {number(found.value, 2)} (mean of {counted_rows(found.rows)})"
        for title, found in (("Kendall’s W", s.agreement_w), ("pairwise τ-b", s.agreement_tau))
        if found.rows
    ]
    return f"Repeated rankings of the same row agree by {' and '.join(parts)}." if parts else ""


def _share_table(title: str, counts: Mapping[Any, int], total: int) -> dict[str, Any]:
    """Counts as a table with bars; of more than twenty values the most frequent."""
    kept = sorted(counts, key=lambda value: -counts[value])[:20]
    rows = [(str(v), f"{n:,}", round(100 * n / total, 1)) for v, n in counts.items() if v in kept]
    return {"title": title, "rows": rows}
