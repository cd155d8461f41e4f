"""The house: imports run one way, rooms stay small, and nothing in the bench knows how a network is built."""

import ast
import graphlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import fid
import wgan_64
import wgan_64_transferlearning
from fid.extractors import Extractor
from tests.conftest import as_source
from transfer import UserError, drawing, regularisers, shared, weights
from transfer.adapters import Adapter, applied
from transfer.augment import Augment
from transfer.checkpoints import Checkpoints
from transfer.engine import Reals, Tuned, fixed_layers, stages
from transfer.images import Images
from transfer.layers import Conv, ConvUp, Norm
from transfer.plan import Split, layers_of, table
from transfer.policies import FINETUNE

ROOT = Path(__file__).parents[1]
ROOMS = ("transfer", "fid", "experiments", "methods", "benchmarks", "demo")
LINES = 300  # of code, docstrings, comments and blank lines apart


def imports(path: Path) -> set[str]:
    """The modules of the project that a file imports while it runs, wherever in it."""
    found, skipped = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            skipped |= {id(inner) for inner in ast.walk(node)}
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def rooms() -> dict[str, set[str]]:
    """Each module of the packages and each script, with those of them that it imports."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")] + list(ROOT.glob("*.py"))
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    return {name: (imports(path) & names.keys()) - {name} for name, path in names.items()}


def test_no_import_goes_round_in_a_circle():
    packages = set(ROOMS)  # their __init__ hold what is lazy or an exception
    graph = {name: needs - packages for name, needs in rooms().items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) > 40


def test_the_bench_needs_neither_scores_nor_scripts_nor_experiments():
    for name, needs in rooms().items():
        if name.split(".")[0] == "transfer":
            assert {need.split(".")[0] for need in needs} <= {"transfer"}, name


def test_no_file_has_more_lines_of_code_than_a_person_reads_at_one_sitting():
    for path in [path for room in ROOMS for path in (ROOT / room).rglob("*.py")] + list(ROOT.glob("*.py")):
        tree = ast.parse(path.read_text())
        lines = {
            line
            for node in ast.walk(tree)
            if hasattr(node, "lineno")
            for line in (node.lineno, node.end_lineno)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                lines -= set(range(node.lineno, node.end_lineno + 1))
        assert len(lines) <= LINES, path.name


def text_in_the_locales_encoding(path: Path) -> list[int]:
    """The lines where a file reads or writes text without saying in which encoding."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and not {"encoding", None} & {each.arg for each in node.keywords}:
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            mode = [each.value for each in node.args[1:2] if isinstance(each, ast.Constant)]
            opened = name == "open" and isinstance(node.func, ast.Name) and "b" not in (mode or ["r"])[0]
            if name in ("read_text", "write_text") or opened:
                found.append(node.lineno)
    return found


def test_text_is_utf_8_whatever_the_locale_is(tmp_path):
    (tmp_path / "file.py").write_text('open("a")\nopen("a", "rb")\np.read_text()\n', encoding="utf-8")
    assert text_in_the_locales_encoding(tmp_path / "file.py") == [1, 3]
    for path in [path for room in ROOMS for path in (ROOT / room).rglob("*.py")] + list(ROOT.glob("*.py")):
        assert not text_in_the_locales_encoding(path), path


# ----------------------------------------------------------------------------------------------------------
# Other networks than the scripts': six layers; other names, and a part before the first layer.


class SixG(nn.Module):
    """z (N, 3) -> images (N, 3, 64, 64): six layers."""

    def __init__(self, latent=3, width=4, policies=6 * (FINETUNE,)):
        super().__init__()
        self.arguments = {"latent": latent, "width": width}
        for index, policy in enumerate(policies, 1):
            first, last = index == 1, index == 6
            sizes = (latent if first else width, 3 if last else width)
            setattr(self, f"conv{index}", ConvUp(*sizes, *((2, 1, 0) if first else (4, 2, 1)), policy))
            if not last:
                setattr(self, f"norm{index}", Norm(width, policy))

    def forward(self, z):
        x = z[:, :, None, None]
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        x = F.relu(self.norm4(self.conv4(x)))
        x = F.relu(self.norm5(self.conv5(x)))
        return torch.tanh(self.conv6(x))


class SixD(nn.Module):
    """x (N, 3, 64, 64) -> scores (N,): six layers."""

    def __init__(self, width=4, policies=6 * (FINETUNE,)):
        super().__init__()
        self.arguments = {"width": width}
        for index, policy in enumerate(policies, 1):
            sizes = (3 if index == 1 else width, 1 if index == 6 else width)
            setattr(self, f"conv{index}", Conv(*sizes, *((2, 1, 0) if index == 6 else (4, 2, 1)), policy))
            if 1 < index < 6:
                setattr(self, f"norm{index}", Norm(width, policy))

    def forward(self, x):
        x = F.leaky_relu(self.conv1(x), 0.2)
        x = F.leaky_relu(self.norm2(self.conv2(x)), 0.2)
        x = F.leaky_relu(self.norm3(self.conv3(x)), 0.2)
        x = F.leaky_relu(self.norm4(self.conv4(x)), 0.2)
        x = F.leaky_relu(self.norm5(self.conv5(x)), 0.2)
        return self.conv6(x).flatten()


class NamedG(nn.Module):
    """z (N, 3) -> images (N, 3, 64, 64): layers in blocks of other names, and a linear layer before them."""

    def __init__(self, latent=3, width=4, policies=2 * (FINETUNE,)):
        super().__init__()
        self.arguments = {"latent": latent, "width": width}
        p1, p2 = policies
        self.first = nn.Linear(latent, latent)
        self.grow = nn.Sequential(ConvUp(latent, width, 8, 1, 0, p1), Norm(width, p1), nn.ReLU())
        self.draw = nn.ModuleDict({"paint": ConvUp(width, 3, 8, 8, 0, p2)})

    def forward(self, z):
        return torch.tanh(self.draw["paint"](self.grow(self.first(z)[:, :, None, None])))


class NamedD(nn.Module):
    """x (N, 3, 64, 64) -> scores (N,): two layers of other names."""

    def __init__(self, width=4, policies=2 * (FINETUNE,)):
        super().__init__()
        self.arguments = {"width": width}
        p1, p2 = policies
        self.look = nn.Sequential(Conv(3, width, 8, 8, 0, p1), Norm(width, p1), nn.LeakyReLU(0.2))
        self.score = Conv(width, 1, 8, 1, 0, p2)

    def forward(self, x):
        return self.score(self.look(x)).flatten()


NETWORKS = {
    "six": (SixG, SixD, [f"conv{index}" for index in range(1, 7)], Split(2, 2, 2)),
    "named": (NamedG, NamedD, ["grow.0", "draw.paint"], Split(1, 1, 0)),
}


@pytest.fixture(params=NETWORKS)
def house(request, monkeypatch):
    """A script of these networks, their source, and a plan for them."""
    G, D, names, split = NETWORKS[request.param]
    script = ModuleType(f"methods.{request.param}_layers")
    script.Generator, script.Discriminator = G, D
    monkeypatch.setitem(sys.modules, script.__name__, script)
    torch.manual_seed(0)
    source = as_source(G(), D())
    source = replace(source, script=f"{request.param}_layers", arguments={"latent": 3, "width": 4})
    return script, source, names, split


def carried(house):
    script, source, _, split = house
    G = script.Generator(policies=split.generator(frozen_norm="source"))
    D = script.Discriminator(policies=split.discriminator(frozen_norm="source"))
    shared.carry(G, source, "G")
    shared.carry(D, source, "D")
    return G, D


def test_the_plan_shows_every_layer_of_any_network(house):
    G, D = carried(house)
    *_, names, split = house
    assert [layer.name for layer in layers_of(G)] == names
    assert [layer.norm is None for layer in layers_of(G)] == [False] * (len(names) - 1) + [True]
    text = table(G=G, D=D)
    assert [text.count(f"  {policy}  ") for policy in ("freeze", "adafm")] == [
        2 * split.freeze,
        2 * split.rescale,
    ]
    assert ("first" in text) == hasattr(G, "first")
    shown = [line.split()[-2:] for line in text.splitlines() if line.startswith("G") and " all " not in line]
    sums = [sum(int(row[column].replace(",", "")) for row in shown) for column in (0, 1)]
    assert sums[1] == sum(parameter.numel() for parameter in G.parameters()), "nothing is left out"
    assert sums[0] == sum(parameter.numel() for parameter in weights.learning(G))
    total = sum(parameter.numel() for parameter in G.parameters())
    assert f"{total:,}" in text


def test_any_network_is_cut_into_its_layers_kept_clipped_and_averaged(house, faces):
    G, D = carried(house)
    z, x = torch.randn(5, 3), torch.rand(5, 3, 64, 64)
    for network, given in ((G, z), (D, x)):
        each = stages(network.eval())
        assert len(each) == len(layers_of(network))
        assert torch.allclose(nn.Sequential(*each)(given), network(given))
        network.train()
    split = house[3]
    assert fixed_layers(D) == split.freeze
    reals = Reals(Tuned(D), Images.load(faces), Augment("none"))
    assert reals.scores(4).shape == (4,) and reals.features is not None
    clip = weights.Clip(D, 1e-3)
    clip()
    assert all(layer.kernel.kernel().abs().max() <= 1e-3 for layer in layers_of(D)[split.freeze :])
    average = weights.Average(G, 0.5)
    assert average.network(z).shape == (5, 3, 64, 64)
    term = regularisers.DistanceConsistency(1.0, G)
    assert term(torch.randn(8, 3)).isfinite()


def test_any_network_is_transferred_stored_mixed_drawn_and_scored(house, faces, tmp_path):
    _, source, _, split = house
    G, D = carried(house)
    path = tmp_path / "source.safetensors"
    card = {"script": f"{source.script}.py", "arguments": {"G": G.arguments, "D": D.arguments}}
    own = {"G": source.generator, "ema": source.generator, "D": source.discriminator}
    shared.share(path, own, {**card, "settings": {}})
    read = shared.Source.read(path)
    assert read.script == source.script and read.arguments == G.arguments
    with torch.no_grad():
        for parameter in weights.learning(G):
            parameter.add_(0.1)
    settings = {"source": str(path), "G": list(split), "D": list(split)}
    run = tmp_path / "0001-run"
    (run / "checkpoints").mkdir(parents=True)
    state = {"version": 1, "step": 1, "settings": settings, "ema": G.state_dict(), "D": D.state_dict()}
    Checkpoints(run).save(1, {**card, **state})
    model = shared.Source.read(run)
    z = torch.randn(4, 3)
    with torch.no_grad():
        assert torch.equal(drawing.generator(model)(z), G.eval()(z))
    ends = applied(read, [Adapter.of(run)], [1])
    assert all(torch.equal(tensor, ends["ema"][key]) for key, tensor in G.state_dict().items())
    half = applied(read, [Adapter.of(run), Adapter.of(run)], [0.25, 0.25])["ema"]
    kernel = f"{layers_of(G)[-1].name}.weight"
    assert torch.equal(half[kernel], source.generator[kernel]), "what is frozen stays"
    for name in (name for name in half if name.startswith("first.")):
        torch.testing.assert_close(half[name], source.generator[name] + 0.05)
    extractor = Extractor("mean", "none", 3, lambda x: x.mean((2, 3)), torch.device("cpu"))
    drawn = drawing.draw(model, 6, 0, torch.device("cpu"))
    assert fid.score(drawn, Images.load(faces), extractor=extractor, cache=tmp_path).training.fid >= 0


@pytest.mark.parametrize(
    "rescale, split",
    [
        ("adafm", Split(0, 5, 0)),
        ("normalised_adafm", Split(0, 5, 0)),
        ("singular_values", Split(0, 5, 0)),
        ("rank_one", Split(0, 5, 0)),
        ("filter_selection", Split(1, 2, 2)),
    ],
)
def test_a_modulated_run_is_a_source_and_step_0_draws_its_samples(source, faces, tmp_path, rescale, split):
    plans = {"G": split, "D": split, "rescale": rescale}
    settings = wgan_64_transferlearning.Settings(
        source=source, images=faces, out=tmp_path, iterations=3, batch_size=4, critic_steps=1,
        learning_rate=0.02, sample_every=3, device="cpu", **plans,
    )  # fmt: skip
    first = wgan_64_transferlearning.main(settings)
    assert (first / "samples/000003.png").read_bytes() != (first / "samples/000000.png").read_bytes()
    second = wgan_64_transferlearning.main(replace(settings, source=first, iterations=1))
    after, before = (
        np.asarray(Image.open(path)).astype(int)
        for path in (first / "samples/000003.png", second / "samples/000000.png")
    )
    assert abs(after - before).max() <= 1, "a mean may be rounded in another order"
    D = Checkpoints(first).newest()[1]["D"]
    assert Checkpoints(second).newest()[1]["D"].keys() == D.keys()


def test_what_filter_selection_adds_goes_into_the_mean_that_follows_or_is_refused():
    plan = Split(0, 5, 0)
    G, plain = (
        wgan_64.Generator(4, 4, policies)
        for policies in (plan.generator("filter_selection"), 5 * (FINETUNE,))
    )
    settings = {"source": "tiny", "G": plan, "rescale": "filter_selection"}
    with torch.no_grad():
        for kernel in (G.conv2, G.conv3):
            kernel.beta.normal_()
            kernel.gamma.normal_()
    shared.carry(plain, as_source(G, settings=settings), "G")
    z = torch.randn(3, 4)
    torch.testing.assert_close(plain.eval()(z), G.eval()(z))
    with torch.no_grad():
        G.conv5.beta.normal_()
    with pytest.raises(UserError, match="adds to the output of conv5"):
        shared.carry(plain, as_source(G, settings=settings), "G")
