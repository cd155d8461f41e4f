"""A plan for new images within minutes: which layers matter to them, probed by a short fine-tuning.

    python -m experiments.suggest --images my_images
    python -m experiments.suggest --images train_images/target_domain --compare

A source is fine-tuned for some iterations. Then the Fisher information of each kernel, under the loss of its
own network, says how much the layer matters to the new images (AdAM, Zhao et al. 2022, asks it of single
kernels). What matters most is frozen, what matters least is fine-tuned. --compare sets this beside the plans
that results.jsonl has measured. They do not agree (docs/suggest.md), so the command that is printed at the
end has the plan that has drawn best.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transfer.plan import Named, Plan, Split, plan
from transfer.settings import Batch, Count, Seed, check, command, command_line, user_errors

if TYPE_CHECKING:
    from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
BEST = Split(0, 0, 5), Split(2, 0, 3)  # drew best of the six scripts' plans (docs/decisions.md)
KEPT = {"freeze": 1.0, "finetune": 0.0, "reinitialise": -1.0}  # how much of a kernel stays
RESCALED = 0.5  # under any of the other policies
MEASURES = ("fisher", "ratio")


@dataclass(frozen=True)
class Settings:
    """What is probed, and for how long."""

    images: Path = Path("train_images/target_domain")  # the new images: a folder or a zip
    source: Path = Path("pretrained_model/wgan_64.safetensors")  # what is to be carried over
    iterations: Count = 100  # of the short fine-tuning
    batch_size: Batch = 16  # of it
    samples: Count = 256  # images, real and generated each, that are asked
    seed: Seed = 0
    device: str | None = None  # cuda or mps where there is such a GPU, else cpu
    out: Path = Path("target_domain/suggest")  # where the probe's run goes
    compare: bool = False  # with the plans that results.jsonl has measured on images of this name
    dry_run: bool = False  # say what would be done, and stop


@dataclass(frozen=True)
class Importance:
    """What a layer's kernel means to the new images, each as a share of its network's.

    Attributes:
        fisher: the mean over its numbers of the squared gradient of one image's loss.
        ratio: the norm of that gradient over the kernel's, the cheap alternative.
    """

    fisher: float
    ratio: float


def importances(network: nn.Module, losses: Iterable[Tensor]) -> list[Importance]:
    """The importance of each layer of a network, from its input on; losses are of one image each."""
    import torch

    from transfer.plan import layers_of

    kernels = [layer.kernel.weight for layer in layers_of(network)]
    squares, count = [0.0] * len(kernels), 0
    for loss in losses:
        for number, gradient in enumerate(torch.autograd.grad(loss, kernels)):
            squares[number] += float(gradient.square().sum())
        count += 1
    squares = [square / count for square in squares]
    fisher = [square / kernel.numel() for square, kernel in zip(squares, kernels, strict=True)]
    ratio = [
        math.sqrt(square) / float(kernel.detach().norm())
        for square, kernel in zip(squares, kernels, strict=True)
    ]
    return [Importance(f / sum(fisher), r / sum(ratio)) for f, r in zip(fisher, ratio, strict=True)]


def probe(settings: Settings) -> dict[str, list[Importance]]:
    """Fine-tune everything for a while; the importance of the layers of G and of D."""
    import torch

    import wgan_64_finetune as script
    from transfer.engine import choose_device
    from transfer.images import Images
    from transfer.shared import Source, carry

    given = {
        name: getattr(settings, name) for name in ("images", "source", "batch_size", "seed", "device", "out")
    }
    often = settings.iterations
    run = script.main(script.Settings(**given, iterations=often, log_every=often, sample_every=often))
    device, source = choose_device(settings.device), Source.read(run)
    images = Images.load(settings.images, device)
    G = script.Generator(source.latent, source.width).to(device)
    D = script.Discriminator(source.width, norm=source.norm).to(device)
    carry(G, source, "G")
    carry(D, source, "D")
    G.eval()  # normalisation by the running statistics, since images come one at a time
    D.eval()
    latents = torch.randn(settings.samples, 1, source.latent, device=device)
    of_G = (-D(G(z)).sum() for z in latents)
    of_D = ((D(G(z).detach()) - D(images.batch(1))).sum() for z in latents)
    return {"G": importances(G, of_G), "D": importances(D, of_D)}


def proposal(layers: list[Importance]) -> Named:
    """Of five layers the one that matters most is frozen, the next two are rescaled, two are fine-tuned.

    As many of each as the dissertation's G(1,2,2) has; AdAM keeps the half that matters most, modulated.
    """
    order = sorted(range(len(layers)), key=lambda number: layers[number].fisher, reverse=True)
    frozen, tuned = len(layers) // 5, 2 * len(layers) // 5
    names = ["freeze"] * frozen + ["adafm"] * (len(layers) - frozen - tuned) + ["finetune"] * tuned
    return Named(name for _, name in sorted(zip(order, names, strict=True)))


def kept(layers: list[Importance], policies: Iterable, measure: str) -> float:
    """How much of a network's importance a plan keeps, 0 (fine-tuned) to 1 (frozen)."""
    stays = (KEPT.get(policy.name, RESCALED) for policy in policies)
    return sum(share * getattr(layer, measure) for share, layer in zip(stays, layers, strict=True))


def measured(images: str, iterations: int) -> dict[tuple[Plan, Plan], float]:
    """KID x 1000 of the plans of the six scripts after so many iterations, the mean of seeds."""
    from experiments.judge import merit
    from experiments.selection import runs

    usual = {"learning_rate": 2e-4, "batch_size": 16, "critic_steps": 5, "augment": "diffaugment"}
    usual |= {"optimizer": "rmsprop", "rescale": "adafm"}
    found: dict[tuple[Plan, Plan], list[float]] = {}
    for line in runs():
        own = line["settings"]
        if not line["script"].startswith("wgan_64_") or line["script"].endswith("regularised"):
            continue
        if line["images"]["name"] != images or not str(own["source"]).startswith("wgan_64."):
            continue
        if all(own.get(key, value) == value for key, value in usual.items()):
            key = plan(*own["G"]), plan(*own["D"])
            found.setdefault(key, []).extend(merit(of) for of in line["scores"] if of["step"] == iterations)
    return {key: sum(values) / len(values) for key, values in found.items() if values}


def compared(images: str) -> dict[str, dict[tuple[Plan, Plan], float]]:
    """All measured orders of four plans or more on images of this name, by what they are of."""
    runs = {f"{iterations:,} iterations": measured(images, iterations) for iterations in (500, 1000, 2000)}
    return {title: kids for title, kids in (runs | swept(images)).items() if len(kids) > 3}


def swept(images: str) -> dict[str, dict[tuple[Plan, Plan], float]]:
    """KID x 1000 of the plans of sweeps over images of this name, at each rung."""
    from experiments import lines
    from experiments.judge import FIRST

    latest = {line["name"]: line for line in lines.read("sweep") if line["images"] == images}
    found: dict[str, dict[tuple[Plan, Plan], float]] = {}
    for name, line in latest.items():
        for rung in map(str, line["rungs"] if line["judge"] == FIRST else ()):
            kids = found[f"{int(rung):,} iterations of {name}"] = {}
            for own in line["plans"]:  # the best first, where policies or settings share a plan
                if {"G", "D"} <= own.keys() and math.isfinite(own["kid"].get(rung, math.inf)):
                    kids.setdefault((plan(*own["G"]), plan(*own["D"])), 1000 * own["kid"][rung])
    return found


def agreement(
    found: dict[str, list[Importance]],
    kids: dict[tuple[Plan, Plan], float],
    measure: str,
    networks: str = "GD",
) -> tuple[float, float]:
    """Spearman's rank correlation of what plans keep and their KID, with its p: a true measure gives -1."""
    from scipy.stats import spearmanr

    told = [
        ("G" in networks) * kept(found["G"], G.generator(), measure)
        + ("D" in networks) * kept(found["D"], D.discriminator(), measure)
        for G, D in kids
    ]
    result = spearmanr(told, list(kids.values()))
    return float(result.statistic), float(result.pvalue)


def main(settings: Settings) -> tuple[Plan, Plan] | None:
    """Probe, print what each layer means and the plan to run, and return it; None after a dry run."""
    check(settings)
    if settings.dry_run:
        return print(
            f"would fine-tune {settings.source} on {settings.images} for {settings.iterations} iterations of"
            f" {settings.batch_size} images, and ask {settings.samples} images what each layer means to them"
        )
    found = probe(settings)
    print("   layer   Fisher  gradient/kernel  by importance alone")
    for network, layers in found.items():
        for number, (layer, policy) in enumerate(zip(layers, proposal(layers), strict=True), 1):
            print(f"{network}  {number:5}{layer.fisher:9.3f}{layer.ratio:17.3f}  {policy}")
    for title, kids in compared(settings.images.name).items() if settings.compare else ():
        for measure, networks in itertools.product(MEASURES, ("GD", "G", "D")):
            rho, p = agreement(found, kids, measure, networks)
            print(f"{title}, {len(kids)} plans: {measure} of {networks} rho {rho:.2f}, p {p:.2f}")
    G, D = BEST
    print(
        "Keeping what matters most has not drawn better so far (docs/suggest.md), so take the plan that has"
        f" drawn best, G{G} D{D}; a critic that sees has it as its default, and draws better than the six"
        " scripts:"
    )
    print(command(ROOT / "methods" / "projected_critic.py", "--images", settings.images))
    print("or, without a network that knows photographs:")
    print(command(ROOT / "wgan_64_freeze_layers.py", "--G", *G, "--D", *D, "--images", settings.images))
    return G, D


if __name__ == "__main__":
    sys.argv[0] = "python -m experiments.suggest"
    with user_errors():
        main(command_line(Settings))
