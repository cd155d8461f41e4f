"""The engine: which device, how networks compute, and what is not computed twice."""

import importlib
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import wgan_64
import wgan_64_transferlearning
import wgan_gp_64
from benchmarks.step import COUNTED, LEFT_BY_DEPTH
from benchmarks.timing import iteration_of, trained
from fid import extractors
from tests.conftest import LATENT, WIDTH
from tests.runs import PRETRAINING, TINY, TRANSFERS, tiny
from transfer import UserError, compiler, engine, shared, state, weights, windows, winograd
from transfer.augment import Augment
from transfer.engine import (
    PAYS_FROM,
    Reals,
    Tuned,
    captured,
    choose_device,
    convolve_by,
    fixed_layers,
    stages,
    tune,
)
from transfer.images import Images
from transfer.plan import Split
from transfer.policies import Rescale
from transfer.weights import learning

LOOPS = ["wgan_64", "wgan_gp_64", "wgan_64_transferlearning"]  # the other transfers have the latter's
AUGMENTATIONS = ["none", "flip", "slight", "strong", "diffaugment"]


def test_the_device_is_found_without_being_told():
    assert choose_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("works", [True, False])
def test_mps_is_taken_where_it_works_and_there_is_no_cuda(works, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    zeros = torch.zeros

    def stand_in(*size, device="cpu"):
        if works or device == torch.device("cpu"):
            return zeros(*size)
        raise RuntimeError("MPS backend is supported on MacOS 14.0+")

    monkeypatch.setattr(torch, "zeros", stand_in)
    assert choose_device() == torch.device("mps" if works else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == torch.device("cuda")


def test_the_random_state_of_the_device_is_kept(monkeypatch):
    """A stand-in for a GPU, which has its own."""
    own = {"state": torch.arange(3)}
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: own["state"])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: own.update(state=state))
    mps, cpu = torch.device("mps"), torch.device("cpu")
    kept = state.of({}, mps)
    assert kept["random"].keys() == {"cpu", "mps"} and state.of({}, cpu)["random"].keys() == {"cpu"}
    own["state"] = None
    state.load({}, kept, Path("x"), mps)
    assert torch.equal(own["state"], torch.arange(3))


def test_another_kind_of_device_is_said(monkeypatch, capsys):
    here, there = ({"random": {"cpu": torch.get_rng_state(), **more}} for more in ({}, {"mps": 1}))
    for found, device in ((here, "cpu"), (here, "mps"), (there, "cpu"), (there, "cuda")):
        state.load({}, found, Path("x"), torch.device(device))
        assert ("another kind of device" in capsys.readouterr().out) == ((found, device) != (here, "cpu"))


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "privateuseone"])
def test_a_device_that_is_not_there_is_refused_in_one_sentence(name):
    with pytest.raises(UserError, match="cannot be used here") as refusal:
        choose_device(name)
    assert "\n" not in str(refusal.value)


# ----------------------------------------------------------------------------------------------------------
# How networks compute.


def instructions(monkeypatch, *, amx=False, bf16=False):
    """Let the CPU have, or lack, instructions for bf16: of matrices, or of vectors."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: amx or bf16)
    monkeypatch.setattr(engine, "_compiles", lambda: True)


BF16 = "computing in bf16 (numbers of half the length; --no-fast keeps float32)"


@pytest.mark.parametrize(
    "has, iterations, fast, few, said",
    [
        ({}, PAYS_FROM, True, 3, "computing in float32, compiled"),
        ({}, PAYS_FROM - 1, True, 0, "computing in float32, not compiled, since fewer than"),
        ({}, PAYS_FROM, False, 0, "computing in float32\n"),
        ({"bf16": True}, PAYS_FROM, True, 0, f"{BF16}\n"),
        ({"bf16": True}, PAYS_FROM - 1, True, 0, f"{BF16}\n"),
        ({"bf16": True}, PAYS_FROM, False, 0, "computing in float32\n"),
        ({"amx": True}, PAYS_FROM, True, 0, f"{BF16}\n"),
    ],
)
def test_the_wide_convolutions_use_few_products_where_that_pays(
    monkeypatch, capsys, has, iterations, fast, few, said
):
    instructions(monkeypatch, **has)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    G, D = wgan_64.Generator(LATENT, WIDTH), wgan_64.Discriminator(WIDTH)
    _, judge = tune(G, D, iterations=iterations, fast=fast)
    used = []
    monkeypatch.setattr(winograd, "conv2d", lambda x, w: used.append(w) or F.conv2d(x, w, None, 2, 1))
    judge(torch.rand(2, 3, 64, 64))
    assert len([w for w in used if w.shape[1] > 3]) == few
    assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize(
    "has, fast, ours",
    [({"bf16": True}, True, True), ({"bf16": True}, False, False), ({"amx": True}, True, True)],
)
def test_in_bf16_kernels_gradients_are_products_of_windows_where_that_pays(monkeypatch, has, fast, ours):
    instructions(monkeypatch, **has)
    G, D = wgan_64.Generator(LATENT, WIDTH), wgan_64.Discriminator(WIDTH)
    generate, judge = tune(G, D, iterations=1, fast=fast)
    made = []
    gradient = windows.kernel_gradient
    monkeypatch.setattr(windows, "kernel_gradient", lambda *both: made.append(both) or gradient(*both))
    judge(generate(torch.randn(2, LATENT))).sum().backward(inputs=learning(G))
    assert len(made) == (2 if ours else 0), "G's second and third layer, and none of D's"
    judge(torch.rand(2, 3, 64, 64)).sum().backward()
    assert len(made) == (4 if ours else 0)


def test_without_a_compiler_it_goes_on_with_torchs_convolutions(monkeypatch, capsys):
    def fails(function):
        raise RuntimeError("no compiler")

    compiles = engine._compiles
    instructions(monkeypatch)
    monkeypatch.setattr(engine, "_compiles", compiles)
    monkeypatch.setattr(torch, "compile", fails)
    D = wgan_64.Discriminator(WIDTH)
    tune(D, iterations=PAYS_FROM)
    assert D.conv2.convolve is F.conv2d
    assert "compiler" in capsys.readouterr().out


def test_a_cpu_whose_bf16_lacks_convolutions_goes_on_in_float32(monkeypatch, capsys):
    def lacking(x, *args, **more):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive\nat line 5")
        return convolve(x, *args, **more)

    convolve = F.conv2d
    instructions(monkeypatch, bf16=True)
    monkeypatch.setattr(F, "conv2d", lacking)
    (judge,) = tune(wgan_64.Discriminator(WIDTH), iterations=1)
    assert "lacks convolutions in bfloat16 (could not create a primitive)" in capsys.readouterr().out
    assert judge(torch.rand(2, 3, 64, 64)).isfinite().all()


def test_what_the_compiler_fails_at_costs_a_line_and_not_the_run(monkeypatch, capsys):
    def fails(graph, inputs):
        raise RuntimeError("not for you\nmore")

    compiler._say.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fails))
    twice, again = compiler.compiled(lambda x: 2 * x), compiler.compiled(lambda x: 3 * x)
    x = torch.rand(4)
    for _ in range(2):
        assert torch.equal(twice(x), 2 * x) and torch.equal(again(x), 3 * x)
    out = capsys.readouterr().out
    assert "not for you" in out and len(out.splitlines()) == 1


def critic_gradients(judge, x, y, penalty):
    """The gradients of a critic's weights in a step, with or without gradient penalty."""
    loss = judge(y).mean() - judge(x).mean()
    if penalty:
        torch.manual_seed(2)
        gradient = judge.hasten(partial(wgan_gp_64.score_gradient, judge.network))
        loss = loss + 10 * wgan_gp_64.gradient_penalty(gradient, x, y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, learning(judge.network))])


@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("amx", [False, True])
def test_bf16_steps_agree_with_float32_and_return_float32(monkeypatch, penalty, amx):
    instructions(monkeypatch, amx=amx, bf16=True)
    torch.manual_seed(0)
    D = wgan_64.Discriminator(8, norm=not penalty)
    x = torch.rand(8, 3, 1, 1).expand(-1, -1, 64, 64) * 2 - 1  # alike, they would cancel to rounding errors
    y = torch.rand(8, 3, 64, 64) * 2 - 1
    exact = critic_gradients(Tuned(D), x, y, penalty)
    (judge,) = tune(D, iterations=1)
    fast = critic_gradients(judge, x, y, penalty)
    assert judge(x).dtype == torch.float32 and fast.dtype == torch.float32
    apart = (fast - exact).norm() / exact.norm()
    assert 1e-4 < apart < 0.15  # products of bf16 are 0.4 % off, and five layers there and back add up


def test_a_batch_normalised_critics_gradient_is_differentiated_again(monkeypatch):
    instructions(monkeypatch, amx=True)
    D = wgan_gp_64.Discriminator(WIDTH, norm=True)
    (judge,) = tune(D, iterations=1)
    assert critic_gradients(judge, *torch.rand(2, 4, 3, 64, 64), True).isfinite().all()


@pytest.mark.parametrize("few_products", [False, True])
def test_the_critics_gradient_is_autograds_and_so_is_its_own(monkeypatch, few_products):
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    torch.manual_seed(0)
    D = wgan_gp_64.Discriminator(WIDTH, norm=False).double()
    for bias in (D.conv1.bias, D.conv2.bias, D.conv3.bias, D.conv4.bias):
        torch.nn.init.normal_(bias, std=0.1)
    if few_products:
        convolve_by(winograd, D)
    x = torch.randn(4, 3, 64, 64, dtype=torch.double, requires_grad=True)
    (autograds,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    ours = wgan_gp_64.score_gradient(D, x)
    assert (ours - autograds).norm() < 1e-6 * autograds.norm()
    weights = [p for name, p in D.named_parameters() if "weight" in name]  # a slope does not depend on biases
    both = [torch.autograd.grad(g.square().sum(), weights, retain_graph=True) for g in (ours, autograds)]
    for mine, its in zip(*both, strict=True):
        assert (mine - its).norm() < 1e-6 * its.norm()


# ----------------------------------------------------------------------------------------------------------
# What an iteration computes, and where.


class StaysOnDevice(TorchDispatchMode):
    """Notes whatever an iteration brings to the device from outside."""

    def __init__(self):
        super().__init__()
        self.brought = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given, made = tree_leaves((args, kwargs)), tree_leaves(result)
        given, made = ([x for x in each if isinstance(x, torch.Tensor)] for each in (given, made))
        if any(tensor.device.type == "meta" for tensor in given + made):
            self.brought += [function for tensor in given if tensor.device.type != "meta" and tensor.dim()]
        return result


METHODS = [
    "wgan_64_regularised",
    "minegan",
    "mind2mind",
    "generative_latent_optimization",
    "projected_critic",
    "several_targets",
]
TERMS = dict.fromkeys(("l2_sp", "distillation", "ewc", "consistency", "lecam"), 0.1)
OWN = {
    "methods.wgan_64_regularised": {**TERMS, "adapt": 2},
    "methods.mind2mind": {"autoencoder": 1, "hidden": 8},
    # What heads look at is decided on the CPU, once in so many iterations.
    "methods.projected_critic": {"stretch": 64, "closer": 0, "channels": 8, "fade": 2, "drift": 0.3},
    "methods.several_targets": {"stretch": 64, "channels": 8, "fade": 2},
}
ITERATIONS = [(name, {"augment": augment}) for name in LOOPS for augment in AUGMENTATIONS]
ITERATIONS += [(script.removesuffix(".py"), {}) for script in TRANSFERS]
ITERATIONS += [(f"methods.{name}", OWN.get(f"methods.{name}", {})) for name in METHODS]
ITERATIONS += [("wgan_64_scale_shift", {"rescale": policy}) for policy in get_args(Rescale)]
ITERATIONS += [("wgan_gp_64", {"critic_norm": True}), ("methods.projected_critic", {"D": Split(5, 0, 0)})]


@pytest.mark.filterwarnings("ignore:for .*no-op")
@pytest.mark.parametrize("name, own", ITERATIONS)
def test_an_iteration_never_leaves_the_device(monkeypatch, faces, source, tmp_path, name, own):
    """Which is what a graph needs: on the meta device no value can be read and nothing can be moved."""
    script = importlib.import_module(name)
    small = tiny("wgan_64_finetune", faces, source, tmp_path)[1]
    small = {key: value for key, value in vars(small).items() if key in TINY or key in ("source", "images")}
    pretraining = {"latent": LATENT, "width": WIDTH} if name in PRETRAINING else {}
    fields = script.Settings.__dataclass_fields__
    given = small | pretraining | OWN.get(name, {}) | own | {"device": "meta", "log_every": 1000}
    settings = script.Settings(**{key: value for key, value in given.items() if key in fields})
    monkeypatch.setattr(weights.Clip, "check", lambda *_: None)
    for module in (script, extractors):
        monkeypatch.setattr(module, "choose_device", torch.device)  # which refuses meta otherwise
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta", "cpu"])
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which meta does not have
    mode = StaysOnDevice()

    def steps():
        with mode:
            yield from (1, 2, 3)

    losses = trained(script, settings, Images.load(faces, "meta"), steps())["losses"]
    assert all(loss.device.type == "meta" for loss in losses.values()) and not mode.brought


def test_leaving_the_device_would_be_noticed():
    x = torch.zeros(3, device="meta")
    with pytest.raises(RuntimeError):
        x.sum().item()
    with StaysOnDevice() as mode:
        torch.tensor([1.0, 2.0, 3.0]).to("meta")
    assert mode.brought
    with StaysOnDevice() as mode:
        torch._foreach_copy_([x], [torch.zeros(3)])
    assert mode.brought


def test_elsewhere_than_on_cuda_an_iteration_is_not_captured():
    iteration = object()
    assert captured(iteration, torch.device("cpu")) is iteration
    assert captured(iteration, torch.device("cuda"), fast=False) is iteration


class Card:
    """What captured asks of torch.cuda, without a card."""

    def __init__(self, monkeypatch, broken=""):
        self.broken, self.replays, self.places, self.stream = broken, 0, [torch.Generator()], "default"
        for name in ("CUDAGraph", "graph", "Stream", "current_stream", "get_rng_state", "current_device"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "default_generators", self.places)
        monkeypatch.setattr(engine.torch, "Generator", lambda device: Place(self))
        self.places[0] = Place(self)

    def current_stream(self, device):
        return SimpleNamespace(name=self.stream, wait_stream=lambda other: None)

    Stream = current_stream

    def current_device(self):
        return 0

    @contextmanager
    def on(self, stream):
        before, self.stream = self.stream, stream.name
        try:
            yield
        finally:
            self.stream = before

    def get_rng_state(self, device):
        return self.places[0].state

    def CUDAGraph(self):
        return SimpleNamespace(replay=self.replay)

    def replay(self):
        if self.broken == "replay":
            self.places[0].state += 1  # which torch moves on first
            raise RuntimeError("out of memory on launch")
        self.replays += 1

    @contextmanager
    def graph(self, graph, stream):
        place = self.places[0]
        place.capturing = True
        if self.broken == "capture":
            self.stream = "lost"  # as torch leaves it when a capture fails to end
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield
        place.capturing = False


class Place:
    """A generator's state, which can be shared."""

    def __init__(self, card):
        self.card, self.state, self.capturing = card, 0, False

    def set_state(self, state):
        self.state = state

    def graphsafe_get_state(self):
        return self

    def graphsafe_set_state(self, other):
        self.card.places[0] = other


@pytest.mark.parametrize("broken", ["", "capture", "replay", "warm-up"])
def test_a_graph_that_cannot_be_had_costs_a_line_and_not_the_run(monkeypatch, capsys, broken):
    card, done = Card(monkeypatch, broken), []

    def iteration():
        place = card.places[0]
        place.state += 1
        done.append(place.state)
        if broken == "warm-up" and len(done) == 2:
            raise RuntimeError("no kernel image is available")
        if place.capturing:  # then nothing is computed
            place.state -= 1
            done.pop()
        return {"loss": len(done)}

    launch = captured(iteration, torch.device("cuda"))
    losses = [launch()["loss"] for _ in range(8)]
    out = capsys.readouterr().out
    assert (out.count("no CUDA graph") == 1) == bool(broken) and len(out.splitlines()) <= 1
    assert card.stream == "default"
    if broken:
        assert card.replays == 0 and losses[-1] == len(done) == (9 if broken == "warm-up" else 8)
        numbers = done[:1] + done[2:] if broken == "warm-up" else done
        assert numbers == list(range(1, 9)), "no random number is skipped or drawn twice"
        assert not card.places[0].capturing
    else:
        assert card.replays == 8 - engine.WARM_UP and len(done) == engine.WARM_UP


def test_once_a_graph_has_run_its_errors_are_the_runs(monkeypatch):
    card = Card(monkeypatch)
    launch = captured(lambda: {}, torch.device("cuda"))
    for _ in range(engine.WARM_UP + 1):
        launch()
    card.broken = "replay"
    with pytest.raises(RuntimeError, match="on launch"):
        launch()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", LOOPS)
def test_a_captured_run_is_the_run(monkeypatch, faces, source, tmp_path, name):
    ends = []
    for launch in (captured, lambda iteration, *_: iteration):
        script, settings = tiny(name, faces, source, tmp_path, iterations=8)
        monkeypatch.setattr(script, "captured", launch)
        settings = replace(settings, device="cuda")
        ends.append(torch.load(next((script.main(settings) / "checkpoints").glob("*.pt"))))
    for key, tensor in ends[0]["ema"].items():
        assert torch.allclose(tensor.float(), ends[1]["ema"][key].float(), atol=1e-4), key


def operations(script, settings, images):
    """The floating-point operations of the script's iteration."""
    iteration, _ = iteration_of(script, settings, images)
    iteration()  # in which what is frozen is computed once and kept
    with FlopCounterMode(display=False) as counter:
        iteration()
    return counter.get_total_flops()


@pytest.mark.parametrize("script", [wgan_64, wgan_gp_64])
def test_pre_training_computes_what_was_counted_and_no_more(faces, script):
    settings = script.Settings(images=faces, device="cpu", batch_size=2, iterations=1)
    counted = COUNTED[script.__name__] * settings.batch_size / 64
    assert operations(script, settings, Images.load(faces)) == pytest.approx(counted, rel=0.005)


def test_freezing_saves_the_arithmetic_that_it_can(faces, tmp_path):
    G, D = wgan_64.Generator(LATENT), wgan_64.Discriminator()
    path = tmp_path / "wide.safetensors"
    networks = {"G": G.state_dict(), "ema": G.state_dict(), "D": D.state_dict()}
    weights.Clip(D, 0.01)()
    shared.share(path, networks, {})
    counts = []
    for depth in range(6):
        settings = wgan_64_transferlearning.Settings(
            source=path, images=faces, device="cpu", out=tmp_path, batch_size=2, augment="flip",
            frozen_norm="source", iterations=1, G=Split(0, 0, 5), D=Split(depth, 0, 5 - depth),
        )  # fmt: skip
        counts.append(operations(wgan_64_transferlearning, settings, Images.load(faces)))
    assert [count / counts[0] for count in counts] == pytest.approx(LEFT_BY_DEPTH, abs=0.01)


def frozen_critic(depth, norm="source", widths=WIDTH):
    torch.manual_seed(0)
    D = wgan_64.Discriminator(widths, Split(depth, 0, 5 - depth).discriminator("adafm", norm))
    with torch.no_grad():
        for index in (2, 3, 4):
            getattr(D, f"norm{index}").running_mean.normal_()
    return D


@pytest.mark.parametrize("depth", range(1, 5))
def test_a_critic_in_two_parts_is_the_critic(depth):
    D = frozen_critic(depth)
    x = torch.rand(4, 3, 64, 64)
    each = stages(D)
    below, above = nn.Sequential(*each[:depth]), nn.Sequential(*each[depth:])
    assert torch.equal(above(below(x)), D(x))
    assert {id(p) for p in above.parameters()} >= {id(p) for p in learning(D)}


@pytest.mark.parametrize(
    "depth, norm, fixed", [(0, "source", 0), (3, "source", 3), (5, "source", 4), (3, "batch", 1)]
)
def test_only_what_is_a_function_of_the_image_is_kept(depth, norm, fixed):
    assert fixed_layers(frozen_critic(depth, norm)) == fixed


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_scores_through_kept_features_are_the_scores(faces, augment, depth):
    D, images = frozen_critic(depth), Images.load(faces)
    both = []
    for fast in (True, False):
        torch.manual_seed(3)
        reals = Reals(Tuned(D), images, Augment(augment), fast)
        assert reals.features is None, "a run's first iteration makes them"
        both.append(torch.stack([reals.scores(6) for _ in range(4)]))
        assert (reals.features is not None) == (fast and depth > 0 and augment in ("none", "flip"))
    assert torch.allclose(*both, rtol=1e-5, atol=1e-7)
    assert both[0].std() > 0


def test_kept_features_go_on_in_the_critics_own_precision(monkeypatch, faces):
    instructions(monkeypatch, amx=True)
    D, images = frozen_critic(3, widths=8), Images.load(faces)
    exact = D(images.at(slice(None))).detach()
    (judge,) = tune(D, iterations=1)
    both = []
    for fast in (True, False):
        torch.manual_seed(3)
        both.append(Reals(judge, images, Augment("none"), fast).scores(8))
    assert torch.allclose(*both, rtol=1e-5, atol=1e-7) and both[0].dtype == torch.float32
    assert not torch.allclose(judge(images.at(slice(None))), exact, rtol=1e-5, atol=1e-7), "bf16 would show"


def test_features_that_would_fill_the_memory_are_not_kept(monkeypatch, faces):
    monkeypatch.setattr(engine, "KEPT", 1000)
    reals = Reals(Tuned(frozen_critic(2)), Images.load(faces), Augment("none"))
    assert reals.scores(2).shape == (2,) and reals.features is None
