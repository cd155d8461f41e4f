"""Whether a device computes what the CPU does: the checks of benchmarks.gpu, each a small function."""

from __future__ import annotations

import importlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import wgan_64
from benchmarks.timing import gradients, synthetic, trained
from experiments.resume import equal
from fid import load, score
from fid.extractors import float32
from transfer.adapters import Adapter, applied
from transfer.augment import Augment
from transfer.checkpoints import Checkpoints
from transfer.drawing import draw
from transfer.engine import Reals, Tuned
from transfer.images import Images
from transfer.plan import Split
from transfer.shared import Source, share
from transfer.weights import Clip

Found = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where the checks compute, and how much."""

    device: torch.device
    width: int
    batch: int
    seconds: float  # that a speed is taken over

    def images(self) -> Images:
        images = synthetic(96)
        return replace(images, pixels=images.pixels.to(self.device))

    def source(self, folder: Path) -> Path:
        """A file of random networks, which critics of all scripts can start from."""
        torch.manual_seed(0)
        G, D = wgan_64.Generator(width=self.width), wgan_64.Discriminator(self.width)
        Clip(D, 0.01)()
        path = folder / "source.safetensors"
        share(path, {"G": G.state_dict(), "ema": G.state_dict(), "D": D.state_dict()}, {})
        return path

    def settings(self, of: str, folder: Path, **more: Any) -> Any:
        """A script's settings: nothing is written often, all parts learn, and that from the beginning."""
        given = dict.fromkeys(("log_every", "sample_every", "save_every"), 1_000_000) | {"iterations": 8}
        given |= {"source": self.source(folder), "out": folder, "device": str(self.device)}
        given |= {"width": self.width, "batch_size": self.batch, "autoencoder": 1, "rest": 0.0, "fade": 2}
        given |= dict.fromkeys(("l2_sp", "distillation", "ewc", "consistency", "lecam"), 0.1) | {"adapt": 16}
        Settings_ = importlib.import_module(of).Settings
        fields = Settings_.__dataclass_fields__
        return Settings_(**{key: value for key, value in (given | more).items() if key in fields})

    def train(self, of: str, steps: Iterable[int] = (1, 2), graph: bool = False, **more: Any) -> Found:
        """What a script's main has trained after some iterations, see timing.trained; with a graph or not."""
        script = importlib.import_module(of)
        whole = nullcontext() if graph else patch.object(script, "captured", lambda f, *_: f, create=True)
        with tempfile.TemporaryDirectory() as folder, whole:
            return trained(script, self.settings(of, Path(folder), **more), self.images(), steps)


# ----------------------------------------------------------------------------------------------------------
# What is right. A check of a script, or of what all share, gives lines: "ok", or why not, and how far off.


class SameNumbers(TorchFunctionMode):
    """Random numbers come from the CPU's generator, so that they are the same on every device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.randn, torch.rand, torch.randint) and "generator" not in kwargs:
            return function(*args, **kwargs | {"device": "cpu"}).to(kwargs.get("device") or "cpu")
        if function in (torch.randn_like, torch.Tensor.normal_):
            x = torch.empty(args[0].shape, dtype=args[0].dtype).normal_(*args[1:], **kwargs)
            return x.to(args[0].device) if function is torch.randn_like else args[0].copy_(x)
        return function(*args, **kwargs)


def within(bound: float, found: float, **more: Any) -> Found:
    """found is NaN where something is broken, and no bound holds it."""
    return {"ok": found <= bound, "apart": found, "bound": bound, **more}


def slopes(at: Bench, of: str, fast: bool, exact: bool = True) -> dict[str, torch.Tensor]:
    """The gradients that two iterations leave in each network of a script, (n,) on the CPU.

    A rate of nearly nothing keeps the weights equal, so that the gradients of every step can be compared.
    """
    fields = importlib.import_module(of).Settings.__dataclass_fields__
    still = {name: 1e-30 for name in fields if name.endswith("rate")}
    with SameNumbers(), float32(at.device) if exact else nullcontext():
        parts = at.train(of, fast=fast, **still)
    networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    learnt = {k: net for k, net in networks.items() if any(p.grad is not None for p in net.parameters())}
    return {name: gradients(network).float().cpu() for name, network in learnt.items()}


def apart(mine: dict[str, torch.Tensor], its: dict[str, torch.Tensor]) -> float:
    """How far gradients are from others, as a share of their length, in the network where that is most."""
    return max(((mine[key] - its[key]).norm() / its[key].norm()).item() for key in its)


def as_on_the_cpu(at: Bench, of: str) -> Iterator[Found]:
    """An iteration in float32 is the CPU's; `default` is with what torch rounds to TF32 unless told."""
    cpu = slopes(replace(at, device=torch.device("cpu")), of, fast=False)
    default = apart(slopes(at, of, fast=False, exact=False), cpu)
    yield within(1e-2, apart(slopes(at, of, fast=False), cpu), default=default)


def in_bf16(at: Bench, of: str) -> Iterator[Found]:
    """An iteration as the device makes it fast is that in float32, as far as rounding lets it."""
    yield within(0.3, apart(slopes(at, of, fast=True, exact=False), slopes(at, of, fast=False)))


def as_one_graph(at: Bench, of: str) -> Iterator[Found]:
    """Eight iterations as one graph are those of the plain loop; apart as a share of the way they went."""
    if not hasattr(importlib.import_module(of), "captured"):
        return
    said = io.StringIO()
    with redirect_stdout(said):
        ends = [at.train(of, range(1, 9), graph=graph)["G"].state_dict() for graph in (True, False)]
        start = at.train(of, ())["G"].state_dict()
    refused = [line for line in said.getvalue().splitlines() if line.startswith("no CUDA graph")]
    if refused:
        yield {"ok": False, "why": refused[0]}
        return
    one, other, start = (torch.cat([x.flatten().float() for x in each.values()]) for each in (*ends, start))
    yield within(0.05, ((one - other).norm() / (other - start).norm()).item(), exact=equal(*ends))


def resumed(at: Bench, of: str) -> Iterator[Found]:
    """A run that goes on is the run, to the bit; or whether two runs are, and what torch warns of."""
    script, images = importlib.import_module(of), at.images()
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(script.Images, "load", lambda *_, **__: images),
    ):
        settings = at.settings(of, Path(folder), iterations=6)
        half = replace(settings, iterations=3)
        ends = [Checkpoints(script.main(settings)).newest()[1] for _ in range(2)]
        ends.append(Checkpoints(script.main(replace(settings, resume=script.main(half)))).newest()[1])
        found = {"ok": equal(ends[0], ends[2]), "repeatable": equal(*ends[:2])}
        if not found["ok"]:
            found["why"] = "; ".join(not_deterministic(partial(script.main, half))) or "torch does not say"
    yield found


def not_deterministic(train: Callable[[], Any]) -> list[str]:
    """What torch names, as train runs, as having no deterministic implementation in use."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train()
    finally:
        torch.use_deterministic_algorithms(False)
    return sorted(
        {str(each.message).split(" does not")[0] for each in caught if "determin" in str(each.message)}
    )


def layout(at: Bench, of: str) -> Iterator[Found]:
    """Networks whose weights are channels last are those whose weights are not."""
    found = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        nets = [wgan_64.Generator(width=at.width), wgan_64.Discriminator(at.width)]
        G, D = (net.to(at.device, memory_format=memory_format) for net in nets)
        with SameNumbers(), float32(at.device):
            D(G(torch.randn(at.batch, 100, device=at.device))).mean().backward()
        found.append({name: gradients(net).cpu() for name, net in (("G", G), ("D", D))})
    yield within(1e-2, apart(*found))


def frozen(at: Bench, of: str) -> Iterator[Found]:
    """Scores through kept features of frozen layers are the scores."""
    D = wgan_64.Discriminator(at.width, Split(3, 0, 2).discriminator("adafm", "source"))
    D.to(at.device, memory_format=torch.channels_last)
    both = []
    for fast in (True, False):
        torch.manual_seed(0)
        with float32(at.device), torch.no_grad():
            both.append(Reals(Tuned(D), at.images(), Augment("flip"), fast).scores(at.batch))
    yield within(1e-2, ((both[0] - both[1]).norm() / both[1].norm()).item())


def shared(at: Bench, of: str) -> Iterator[Found]:
    """A run is an adapter of its source; what is drawn and scored of it is what the CPU draws and scores."""
    script, images = importlib.import_module(of), at.images()
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(script.Images, "load", lambda *_, **__: images),
    ):
        settings = at.settings(of, Path(folder), iterations=3)
        run = script.main(settings)
        ema = applied(Source.read(settings.source), [Adapter.of(run)], [1])["ema"]
        same = all(torch.equal(x, ema[key]) for key, x in Source.read(run).generator.items())
        yield {"part": "adapter", "ok": same}
        both = [draw(Source.read(run), 64, 0, device) for device in (at.device, torch.device("cpu"))]
        grey = (both[0].int() - both[1].int()).abs().max().item()
        yield within(2, grey, part="drawing, grey levels")
        distances = []
        for device in (at.device, torch.device("cpu")):
            judge = load("efficientnet_lite0", device=str(device))
            cache = Path(folder) / f"features {len(distances)}"
            made = score(both[0][:16], images.pixels[:24].cpu(), extractor=judge, size=64, cache=cache)
            distances.append(made.training.fid)
        yield within(1e-2, abs(distances[0] / distances[1] - 1), part="Frechet distance")
