"""The tab that mixes: a source and its targets, each by its share."""

from __future__ import annotations

from functools import partial

import gradio as gr

from demo.controls import Event, another, choices, on_click, redraw, seed_chooser
from demo.models import Shelf
from demo.pictures import figure, problem, row
from transfer import drawing

SLIDERS = 4  # targets that can be mixed at once
COLUMNS = 6  # pictures of a row
FRAMES = 12  # of the animation, each way
NONE = (
    'There is nothing to mix yet. A target comes from a run: open the tab Train, choose "Scale and shift",'
    " and come back when the run has saved for the first time."
)


def name_of(title: str) -> str:
    """A target's title without what stands in brackets."""
    return title.partition(" (")[0]


def rows(shelf: Shelf, names: list[str], seed: int, *shares: float) -> str:
    """HTML of the source, the mix, and each target alone. Raises UserError."""
    titles = shelf.look().targets
    if not names:
        return problem("Choose at least one target." if titles else NONE)
    names, shares = names[:SLIDERS], shares[: len(names)]
    source = shelf.source_of(shelf.adapter(names[0]))
    z = drawing.latents(source, COLUMNS, seed)
    said = " + ".join(
        f"{share:g} × {name_of(titles.get(n, n))}" for n, share in zip(names, shares, strict=True)
    )
    shown = [
        figure(
            shelf.once(f"source {seed}", names[0], lambda: row(source, z)), f"The source: {source.path.stem}"
        ),
        figure(
            row(shelf.mixed(names, shares), z), f"Your mix: {source.path.stem} + {said}", f"mix-seed{seed}"
        ),
    ]
    for name in names:
        alone = shelf.once(f"alone {seed}", name, lambda name=name: row(shelf.mixed([name], [1]), z))
        shown.append(figure(alone, f"The target: {name_of(titles.get(name, name))}, share 1"))
    return "".join(shown)


def animation(shelf: Shelf, names: list[str], seed: int, *shares: float) -> str:
    """HTML of the way from the source to the mix and back. Raises UserError."""
    if not names:
        return problem("Choose at least one target.")
    names, shares = names[:SLIDERS], shares[: len(names)]
    z = drawing.latents(shelf.source_of(shelf.adapter(names[0])), COLUMNS, seed)
    there = [
        row(shelf.mixed(names, [share * frame / FRAMES for share in shares]), z, COLUMNS // 2)
        for frame in range(FRAMES + 1)
    ]
    return figure([*there, *there[-2:0:-1]], "from the source to your mix and back", f"mix-seed{seed}")


def build(shelf: Shelf) -> list[Event]:
    """Put the tab's content together; returns what is to happen whenever it is opened."""
    found = shelf.look().targets

    def slider(number: int, names: list[str], titles: dict[str, str]) -> gr.Slider:
        there = number < len(names)
        label = f"Share of {name_of(titles.get(names[number], names[number]))}" if there else "Share"
        return gr.Slider(label=label, visible=there)

    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            gr.Markdown(
                "A **target** is what training on other images has changed in its **source**. Drag its"
                " **share** of the mix: **0** is the source, **1** the target, and above 1 it is overdone."
                " The changes of several targets add up."
            )
            targets = gr.Dropdown(
                choices(found), value=[*found][:1], multiselect=True, max_choices=SLIDERS, label="Targets"
            )
            shares = []
            for number in range(SLIDERS):
                label = f"Share of {name_of(next(iter(found.values())))}" if found and not number else "Share"
                shares.append(
                    gr.Slider(
                        -0.5,
                        1.5,
                        0 if number else 0.5,
                        step=0.05,
                        label=label,
                        visible=bool(found) and not number,
                    )
                )
            seed = seed_chooser()
            another(seed, "Other latents")
            make = gr.Button("Make an animation")
        with gr.Column(scale=3, min_width=280, elem_classes="pictures"):
            shown = gr.HTML(elem_classes="shown")
            moving = gr.HTML(elem_classes="shown small")

    def sliders(names: list[str]) -> list[gr.Slider]:
        titles = shelf.look().targets
        return [slider(number, names, titles) for number in range(SLIDERS)]

    targets.change(sliders, targets, shares, api_visibility="private", show_progress="hidden")
    inputs = [targets, seed, *shares]
    on_click(make, inputs, partial(animation, shelf), moving)
    renew = (lambda: gr.Dropdown(choices(shelf.look().targets)), None, targets)
    return [renew, redraw(inputs, partial(rows, shelf), shown)]
