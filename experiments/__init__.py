"""One file for each table or figure; results.jsonl holds what was measured, docs/results.md shows it."""
