"""`tuna-trl build teacher` end to end with a tiny model and a loopback server: flags, refusals, what is said."""

from __future__ import annotations

import json
import sys

import pytest

from tuna_trl.data.hub import load_ranked


@pytest.fixture
def called(monkeypatch, capsys):
    """Run the command in this process; returns (exit code, stdout, stderr)."""

    def call(*args, **env):
        from tuna_trl.cli import main

        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["tuna-trl", "build", "teacher", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call


@pytest.fixture
def asked(tmp_path, tiny_folder, monkeypatch):
    """The arguments of a build of 40 prompts with the tiny model."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lines = [json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(40)]
    (tmp_path / "p.jsonl").write_text("".join(lines))
    output = tmp_path / "out"
    return ["--prompts", tmp_path / "p.jsonl", "--output", output, "--max-new-tokens", 4, "--rank-truncated"], output


def test_a_dry_run_builds_nothing_and_the_build_goes_on_from_it(called, asked, tiny_folder):
    arguments, output = asked
    code, out, err = called(*arguments, "--teacher", tiny_folder, "--dry-run")
    assert code == 0 and "output tokens" in out and not output.exists()
    code, out, err = called(*arguments, "--model", tiny_folder)
    assert code == 0 and "2 of 3 buckets were already in the journal" in err
    assert f"Ranked dataset written to {output}." in out
    assert len(load_ranked(output, "train")) == 40


def test_no_resume_sets_the_journal_aside_and_says_where(called, asked, tiny_folder):
    arguments, output = asked
    called(*arguments, "--teacher", tiny_folder, "--limit", 5)
    code, out, err = called(*arguments, "--teacher", tiny_folder, "--limit", 5, "--no-resume")
    aside = output.with_name("out.journal.sqlite.aside-1")
    assert code == 0 and aside.exists() and f"kept as {aside}" in err
    assert "0 of 1 buckets were already in the journal" in err


@pytest.mark.parametrize("name", ["claude-opus-5-5", "anthropic/claude-haiku-5-5"])
@pytest.mark.parametrize("url", [[], ["--base-url", "http://127.0.0.1:9/v1"]])
def test_a_claude_teacher_is_refused_and_told_why(called, asked, name, url):
    code, out, err = called(*asked[0], "--teacher", name, *url)
    assert code == 2 and "no log-prob" in err and "build judge" in err


def test_a_server_over_https_needs_a_cap(called, asked):
    pytest.importorskip("openai", reason="the package openai is not installed")
    code, out, err = called(
        *asked[0], "--teacher", "m", "--base-url", "https://127.0.0.1:9/v1", OPENAI_API_KEY="sk-not-a-key"
    )
    assert code == 2 and "--max-cost" in err and "sk-not-a-key" not in out + err


def test_several_servers_and_a_further_body_reach_the_sampler(called, asked, monkeypatch):
    from tuna_trl.clients import openai_compatible

    seen = []

    class Recorded(Exception):
        pass

    def sampler(model, base_url=None, **options):
        seen.append((model, base_url, options))
        raise Recorded

    monkeypatch.setattr(openai_compatible, "OpenAICompatibleSampler", sampler)
    urls = ["http://a:1/v1", "http://b:2/v1"]
    called(*asked[0], "--teacher", "m", *(f"--base-url={url}" for url in urls), "--concurrency", 32)
    called(*asked[0], "--teacher", "m", "--base-url", urls[0], "--extra-body", '{"top_k": 0}')
    assert seen == [
        ("m", None, {"endpoints": urls, "concurrency": 32, "extra_body": None}),
        ("m", urls[0], {"endpoints": None, "extra_body": {"top_k": 0}}),
    ]
    code, out, err = called(*asked[0], "--teacher", "m", "--base-url", urls[0], "--extra-body", "top_k=0")
    assert code == 2 and "--extra-body 'top_k=0' is no JSON" in err


@pytest.mark.parametrize("flag", ["--dry-run", "--no-resume", "--base-url=http://127.0.0.1:9/v1", "--engine=ray"])
def test_what_is_for_one_process_is_refused_in_several(called, asked, tiny_folder, flag):
    code, out, err = called(*asked[0], "--teacher", tiny_folder, flag, WORLD_SIZE="2", RANK="0", LOCAL_WORLD_SIZE="2")
    assert code == 2 and flag.split("=")[0] in err and "for one process" in err


def test_ray_and_servers_exclude_each_other(called, asked):
    code, out, err = called(*asked[0], "--teacher", "m", "--base-url", "http://127.0.0.1:9/v1", "--engine", "ray")
    assert code == 2 and "--engine ray is for a local teacher" in err


def test_prompts_are_streamed_not_converted(tmp_path, asked, monkeypatch):
    from tuna_trl.cli.sources import load_prompts

    rows = load_prompts(str(tmp_path / "p.jsonl"))["train"]
    assert not isinstance(rows, list) and next(iter(rows)) == {"prompt": "question 0"}
    assert sum(1 for _ in rows) == 40  # as often as they are read
    assert not (tmp_path / "cache" / "json").exists()
