"""Laws of `push_to_hub`, against a Hub on loopback: what arrives, what does not, and that it loads without us."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from doubles.hub_server import HubServer


WORKER = Path(__file__).with_name("hub_worker.py")


def run(hub, folder, *args, token=True):
    """A client process; its output."""
    env = hub.environment(folder / "cache", token=token) | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(WORKER), *args, str(folder)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """(server, folder of the run, all that the client printed)."""
    folder = tmp_path_factory.mktemp("hub")
    with HubServer() as hub:
        output = run(hub, folder, "push")
        yield hub, folder, output


def card_of(hub, repo):
    text = hub.files("model", repo)["README.md"].decode()
    return text, yaml.safe_load(text.split("---")[1])


def test_a_whole_model_and_an_adapter_arrive_with_tokenizer_and_template(pushed):
    hub, _, _ = pushed
    whole, adapter = hub.files("model", "tester/whole"), hub.files("model", "tester/adapter")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(whole)
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(adapter)
    assert "model.safetensors" not in adapter
    assert json.loads(adapter["adapter_config.json"])["base_model_name_or_path"] == "tester/base"
    for files in (whole, adapter):
        assert not any(name.startswith("checkpoint-") for name in files)
        for name in ("config.json", "adapter_config.json"):
            assert "tuna" not in files.get(name, b"").decode().lower()  # loads where tuna_trl is not installed


@pytest.mark.parametrize("name, library", [("whole", "transformers"), ("adapter", "peft")])
def test_the_card_that_arrives_says_what_was_trained_on_what_and_how_it_went(name, library, pushed):
    text, data = card_of(pushed[0], f"tester/{name}")
    assert data["library_name"] == library and data["base_model"] == "tester/base"
    assert data["datasets"] in ("org/ranked", ["org/ranked"])
    assert {"tuna", "trl", "arxiv:2310.13385"} <= set(data["tags"])
    assert f"# {name}\n" in text and "(https://huggingface.co/datasets/org/ranked)" in text
    assert "| instructions | 6 |" in text and "| `margin` | 0.25 |" in text
    assert "`eval_held_rank/accuracy`" in text and "`rank/margin_gap1`" in text
    assert "- transformers: 5." in text and "arxiv.org/abs/2310.13385" in text and "```bibtex" in text


def test_what_was_pushed_loads_without_us_and_without_a_token(pushed):
    hub, folder, _ = pushed
    run(hub, folder, "load", token=False)
    trained, loaded = torch.load(folder / "pushed.pt"), torch.load(folder / "loaded.pt")
    for name, expected in trained.items():
        torch.testing.assert_close(loaded[name], expected, rtol=0, atol=2e-5)
        assert (loaded[name] - loaded["base"]).abs().max() > 1e-2  # two steps moved it


def test_the_token_is_in_no_file_and_in_no_output(pushed):
    hub, folder, output = pushed
    secret = hub.token
    assert secret not in output and not any(secret in line for line in hub.log)
    for (kind, name), repo in hub.repos.items():
        for _, _, files in repo.commits:
            for path, data in files.items():
                assert secret.encode() not in data, f"{kind} {name}: {path}"
    for path in folder.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_every_request_went_to_a_page_that_a_hub_has(pushed):
    hub, _, _ = pushed
    known = ("/api/whoami-v2", "/api/repos/create", "/api/models/", "/api/validate-yaml", "/tester/", "/lfs")
    # "/": whether it answers at all, asked before what was pushed is loaded again
    assert {path for _, path in hub.requests if not path.startswith(known)} <= {"/api/agent-harnesses", "/"}
