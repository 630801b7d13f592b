"""JSON schemas as grammars that hold a local model to them, token by token, by the package xgrammar (an extra)."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .contextual import OWN_LABEL, labels


MOST_RANKED = 5  # labels whose orders are listed one by one: 120 of them


def grammar_is_installed() -> bool:
    """Whether xgrammar is there; nothing is imported to find out."""
    return importlib.util.find_spec("xgrammar") is not None


def tightened(schema: Mapping[str, Any], max_rationale: int | None) -> dict[str, Any]:
    """A schema that says what providers' subsets of JSON Schema cannot, and a grammar can.

    A `ranking` of at most 5 shown labels names each once (small models write `["A", "B", "B"]`), and a `rationale`
    ends after `max_rationale` characters (they write on until their limit, and the scores never come).
    """
    properties = {}
    for name, value in schema.get("properties", {}).items():
        names = value.get("items", {}).get("enum", ()) if set(value) == {"type", "items"} else ()
        shown = tuple(label for label in names if label != OWN_LABEL)
        if name == "ranking" and shown and len(names) <= MOST_RANKED and shown == labels(len(shown)):
            value = {"enum": [list(order) for order in itertools.permutations(names)]}
        elif name == "rationale" and value.get("type") == "string" and max_rationale is not None:
            # not `maxLength`: its strings may hold bare control characters, which are no JSON
            value = {**value, "pattern": f'^[^"\\\\\\x00-\\x1f]{{0,{max_rationale}}}$'}
        elif value.get("type") == "object":
            value = tightened(value, max_rationale)
        properties[name] = value
    return {**schema, "properties": properties} if properties else dict(schema)


class Grammars:
    """The compiled grammars of one tokenizer.

    White space stands only where `json.dumps` puts it: a small model would otherwise write blanks until its limit.

    Args:
        tokenizer: of transformers.
        vocab_size: width of the model's logits, which may be larger than the tokenizer's vocabulary.
        end_tokens: ids that end a reply; allowed only where the JSON is complete, and nothing else is there.
        max_rationale: see [`tightened`].
    """

    def __init__(
        self, tokenizer: Any, vocab_size: int, end_tokens: Sequence[int], max_rationale: int | None = None
    ) -> None:
        import xgrammar

        tokens = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocab_size, stop_token_ids=sorted(end_tokens)
        )
        # Its cache fails an internal check on long repetitions (0.2.8: `{0,200}` in two fields); ours is below.
        self._compiler = xgrammar.GrammarCompiler(tokens, cache_enabled=False)
        self._max_rationale = max_rationale
        self._compiled: dict[str, Any] = {}

    def processor(self, schemas: Sequence[Mapping[str, Any]]) -> Any:
        """A logits processor for one call of `generate` (it is used up by it): row k keeps to `schemas[k]`."""
        from xgrammar.contrib.hf import LogitsProcessor

        return LogitsProcessor([self._grammar(schema) for schema in schemas])

    def _grammar(self, schema: Mapping[str, Any]) -> Any:
        key = json.dumps(schema)  # unsorted: fields are written in the order of the schema
        if key not in self._compiled:
            self._compiled[key] = self._compiler.compile_json_schema(
                tightened(schema, self._max_rationale), any_whitespace=False
            )
        return self._compiled[key]
