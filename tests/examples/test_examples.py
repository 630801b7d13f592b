"""The examples run on a tiny model, as a user runs them: each a process of its own, APIs and the Hub on loopback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doubles.anthropic_server import AnthropicServer
from doubles.hub_server import HubServer


ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
OFFLINE = [path for path in EXAMPLES if path.name not in ("03_rank_with_claude.py", "07_push_to_the_hub.py")]
KEY = "sk-ant-planted-9f8e7d"


def run(name: str, *arguments: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """What an example prints, on stdout; its outputs go under the working folder."""
    path = ROOT / "examples" / name
    # a proxy would be asked for loopback too
    base = {k: v for k, v in (env or os.environ).items() if not k.lower().endswith("_proxy")}
    result = subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=cwd,
        env=base if env else {**base, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "->" in result.stdout
    return result.stdout


def longest_first(body: dict) -> str:
    """A judge that likes words: reads the candidates between the request's tags, as `contextual` shows them."""
    (turn,) = [message["content"] for message in body["messages"]]
    nonce = re.search(r"<conversation-(\w+)>", turn)[1]
    shown = re.findall(rf'<candidate-{nonce} label="(\w)">\n(.*?)\n</candidate-{nonce}>', turn, re.DOTALL)
    order = sorted(shown, key=lambda candidate: -len(candidate[1]))
    verdict: dict = {"task": "open"}
    for place, (label, _) in enumerate(order):
        score = max(0, 5 - place)
        verdict[label] = {"rationale": "r", "accuracy": score, "detail": score, "relevance_or_clarity": score}
    return json.dumps(verdict | {"ranking": [label for label, _ in order]})


def test_the_examples_are_numbered_without_a_gap_and_short():
    assert [int(path.name[:2]) for path in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))
    assert len(EXAMPLES) >= 8
    for path in EXAMPLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 120, path.name
        assert f"python examples/{path.name}" in path.read_text(encoding="utf-8"), (
            f"{path.name} does not say how to run it"
        )


@pytest.mark.parametrize("path", OFFLINE, ids=lambda p: p.name)
def test_an_example_runs_without_a_network(path, tmp_path, tiny_folder):
    run(path.name, str(tiny_folder), cwd=tmp_path)


def test_claude_ranks_within_the_cap_and_is_asked_nothing_twice(tmp_path):
    with AnthropicServer(longest_first) as server:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": server.url}
        said = run("03_rank_with_claude.py", cwd=tmp_path, env=env)
        assert len(server.requests) == 2 * 3
        assert run("03_rank_with_claude.py", cwd=tmp_path, env=env).splitlines()[:2] == said.splitlines()[:2]
        assert len(server.requests) == 2 * 3
        assert {headers["authorization"] for headers, _ in server.requests} == {f"Bearer {KEY}"}
    assert "Why is the sky blue? -> ['1: c', '2: a', '3: b']" in said  # by length, which the double likes
    assert KEY not in said
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def test_data_and_adapter_are_pushed_to_private_repos_and_nothing_else_is(tmp_path, tiny_folder):
    with HubServer() as hub:
        said = run("07_push_to_the_hub.py", str(tiny_folder), cwd=tmp_path, env=hub.environment(tmp_path / "cache"))
        assert hub.token not in said
        assert set(hub.repos) == {
            ("dataset", "tester/tuna-example-ranked"),
            ("model", "tester/tuna-example-adapter"),
        }
        assert all(repo.private for repo in hub.repos.values())
        data = hub.files("dataset", "tester/tuna-example-ranked")
        assert any(name.startswith("preference/") for name in data) and "report.html" in data
        assert "adapter_model.safetensors" in hub.files("model", "tester/tuna-example-adapter")
        (line,) = re.findall(r'load_dataset\("tester/tuna-example-ranked", revision="(\w+)"\)', said)
        assert hub.repos["dataset", "tester/tuna-example-ranked"].at(line) is not None
