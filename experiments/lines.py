"""The lines of results.jsonl: what has been measured, one line each, and Markdown tables of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")


def read(table: str) -> list[dict[str, Any]]:
    """The lines of one kind: "scale", "resume", "run" or "superseded" (a run whose code is gone)."""
    texts = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return [line for line in map(json.loads, texts) if line["table"] == table]


def append(line: dict[str, Any]) -> None:
    """Add a line, whose "table" says its kind."""
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) + "\n"
