"""The whole story on one small machine: a corpus every installation carries, and the run over it."""

from __future__ import annotations
