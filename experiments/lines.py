"""The lines of results.jsonl: what has been measured, one line each, and Markdown tables of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfer import UserError

RESULTS = Path(__file__).with_name("results.jsonl")


def read(table: str) -> list[dict[str, Any]]:
    """The lines of one kind: "scale", "resume", "run" or "superseded" (a run whose code is gone).

    Raises:
        UserError: naming the line that cannot be read, such as one that was cut off.
    """
    texts = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    found = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if line["table"] == table:
                found.append(line)
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"line {number} of {RESULTS} is cut off or damaged: take it out, and its run is made again"
            ) from None
    return found


def append(line: dict[str, Any]) -> None:
    """Add a line, whose "table" says its kind."""
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def folded(summary: str, text: str) -> str:
    """Markdown that is opened by a click."""
    return f"<details><summary>{summary}</summary>\n\n{text.rstrip()}\n\n</details>\n\n"
