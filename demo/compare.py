"""The tab that compares: the same latents through several models, one row each."""

from __future__ import annotations

from functools import partial

import gradio as gr

from demo.controls import Event, another, choices, redraw, seed_chooser
from demo.models import Shelf
from demo.pictures import figure, problem, row, told
from transfer import drawing

COLUMNS = 8  # pictures of a row


def rows(shelf: Shelf, names: list[str], seed: int, truncation: float) -> str:
    """HTML of one row for each model; a broken one's row says what is wrong with it."""
    titles = shelf.look().models

    def one(name: str) -> str:
        source = shelf.model(name)
        z = truncation * drawing.latents(source, COLUMNS, seed)
        return figure(row(source, z), titles.get(name, name), f"row-{source.path.stem}-seed{seed}")

    return "".join(told(one)(name) for name in names) or problem("Choose at least one model.")


def build(shelf: Shelf) -> list[Event]:
    """Put the tab's content together; returns what is to happen whenever it is opened."""
    found = shelf.look().models
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            gr.Markdown(
                "Every model draws from the same latents, so the pictures of one column belong together: see"
                " what training on other images has made of a face."
            )
            models = gr.Dropdown(choices(found), value=[*found][:3], multiselect=True, label="Models")
            seed = seed_chooser()
            another(seed, "Other latents")
            truncation = gr.Slider(0.2, 1.4, 1, step=0.05, label="Truncation")
        with gr.Column(scale=3, min_width=280, elem_classes="pictures"):
            shown = gr.HTML(elem_classes="shown")
    renew = (lambda: gr.Dropdown(choices(shelf.look().models)), None, models)
    return [renew, redraw([models, seed, truncation], partial(rows, shelf), shown)]
