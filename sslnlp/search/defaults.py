"""What the commands and the index agree on where nobody says otherwise."""

RERANK_DEPTH = 100
"""Documents of the first stage that the reranker reads."""
RERANK_WEIGHT = 0.5
"""The reranker's say in the order of these."""
