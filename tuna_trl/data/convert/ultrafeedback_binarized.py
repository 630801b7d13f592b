"""HuggingFaceH4/ultrafeedback_binarized: the best of UltraFeedback's responses by `overall_score`, against another.

Source: `prompt` (a string), `prompt_id`, `chosen` and `rejected` (messages that repeat the prompt), `messages` (the
same as `chosen`), `score_chosen`, `score_rejected`; splits train_prefs, train_sft, train_gen and the same of test.
Score and rank: GPT-4's `overall_score`, 1 to 10; equal scores tie, and there are such rows.
Oddities: `prompt` is a string and the rest are messages, which TRL 1.16 reads at random by the hash seed. The
scores are those of before UltraFeedback's repair: some 2,000 of the tens are ones (OpenBMB/UltraFeedback#8), so a
`chosen` may be the worst; argilla's cleaned pairs use the aspects' ratings instead. Licence: MIT says the card.
"""

from __future__ import annotations

from .rated_pair import rated_pair


ULTRAFEEDBACK_BINARIZED = rated_pair(
    "ultrafeedback_binarized", "score_{}", None, messages=True, method="judge", ranker="gpt-4"
)
