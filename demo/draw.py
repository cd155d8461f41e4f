"""The tab that draws: one model, the latents of a seed, truncation."""

from __future__ import annotations

import math
from functools import partial

import gradio as gr

from demo.controls import Event, another, model_chooser, redraw, seed_chooser
from demo.models import Shelf, label_of
from demo.pictures import figure, row
from transfer import drawing


def pictures(shelf: Shelf, name: str, seed: int, count: int, truncation: float) -> str:
    """HTML of so many pictures. Raises UserError."""
    source = shelf.model(name)
    z = truncation * drawing.latents(source, count, seed)
    own = source.path.stem if source.path.suffix == ".safetensors" else source.path.parent.parent.name
    title = "-".join(filter(None, (own, label_of(name))))
    return figure(row(source, z, math.ceil(math.sqrt(count))), f"{title}, seed {seed}", f"{title}-seed{seed}")


def build(shelf: Shelf) -> list[Event]:
    """Put the tab's content together; returns what is to happen whenever it is opened."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            gr.Markdown(
                "A **generator** draws a picture from a list of random numbers, its **latent**. The seed"
                " decides which numbers: the same seed always draws the same pictures."
            )
            model, renew = model_chooser(shelf)
            seed = seed_chooser()
            another(seed, "Draw others")
            count = gr.Radio([4, 16, 64], value=16, label="Pictures")
            truncation = gr.Slider(
                0.2,
                1.4,
                1,
                step=0.05,
                label="Truncation",
                info="Below 1 the pictures are calmer and more alike; far below they fade.",
            )
        with gr.Column(scale=3, min_width=280, elem_classes="pictures"):
            shown = gr.HTML(elem_classes="shown narrow")
    inputs = [model, seed, count, truncation]
    return [renew, redraw(inputs, partial(pictures, shelf), shown)]
