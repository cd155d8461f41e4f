"""The tables of the dissertation as data, their runs, and the page; results.jsonl holds what was measured."""
