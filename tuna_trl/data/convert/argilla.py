"""Argilla's preference pairs with ratings (ultrafeedback-binarized-preferences-cleaned, dpo-mix), and what
distilabel's DPO formatter writes, which has underscores for hyphens.

Source: `source`, `prompt` (a string), `chosen` and `rejected` (messages that repeat the prompt), `chosen-rating`,
`chosen-model`, `rejected-rating`, `rejected-model`; the older ones have `instruction` and plain strings.
Score and rank: the mean of UltraFeedback's four aspects, 1 to 5 (distilabel: what its judge gave); equal ratings
tie.
Oddities: hyphens in column names, which SQL wants quoted; a rating may be null (then `chosen` is 1, `rejected` 2).
Licence: MIT for the UltraFeedback ones; see the card of each.
"""

from __future__ import annotations

from .rated_pair import rated_pair


ARGILLA = rated_pair("argilla", "{}-rating", "{}-model")
DISTILABEL_PAIRS = rated_pair("distilabel_pairs", "{}_rating", "{}_model")
