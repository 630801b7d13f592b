"""Fixtures of the clients' tests: a server of the OpenAI protocol, pauses that are not slept, no outer settings."""

from __future__ import annotations

import pytest
from doubles.loopback import without_proxies
from doubles.openai_server import OpenAIServer

from tuna_trl.clients import retry


@pytest.fixture
def server():
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    return slept


@pytest.fixture(autouse=True)
def _no_ambient_settings(monkeypatch):
    openai = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY")
    anthropic = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS")
    for name in openai + anthropic:
        monkeypatch.delenv(name, raising=False)
    without_proxies(monkeypatch)
