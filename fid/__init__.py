"""Scores of generated images that can be trusted on few of them: python -m fid GENERATED REAL [REFERENCE]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fid.extractors import Extractor, load
    from fid.scores import Scores, score, scorer

__all__ = ["Extractor", "Scores", "load", "score", "scorer"]


def __getattr__(name: str) -> Any:
    """The public names, found when they are used: python -m fid --help need not wait for torch."""
    if name in ("Extractor", "load"):
        from fid import extractors as room
    elif name in ("Scores", "score", "scorer"):
        from fid import scores as room
    else:
        raise AttributeError(f"fid has no {name}")
    return getattr(room, name)
