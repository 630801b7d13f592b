"""When several answers to one prompt are too alike: the ROUGE-L criterion of the Tuna paper's sampler (section 3.2).

Decides nothing about what to do then (`build.sampling` draws again, hotter) and knows no model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ..clients.rouge import RougeL


class RougeDiversity:
    """Largest and mean pairwise ROUGE-L of a set of answers. One instance a build, so that it warns once.

    Args:
        tokenizer: "rouge" (English, rouge_score's own) or "unicode" (any script); see [`tuna_trl.clients.rouge`].

    Raises:
        InputError: another tokenizer.
    """

    def __init__(self, tokenizer: str = "rouge") -> None:
        self._rouge = RougeL(tokenizer=tokenizer)
        self._warned = False

    def max_mean(self, texts: Sequence[str]) -> tuple[float, float]:
        """Largest and mean ROUGE-L F-measure over the pairs, both in [0, 1]; 0, 0 for fewer than two texts.

        A text without tokens scores 0 against anything, even itself, so that such answers always pass for diverse; the
        first one met raises a `UserWarning`. With "rouge" that is a text outside a-z and 0-9 (Chinese, say), with
        "unicode" one without letters and digits (emoji).
        """
        if not self._warned and any(text.strip() and not self._rouge.tokens(text) for text in texts):
            self._warned = True
            reads = "a-z and 0-9" if self._rouge.tokenizer == "rouge" else "letters and digits"
            way_out = " Set the tokenizer of the diversity check to 'unicode'." if reads.startswith("a-z") else ""
            warnings.warn(
                f"Some responses have no ROUGE-L tokens (the tokenizer {self._rouge.tokenizer!r} reads {reads} only), "
                f"so the diversity check takes them for diverse whatever they say.{way_out}",
                UserWarning,
                stacklevel=2,
            )
        return self._rouge.pairwise_max_mean(texts)
