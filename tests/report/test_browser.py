"""The report in a real browser: no errors, nothing wider than the screen, and no foreign text that does anything."""

from __future__ import annotations

import json
import struct

import pytest
from chromium import look, needs_chromium, opened_directly, screenshot
from datasets import Dataset, DatasetDict
from ranked_rows import dataset_of, simple_row

from tuna_trl.data.hub import save_ranked
from tuna_trl.data.schema import judgment_features
from tuna_trl.report.dataset import write_dataset_report


pytestmark = [pytest.mark.slow, needs_chromium]

WIDTHS = (390, 1280)
HOSTILE = [
    "<script>window.ran = true; parent.ran = true</script>",
    "</div></article></details></main></body></html><script>parent.ran = true</script>",
    "<img src=x onerror='parent.ran = true'><svg onload='parent.ran = true'><style>* { display: none }</style>",
    '" onmouseover="parent.ran = true" style="width:9999px" x="',
    "<table><tr><td><!-- <textarea><title>",
    "W" * 4000,
    "مرحبا \u202e reversed \u2067 שלום " * 40,
    "\U0001f389\U0001f469\u200d\U0001f469\u200d\U0001f467 e\u0301\u0302\u0303 " * 60,
    "nul \x00 bell \x07 escape \x1b[31m \ud83d\udc4d".encode("utf-16", "surrogatepass").decode("utf-16"),
    "ab " * 700_000,
    "http://example.com/" + "a/" * 900,
    "| a | b |\n|---|---|\n```\n{{ 7 * 7 }}",
]


def replies(rows: int, n: int, judge: str) -> list[dict]:
    known = {"occurrence": 0, "attempt": 0, "labels": None, "status": "ok", "raw": "", "stop_reason": None}
    known |= {"request_id": None, "usage": {"input": 5}, "cost": 0.01, "judge": judge}
    return [
        {
            **known,
            "prompt_id": simple_row(i)["prompt_id"],
            "repeat": repeat,
            "permutation": [(k + i + repeat) % n for k in range(n)],
            "scores": [float((k * 7 + i) % 5) for k in range(n)],
        }
        for i in range(rows)
        for repeat in range(2)
    ]


def dataset(folder, text: str | None = None):
    """A dataset with everything that the report can show; with `text`, wherever a text or a name can stand."""
    some = []
    for i in range(30):
        row = simple_row(i, n=4, agreement_w=0.5 + i / 100, agreement_tau=i / 40)
        for k, response in enumerate(row["responses"]):
            response["model"] = f"model-{k}-{'with-a-long-name' * k}"
        if text is not None:
            foreign = HOSTILE[i % len(HOSTILE)] if text == "each" else text
            row["prompt"] = [{"role": foreign[:200], "content": foreign}]
            row |= {"reference": foreign, "ranker": foreign[:3000]}
            for k, response in enumerate(row["responses"]):
                response |= {"content": foreign, "model": f"{k}{foreign[:3000]}"}
        some.append(row)
    judges = ("a-judge", "another " + (HOSTILE[1] if text else "judge"))
    judged = [row for judge in judges for row in replies(30, 4, judge)]
    data = DatasetDict(train=dataset_of(some[:24]), test=dataset_of(some[24:]))
    return save_ranked(data, folder, judgments=Dataset.from_list(judged, features=judgment_features()))


def run_folder(folder, text: str = "tuna"):
    log = [{"loss": 2.0 / i, "rank/accuracy": 0.5 + i / 200, "logps/best": -1.0, "step": i} for i in range(1, 60)]
    (folder / "checkpoint-9").mkdir(parents=True)
    (folder / "checkpoint-9" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    span = {"mean": 0.5, "low": 0.4, "high": 0.6}
    models = {"start": {"judge_score": span}, text: {"judge_score": span, "rank_accuracy": span}}
    examples = [{"prompt": text, "answers": {"start": text, "tuna": text}}]
    summary = {"models": models, "differences": {text: {"judge_score": span}}, "examples": examples, "judge": text}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory, _tokenizer):
    folder = tmp_path_factory.mktemp("pages")
    _tokenizer.save_pretrained(folder / "tokenizer")
    found = {}
    for name, text, run_text in (("calm", None, "tuna"), ("wild", "each", HOSTILE[1] + "W" * 3000)):
        run = run_folder(folder / f"run-{name}", run_text)
        model = str(folder / "tokenizer") if text is None else None  # 2 MB take a tokenizer of bytes too long
        found[name] = write_dataset_report(dataset(folder / name, text), model=model, run=run)
    return found


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["calm", "wild"])
def test_nothing_is_wider_than_the_screen_and_nothing_runs(pages, name, width, tmp_path):
    seen = look(pages[name], width, tmp_path)
    figures = seen.figures
    assert figures["innerWidth"] == width
    assert figures["wide"] == [] and figures["scrollWidth"] <= width
    assert not figures["ran"] and figures["scripts"] == 0
    assert seen.console == []
    assert figures["smallest"] >= 9  # CSS pixels; a figure in a cell of the matrix is the smallest there is


def test_a_page_as_a_user_opens_it_has_nothing_to_complain_of(pages, tmp_path):
    for page in pages.values():
        assert opened_directly(page, tmp_path) == []


def test_hostile_texts_leave_the_page_built_as_it_was(tmp_path):
    """The same dataset with a harmless word and with each hostile text: as many elements in the browser's own tree."""
    built = {}
    for i, text in enumerate(["harmless", *HOSTILE[:5]]):
        page = write_dataset_report(dataset(tmp_path / str(i), text))
        built[text] = look(page, 1280, tmp_path).figures["elements"]
    assert set(built.values()) == {built["harmless"]}


def test_a_page_of_hostile_texts_stays_small(pages):
    assert pages["wild"].stat().st_size < 3_000_000
    assert "cut here; 2,100,000 characters in all" in pages["wild"].read_text("utf-8")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_picture_of_it_is_no_blank_sheet(pages, width, tmp_path):
    picture = screenshot(pages["calm"], width, 1600, tmp_path / "shot.png", tmp_path)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", picture[16:24]) == (max(width, 500), 1600)
    assert len(picture) > 30_000  # a blank sheet has 5,000 bytes
