"""The demo with a Claude judge, over loopback through the real SDK: asked once for all, capped, resumed free."""

from __future__ import annotations

import json
import re

import pytest
from doubles.anthropic_server import AnthropicServer

from tuna_trl.errors import BudgetExceeded
from tuna_trl.pipelines.demo import DemoConfig, run_demo


KEY = "sk-ant-planted-demo-key"


def by_length(body):
    """A judge that likes long answers."""
    (turn,) = [message["content"] for message in body["messages"]]
    nonce = re.search(r"<conversation-(\w+)>", turn)[1]
    shown = re.findall(rf'<candidate-{nonce} label="(\w)">\n(.*?)\n</candidate-{nonce}>', turn, re.DOTALL)
    merit = {label: min(len(text) % 6, 5) for label, text in shown}
    verdict = {"task": "open"}
    for label, m in merit.items():
        verdict[label] = {"rationale": "r", "accuracy": m, "detail": m, "relevance_or_clarity": m}
    return json.dumps(verdict | {"ranking": sorted(merit, key=lambda label: -merit[label])})


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with AnthropicServer(by_length) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        yield server


def config(folder, tiny_folder, said, **changes):
    values = dict(
        output=folder,
        model=str(tiny_folder),
        judge="claude",
        max_cost=20.0,
        train_rows=16,
        heldout_rows=16,
        max_new_tokens=6,
        teacher_rank_truncated=True,
        say=said.append,
    )
    return DemoConfig(**{**values, **changes})


def test_claude_judges_the_demo_within_the_cap_and_is_asked_nothing_twice(tmp_path, tiny_folder, server, capfd):
    said = []
    # a cap that the first stage fits into and the comparison does not: it stops, and says how to go on
    with pytest.raises(BudgetExceeded, match="max_cost"):
        run_demo(config(tmp_path / "run", tiny_folder, said, max_cost=0.5))
    assert "at most 0.50 USD in all" in said[0]  # the cap is shown first
    asked = len(server.requests)
    assert asked > 0
    summary = run_demo(config(tmp_path / "run", tiny_folder, said))
    first = len(server.requests)
    assert summary["judge"] == "claude-opus-5-5"
    assert summary["models"]["start"]["judge_score"]["mean"] is not None
    # 16 training rows, 16 held-out rows, 16 sets of fresh answers: each asked for once, over both runs
    assert first <= 16 * 3
    assert len({json.dumps(body["messages"]) for _, body in server.requests}) == first
    run_demo(config(tmp_path / "run", tiny_folder, said))
    assert len(server.requests) == first
    printed = capfd.readouterr()
    texts = [
        printed.out,
        printed.err,
        *(p.read_bytes().decode(errors="replace") for p in tmp_path.rglob("*") if p.is_file()),
    ]
    assert not any(KEY in text for text in texts)
