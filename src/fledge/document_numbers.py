"""The numbers of the documents of a packed row, where documents may share their beginning.

A document has a number from 1, padding has 0. Where several documents begin with the same tokens, these stand in the row once:
a trunk with the number n, and after it the rest of each document as a branch, with the number n + b · BRANCH for b = 1, 2, …
A position attends to the earlier positions of its own number and of its trunk's.
"""

from typing import Any

BRANCH = 2**32  # more than the documents of any row


def trunk(documents: Any) -> Any:
    """The number of each document's trunk, of one number or of a tensor; of a document that is no branch, its own number."""
    return documents & (BRANCH - 1)


def sees(own: Any, seen: Any) -> Any:
    """Whether a position of the document `own` attends to earlier ones of the document `seen`: it is the same one, or its
    trunk. Of two numbers or of tensors."""
    return (own == seen) | (trunk(own) == seen)
