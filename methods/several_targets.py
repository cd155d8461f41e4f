"""Several target domains in one model: a generator and a critic for each, which share what they learn alike.

    python -m methods.several_targets --images my_domains

Each sub-folder of the images is a label. A label's generator and critic are ordinary ones. Frozen and
fine-tuned layers are the same layers for all labels. What modulates a rescaled layer, the batch
normalisations and the last layers of the critics are a label's own. The critics of methods.projected_critic
teach one label an iteration, in turn. Writes samples, a row a label, and checkpoints to a new folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transfer import UserError
from transfer.plan import Plan, Split
from transfer.policies import FrozenNorm, Rescale
from transfer.settings import (
    Augmentation,
    Batch,
    Count,
    Decay,
    Extractor,
    Positive,
    Seed,
    Share,
    Weight,
    Whole,
    check,
    command_line,
    user_errors,
)


@dataclass(frozen=True)
class Settings:
    """Edit these constants, or override any of them on the command line."""

    source: Path = Path("pretrained_model/projected_64.safetensors")  # the pre-trained networks
    images: Path = Path("train_images/target_domain")  # a folder or a zip; each sub-folder is a target domain
    G: Plan = Split(0, 0, 5)  # G(i, j, k): freeze the last i layers, rescale j, fine-tune the first k
    D: Plan = Split(2, 0, 3)  # D(i, j, k): freeze the first i layers, rescale j, fine-tune the last k
    rescale: Rescale = "adafm"  # the policy of the rescaled layers
    frozen_norm: FrozenNorm = "source"  # frozen layers use the source's statistics or the batch's
    features: Extractor | Literal["vgg16"] = "efficientnet_lite1"  # what the heads see through; never a judge
    stretch: Count = 128  # pixels that images are stretched to before that network
    channels: Count = 128  # of the heads
    iterations: Count = 4_000  # generator updates of all labels together, one label an iteration
    batch_size: Batch = 16  # images a step, real and generated each, of one label
    critic_steps: Count = 2  # updates of the critic of pixels before each generator update; of the heads one
    learning_rate: Positive = 4e-4  # of Adam, for the generator and the heads
    critic_learning_rate: Positive = 2e-4  # of RMSprop, for the critic of pixels
    clip: Positive = 0.01  # the effective kernels of the critic of pixels stay in [-clip, clip]
    lecam: Weight = 0.3  # weight of: each head's scores held to the other side's average (LeCam)
    blur: Weight = 2.0  # standard deviation in pixels of what the critics see, at the beginning ...
    fade: Count = 300  # ... and the iteration of a label at which it is gone
    rest: Weight = 0.6  # heads that lose less on a batch do not learn from it; who knows nothing loses 1
    pixels: Weight = 1.0  # gradient from the critic of pixels, in parts of that from the heads
    keep_heads: bool = True  # the source's heads go on, where it has them
    spread: bool = False  # heads see how far the images of a batch differ, too
    augment: Augmentation = "diffaugment"  # flip, slight and strong change the real images alone
    ema_decay: Decay = 0.999  # of the generators' moving average, which is what is sampled
    seed: Seed = 0
    device: str | None = None  # cuda or mps where there is such a GPU, else cpu
    fast: bool = True  # bf16, compiled kernels, CUDA graphs: what suits the device; else plain float32
    out: Path = Path("target_domain")  # where the run's folder is made
    log_every: Count = 50
    sample_every: Count = 100
    save_every: Count = 250
    score_every: Whole = 0  # scores every so many iterations and at the end; 0 for none
    reference: Path | None = None  # held-out images in the same sub-folders, never trained on
    hold_out: Share = 0.0  # share of the images, 0 to 0.5, that is set aside for scores and never trained on
    extractor: Extractor = "efficientnet_lite0"  # of the scores
    resume: Path | None = None  # a run's folder to go on with, or latest
    dry_run: bool = False  # print the plan, and stop


if __name__ == "__main__":
    settings = command_line(Settings)  # before torch is loaded, so that a wrong value is answered at once

import copy
import statistics
from dataclasses import replace
from functools import partial
from itertools import chain, zip_longest

import torch
from torch import nn

from fid import scorer
from methods.projected_critic import WON, Sight, lesson, networks, optimizers
from transfer.augment import SHARP
from transfer.engine import captured, choose_device, tune
from transfer.images import Images
from transfer.plan import layers_of, table
from transfer.record import Run
from transfer.regularisers import Balance, LeCam
from transfer.shared import Source
from transfer.weights import Average, Clip, learning
from wgan_64 import Discriminator, Generator  # noqa: F401, as which a label is drawn

ROW = 8  # images of a label side by side in a grid, before those of the next


def several(network, labels, own=()):
    """A network for each label: this one, and others that share its layers, but for those called in own.

    Of a layer whose policy modulates its kernel they share the kernel alone. Batch normalisations are each
    network's own.
    """
    found = nn.ModuleList([network, *(copy.deepcopy(network) for _ in labels[1:])])
    for other in list(found)[1:]:
        for name, kernel in ((layer.name, layer.kernel) for layer in layers_of(network)):
            if name not in own and kernel.policy.modulates:
                other.get_submodule(name).weight = kernel.weight
            elif name not in own:
                other.set_submodule(name, kernel)
    found.arguments = {**getattr(network, "arguments", {}), "labels": list(labels)}
    return found


def own_numbers(networks):
    """How many of the numbers that learn are a label's alone."""
    count = sum(parameter.numel() for parameter in learning(networks[0]))
    more = sum(parameter.numel() for parameter in learning(networks)) - count
    return more // (len(networks) - 1) if len(networks) > 1 else count


def labels_of(images, path):
    """The labels of images: the names of the sub-folders, or of the folder itself where there are none.

    Raises:
        UserError: when some are in no sub-folder, a sub-folder holds none, or too few of one are set aside.
    """
    if not images.kinds:
        loose = [name for name in images.names if "/" not in name]
        if len(loose) < len(images):
            raise UserError(
                f"{len(loose)} of the images in {path} are in no sub-folder, such as {loose[0]!r}: put each"
                " into the sub-folder of its label"
            )
        return (path.stem,)
    if path.is_dir():
        folders = {each.name for each in path.iterdir() if each.is_dir()}
    else:
        folders = {name.partition("/")[0] for name in images.unreadable if "/" in name}
    folders = {name for name in folders if not name.startswith((".", "__MACOSX"))}
    for name in sorted(folders - {*images.kinds}):
        raise UserError(
            f"{path / name} holds no image that can be read, and each sub-folder is a label: put images into"
            " it, or remove it"
        )
    for name, each in zip(images.kinds, by_label(images), strict=True):
        if each.held_out is not None and len(each.held_out) < 2:
            raise UserError(
                f"hold_out sets aside {len(each.held_out)} images of {name}, and scores need two: give a"
                " larger share, up to 0.5, or more images"
            )
    return images.kinds


def by_label(images):
    """The images of each label."""
    return [images.kind(place) for place in range(len(images.kinds))] or [images]


def in_rows(images):
    """The same images, a row of each label in turn, as they are to be shown."""
    if not images.kinds:
        return images
    places = [(images.labels == place).nonzero().flatten() for place in range(len(images.kinds))]
    rows = chain.from_iterable(zip_longest(*(each.split(ROW) for each in places)))
    return images.some(torch.cat([row for row in rows if row is not None]))


class Judged:
    """The scores of each label, and their means, by which the best checkpoint is chosen."""

    def __init__(self, scores):
        self.scores = scores

    def as_dict(self):
        """The means at the top and, against held-out images, in heldout; each label's own in labels."""
        labels = {label: scores.as_dict() for label, scores in self.scores.items()}
        first, *_ = labels.values()
        heldout = [each["heldout"] for each in labels.values()]
        kept = {key: first[key] for key in ("extractor", "resize", "n_generated", "seed")}
        means = self.means(labels.values()) | {"heldout": self.means(heldout) if all(heldout) else None}
        return means | kept | {"labels": labels}

    @staticmethod
    def means(found):
        means = {key: statistics.fmean(each[key] for each in found) for key in ("fid", "kid")}
        return means | {"n_real": sum(each["n_real"] for each in found)}

    def __str__(self):
        return "\n".join(f"{label}: {scores}" for label, scores in self.scores.items())


def judge_of(settings, images, own, labels):
    """What scores a run's images, as they lie in its grids; see fid.scorer. None when they are not scored.

    Raises:
        UserError: when the held-out images have other labels.
    """
    if settings.score_every and settings.reference is not None and images.kinds:
        reference = Images.load(settings.reference, images.pixels.device)
        if reference.kinds != images.kinds:
            raise UserError(
                f"{settings.reference} has the sub-folders {', '.join(reference.kinds) or '(none)'}, and"
                f" {settings.images} has {', '.join(images.kinds)}: give held-out images of the same labels"
            )
        own = [replace(mine, held_out=its) for mine, its in zip(own, by_label(reference), strict=True)]
    scorers = [scorer(settings, each, seen=(settings.features,)) for each in own]

    def score(pixels):
        blocks = [block.chunk(len(labels)) for block in pixels.split(ROW * len(labels))]
        drawn = [torch.cat(rows) for rows in zip(*blocks, strict=True)]
        return Judged({label: scored(x) for label, scored, x in zip(labels, scorers, drawn, strict=True)})

    return score if settings.score_every else None


def main(settings: Settings) -> Path | None:
    """Train, and return the run's folder; None after a dry run."""
    check(settings)
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    source = Source.read(settings.source)
    sight = Sight(settings, device)
    G, D, heads = networks(settings, source, sight.shapes, device)
    images = Images.load(settings.images, device).hold_out(settings.hold_out, settings.seed)
    labels, own = labels_of(images, settings.images), by_label(images)
    print(f"{images} in {settings.images}, G{settings.G} D{settings.D}, on {device}")
    print(", ".join(f"{label}: {each}" for label, each in zip(labels, map(len, own), strict=True)))
    last = layers_of(D)[-1].name
    G, D = several(G, labels), several(D, labels, own=(last,))
    heads = several(heads, labels, own=[f"{place}.last" for place in range(len(heads))])
    clips = [Clip(each, settings.clip, carried=True) for each in D]
    if settings.dry_run:
        print(table(G=G[0], D=D[0]))
        own_ones = f"{own_numbers(G):,} in G and {own_numbers(D):,} in D"
        return print(f"of the numbers that learn each label has its own {own_ones}")

    lecam = nn.ModuleList(nn.ModuleList(LeCam(settings.lecam, device) for _ in each) for each in heads)
    balance = nn.ModuleList(Balance().to(device) for _ in labels)
    average = Average(G, settings.ema_decay)
    learners = {"G": G, "D": D, "heads": heads, "lecam": lecam, "balance": balance}
    teachers = optimizers(settings, G, D, heads, device)
    tuned = tune(*G, *D, iterations=settings.iterations, fast=settings.fast)
    score = judge_of(settings, images, own, labels)

    def draw(z):
        rows = zip(*(network(z).split(ROW) for network in average.network), strict=True)
        return torch.cat([*chain.from_iterable(rows)])

    parts = learners | teachers | {"average": average}
    digits = f"G{settings.G.digits}-D{settings.D.digits}"
    run = Run(settings, __file__, in_rows(images), parts, title=digits, draw=draw, score=score)
    lessons = []
    for at, (mine, clip) in enumerate(zip(own, clips, strict=True)):
        a_labels = {name: part[at] for name, part in learners.items()}
        how = settings, mine, sight, tuned[at], tuned[at + len(labels)], clip
        lessons.append(lesson(*how, **a_labels, **teachers))
    sharp = [captured(partial(each, 0.0), device, settings.fast) for each in lessons]
    losses = {}
    for step in run.steps():
        at = step % len(labels)
        sigma = settings.blur * max(0.0, 1 - step / len(labels) / settings.fade)
        now = sharp[at]() if sigma < SHARP else lessons[at](sigma)
        average.update(G, step)
        losses |= {f"{key}/{labels[at]}": value for key, value in now.items()}
        run.losses(**losses)
        if step % settings.log_every == 0:
            for key, value in losses.items():
                if key.startswith("heads/") and value < WON:
                    label = key.removeprefix("heads/")
                    run.warn(f"the heads of {label} have won: the generator learns little from them")
    return run.folder


if __name__ == "__main__":
    with user_errors():
        main(settings)
