"""Protocols by name: what the command line and YAML write becomes the protocol meant, or an error with a way out."""

from __future__ import annotations

import pytest
import yaml
from doubles.judging_protocols import SCHEMA, TEMPLATE

from tuna_trl.clients.base import JudgeProtocol
from tuna_trl.clients.contextual import ContextualProtocol
from tuna_trl.clients.pairwise import PairwiseProtocol
from tuna_trl.clients.pointwise import PointwiseProtocol
from tuna_trl.clients.protocols import PROTOCOLS, protocol_by_name, protocol_from
from tuna_trl.errors import InputError


OWN = {"template": TEMPLATE, "schema": SCHEMA, "score": "quality"}


def test_every_name_gives_a_protocol_of_that_name():
    for name in PROTOCOLS:
        protocol = protocol_by_name(name, **(OWN if name == "own" else {}))
        assert isinstance(protocol, JudgeProtocol) and protocol.name == name
        assert protocol.fingerprint()["protocol"] == name


@pytest.mark.parametrize(
    ("setting", "protocol"),
    [
        (None, ContextualProtocol()),
        ("contextual", ContextualProtocol()),
        ("pairwise", PairwiseProtocol()),
        ({"name": "contextual", "judge_answer": "ranked"}, ContextualProtocol("ranked")),
        (yaml.safe_load("name: contextual\njudge_answer: off\nshow_reference: on"), ContextualProtocol("off", True)),
        ({"name": "pointwise", "scale": [0, 3], "rubric": "x"}, PointwiseProtocol("x", (0, 3))),
    ],
)
def test_a_setting_is_a_name_or_a_mapping(setting, protocol):
    assert protocol_from(setting) == protocol


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("pairwize", "Did you mean 'pairwise'"),
        ({"name": "contextual", "judge_anwser": "off"}, "Did you mean 'judge_answer'"),
        ({"name": "contextual", "name2": 1}, "has no option 'name2'"),
        ({"name": "own", "template": TEMPLATE}, "needs the option 'schema'"),
        ({"judge_answer": "off"}, "expected a name"),
        ({"name": 3}, "expected a name"),
        (["pairwise"], "expected a name"),
        ({"name": "pairwise", 1: 2}, "option that is no name"),
        ({"name": "contextual", "judge_answer": True}, "now written 'context'"),
    ],
)
def test_what_is_not_known_is_named_with_what_is(setting, says):
    with pytest.raises(InputError, match=says):
        protocol_from(setting)
