"""A judge from the command line: its options, what is refused before anything is spent, ranks from stored replies."""

from __future__ import annotations

import json

import pytest
from doubles.anthropic_server import AnthropicServer

from tuna_trl.cli.judging import judge_from_flags
from tuna_trl.data.hub import load_ranked
from tuna_trl.errors import InputError


KEY = "sk-ant-planted-5e6f7a8b"
MERIT = {"good": 5, "fair": 3, "poor": 1}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "lists.jsonl"
    rows = [
        {
            "prompt": f"question {i}",
            "reference": f"good answer {i}",
            "responses": [f"{word} answer {i}" for word in order],
        }
        for i, order in enumerate([("poor", "good", "fair"), ("good", "fair", "poor"), ("fair", "poor", "good")])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def honest(body):
    """A verdict that reads the candidates' first words."""
    import re

    turn = body["messages"][0]["content"]
    shown = re.findall(r'<candidate-\w+ label="(\w)">\n(\w+)', turn)
    verdict = {"task": "open"}
    for label, word in shown:
        score = MERIT[word]
        verdict[label] = {"rationale": "r", "accuracy": score, "detail": score, "relevance_or_clarity": score}
    return json.dumps(verdict | {"ranking": sorted(dict(shown), key=lambda label: -MERIT[dict(shown)[label]])})


@pytest.fixture
def claude(monkeypatch):
    """Flags of a Claude judge behind a loopback server."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with AnthropicServer(honest) as server:
        server.flags = ["--judge", "claude", "--judge-option", f"base_url={server.url}", "--max-cost", "5"]
        yield server


def test_given_responses_are_ranked_by_a_judge_and_a_rerun_asks_nothing(call, data, tmp_path, claude):
    command = ["rank", "--data", data, "--output", tmp_path / "out", *claude.flags, "--repeats", "2"]
    code, out, err = call(*command)
    assert code == 0, err
    for row in load_ranked(tmp_path / "out")["train"]:
        assert [r["content"].split()[0] for r in row["responses"]] == ["good", "fair", "poor"]
        assert (row["ranking_method"], row["status"], row["agreement_w"]) == ("judge", "ok", 1.0)
    assert "USD" in out and "Next: tuna-trl train" in out
    asked = len(claude.requests)
    assert asked == 6
    assert call(*command)[0] == 0 and len(claude.requests) == asked
    assert KEY not in out + err


def test_ranks_are_computed_again_from_the_replies_without_asking(call, data, tmp_path, claude):
    judged = ["rank", "--data", data, "--output", tmp_path / "out", *claude.flags]
    assert call(*judged)[0] == 0
    asked = len(claude.requests)
    code, _, err = call("rank", "--from-judgments", tmp_path / "out", "--output", tmp_path / "same")
    assert code == 0, err
    assert list(load_ranked(tmp_path / "same")["train"]) == list(load_ranked(tmp_path / "out")["train"])
    again = ["rank", "--from-judgments", tmp_path / "out", "--output", tmp_path / "ties", "--tie-delta", "6"]
    assert call(*again)[0] == 0
    ranks = [[r["rank"] for r in row["responses"]] for row in load_ranked(tmp_path / "ties")["train"]]
    assert ranks == [[1, 1, 3]] * 3  # 15 and 9 are within 6 points, 3 is not
    assert len(claude.requests) == asked


def test_the_canary_asks_beyond_the_build_and_says_what_it_saw(call, data, tmp_path, claude):
    code, out, err = call("rank", "--data", data, "--output", tmp_path / "out", *claude.flags, "--canary", "2")
    assert code == 0, err
    assert "robust" in out or "unclear" in out
    assert len(claude.requests) > 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Say who ranks, by one of --teacher, --judge, --from-judgments; got none"),
        (["--judge", "reference", "--teacher", "embedded"], "got --teacher, --judge"),
        (["--judge", "reference"], "--data is missing"),
        (["--judge", "reference", "--dtype", "float16"], "--dtype is for --teacher, and does nothing with --judge"),
        (["--teacher", "embedded", "--repeats", "2"], "--repeats is for --judge, and does nothing with --teacher"),
        (["--from-judgments", "x", "--max-cost", "2"], "--max-cost is for --teacher and --judge"),
        (["--from-judgments", "x"], "there are no judgments"),
        (["--judge", "refernce", "--data", "x"], "Did you mean 'reference'"),
        (["--judge", "reference", "--data", "x", "--protocol", "pairwise"], "is no language model"),
        (["--judge", "reference", "--data", "x", "--min-agreement", "0.5"], "judged once"),
        (["--judge", "reference", "--data", "x", "--mark-disagreement"], "give that too"),
        (["--judge", "reference", "--data", "x", "--canary", "-1"], "expected a number of rows"),
        (["--judge", "claude", "--data", "x", "--judge-option", "effort"], "expected NAME=VALUE"),
        (["--judge", "claude", "--data", "x", "--judge-option", "efort=low"], "Did you mean 'effort'"),
        (["--judge", "claude", "--data", "x", "--judge-option", "api_key=abc"], "Set the key in the environment"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_asked(call, tmp_path, monkeypatch, flags, message):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    code, _, err = call("rank", "--output", tmp_path / "out", *flags)
    assert code == 2 and message in err


def test_options_reach_the_judge_and_its_protocol(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    judge = judge_from_flags(
        "claude-haiku-5-5", None, ["effort=medium", "max_tokens=1000", "judge_answer=off", "show_reference=true"]
    )
    fingerprint = judge.fingerprint()
    assert (fingerprint["effort"], fingerprint["max_tokens"]) == ("medium", 1000)
    assert (judge.protocol.judge_answer, judge.protocol.show_reference) == ("off", True)
    scaled = judge_from_flags("claude", "pointwise", ["scale=[1, 10]"])
    assert scaled.protocol.scale == (1, 10)


def test_an_option_given_twice_is_refused():
    with pytest.raises(InputError, match="effort is given twice"):
        judge_from_flags("claude", None, ["effort=low", "effort=high"])


def test_a_dry_run_builds_nothing_and_knows_no_price_it_was_not_told(call, tmp_path, tiny_folder):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "reference": "b"}\n' * 3)
    output = tmp_path / "out"
    flags = ["--prompts", tmp_path / "p.jsonl", "--student", tiny_folder, "--output", output, "--max-new-tokens", "4"]
    code, out, err = call("build", "judge", *flags, "--dry-run")
    assert code == 0, err
    assert "3" in out and "low / expected / high" in out
    assert not output.exists()
