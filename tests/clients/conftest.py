"""Fixtures of the clients' tests: a server of the OpenAI protocol, pauses that are not slept, no outer settings."""

from __future__ import annotations

import pytest
from doubles.openai_server import OpenAIServer

from tuna_trl.clients import retry


@pytest.fixture
def server():
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that the sampler would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    return slept


@pytest.fixture(autouse=True)
def _no_ambient_settings(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
