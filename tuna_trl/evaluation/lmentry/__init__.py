"""LMentry (Efrat et al., arXiv 2211.02069): 25 elementary language tasks, scored by rules of our own.

The benchmark's repository has no licence, so neither its data nor its code is here: the data is read from the user's
own clone, and the scorers were written from the description of the tasks (`docs/evaluation.md` has the agreement).
"""
