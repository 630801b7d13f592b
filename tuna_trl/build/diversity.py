"""When several answers to one prompt are too alike: the ROUGE-L criterion of the Tuna paper's sampler (section 3.2).

Decides nothing about what to do then (`build.sampling` draws again, hotter) and knows no model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ..clients.rouge import RougeL


class RougeDiversity:
    """Largest and mean pairwise ROUGE-L of a set of answers. One instance a build, so that it warns once."""

    def __init__(self) -> None:
        self._rouge = RougeL()
        self._warned = False

    def max_mean(self, texts: Sequence[str]) -> tuple[float, float]:
        """Largest and mean ROUGE-L F-measure over the pairs, both in [0, 1]; 0, 0 for fewer than two texts.

        A text outside a-z and 0-9 (Chinese, say) has no ROUGE tokens and scores 0 against anything, even itself, so
        that such answers always pass for diverse; the first one met raises a `UserWarning`.
        """
        if not self._warned and any(text.strip() and not self._rouge.tokens(text) for text in texts):
            self._warned = True
            warnings.warn(
                "Some responses have no ROUGE-L tokens (ROUGE knows a-z and 0-9 only), so the diversity check takes "
                "them for diverse whatever they say. Build without `diversity` for such languages.",
                UserWarning,
                stacklevel=2,
            )
        return self._rouge.pairwise_max_mean(texts)
