"""A JSON schema said in words, for models that nothing holds to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def with_schema(system: str, schema: Mapping[str, Any]) -> str:
    """A system prompt that also says which JSON is wanted."""
    return (
        f"{system.rstrip()}\n\nAnswer with one JSON object and nothing else: no code fence, no words before or after "
        f"it. It must match this JSON schema:\n{json.dumps(schema, ensure_ascii=False)}"
    )
