"""The scale of the scores: what equal images score, what other images score, and where the models lie.

    python -m experiments.scale --faces FACES.zip --target TARGET_96.zip --reference HELD_OUT.zip \\
        --transfers target_domain/0001-...

--kind avatars says that --faces and --model show those. Two halves of the held-out images give the floor
that no generator can be under, and as many of them as there are samples give what a row of the tables would
have whose generator had nothing left to learn. The source's images give the ceiling from which a transfer
starts, and the training images themselves, as they are and in as many augmented versions as there are
samples, the score of a generator that has learnt them by heart. Each row is one line of
experiments/results.jsonl and is skipped when it is there; python -m experiments report writes
docs/results.md from the lines.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import fid
from experiments import lines
from experiments.runs import version
from transfer.augment import Augment
from transfer.checkpoints import Checkpoints
from transfer.drawing import draw
from transfer.folder import hardware, versions
from transfer.images import Images, to_uint8
from transfer.settings import Augmentation, Extractor, command_line, user_errors
from transfer.shared import Source

UNSEEN = 1000  # the last images of the source, which the model has not been trained on
CEILING = 3000  # source images that are scored as if they had been generated
DRAWN = 1000  # samples that are scored in the tables, and as many new images in their place


@dataclass(frozen=True)
class Settings:
    """Where the images and the models are."""

    faces: Path  # the source domain: a folder or a zip, of which the last 1,000 were not trained on
    target: Path  # the images of the target domain that are trained on
    reference: Path  # held-out images of the target domain
    model: Path = Path("pretrained_model/wgan_64.safetensors")  # the pre-trained model
    transfers: tuple[Path, ...] = ()  # runs that were trained on the target images
    kind: str = "faces"  # what the source domain shows, for the rows' names
    extractor: Extractor = "efficientnet_lite0"
    seed: int = 0


def rows(settings: Settings) -> dict[str, Callable]:
    """What is to be measured, by the row's name: each gives (generated, real, reference)."""
    held_out, targets = Images.load(settings.reference).pixels, Images.load(settings.target)
    target = targets.pixels
    faces = Images.load(settings.faces).pixels
    unseen = faces[-UNSEEN:]

    def drawn(model: Path):
        return draw(Source.read(model), DRAWN, settings.seed, held_out.device)

    def new():
        chosen = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(settings.seed))
        return held_out[chosen[:DRAWN]], held_out[chosen[DRAWN:]], None

    def augmented(name: Augmentation):
        torch.manual_seed(settings.seed)
        return to_uint8(Augment(name).real(targets.batch(DRAWN))), target, held_out

    model, kind = version(settings.model), settings.kind
    found = {
        "held-out, one half, against the other half": lambda: (held_out[::2], held_out[1::2], None),
        "held-out, as many as samples, against the others": new,
        "training images against held-out ones": lambda: (target, held_out, None),
        f"source {kind} against held-out images": lambda: (faces[:CEILING], held_out, None),
        f"source {kind} against unseen {kind}": lambda: (faces[:UNSEEN], unseen, None),
        f"{model} against unseen {kind}": lambda: (drawn(settings.model), unseen, None),
        f"{model} against training images": lambda: (drawn(settings.model), target, held_out),
    }
    for name in ("slight", "strong"):
        found[f"training images in {name} augmentation"] = lambda name=name: augmented(name)
    for run in settings.transfers:
        found[f"{title(run)} against training images"] = lambda run=run: (drawn(run), target, held_out)
    return found


def title(run: Path) -> str:
    """A run's script, split, iterations and source, in words."""
    step = int(Checkpoints(run).found()[0].stem)
    source = Path(Source.read(run).settings["source"])
    return f"{run.name.partition('-')[2]} after {step:,} iterations from {version(source)}"


def main(settings: Settings) -> None:
    """Measure what is missing."""
    extractor = fid.load(settings.extractor)
    done = {(line["row"], line["extractor"]) for line in lines.read("scale")}
    for name, images in rows(settings).items():
        if (name, extractor.name) in done:
            continue
        began = time.monotonic()
        scores = fid.score(*images(), extractor=extractor, size=64, seed=settings.seed)
        line = {"table": "scale", "row": name, **scores.as_dict(), "hardware": hardware(extractor.device)}
        line |= {"versions": versions(), "seconds": round(time.monotonic() - began, 1)}
        lines.append(line)
        print(f"{name}: {scores}")


def markdown() -> str:
    """The scale's part of docs/results.md."""
    head = (
        "",
        "generated",
        "real",
        "FID",
        "KID x 1000",
        "precision",
        "recall",
        "density",
        "coverage",
        "near copies",
    )
    table = []
    found = lines.read("scale")
    for line in found:
        table.append(cells(line["row"], line["n_generated"], line, line["memorisation"].get("near_copies")))
        if line["heldout"]:
            table.append(cells("... against held-out images", line["n_generated"], line["heldout"], None))
    text = lines.markdown(head, table)
    extractors = sorted({f"{line['extractor']}, {line['resize']}, seed {line['seed']}" for line in found})
    machines = sorted({line["hardware"] for line in found})
    return (
        "## The scale of the scores\n\nWritten by `python -m experiments.scale`.\n\n"
        f"Extractor: {'; '.join(extractors)}. Hardware: {'; '.join(machines)}.\n\n"
        + lines.folded("The scores", text)
    )


def cells(name: str, generated: int, scores: dict, copies: float | None) -> tuple[str, ...]:
    """A row of the table."""
    numbers = [scores[key] for key in ("precision", "recall", "density", "coverage")] + [copies]
    shares = ("" if number is None else f"{number:.2f}" for number in numbers)
    return (
        name,
        f"{generated:,}",
        f"{scores['n_real']:,}",
        f"{scores['fid']:.1f}",
        f"{1e3 * scores['kid']:.1f}",
        *shares,
    )


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
