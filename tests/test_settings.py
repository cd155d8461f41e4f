"""Settings: each number has its bound beside it; a run from before a setting existed is still understood."""

import dataclasses
import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import pytest
import torch

import wgan_64
from tests.conftest import as_source
from tests.runs import NAMES, tiny
from transfer import UserError
from transfer.checkpoints import Checkpoints
from transfer.images import Images
from transfer.plan import Split
from transfer.record import Run
from transfer.settings import Before, Bound, check, complete, plain
from transfer.weights import Average, optimizer

METHODS = ["minegan", "mind2mind", "generative_latent_optimization", "projected_critic"]
SCRIPTS = [*NAMES, *(f"methods.{name}" for name in METHODS)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_of_every_script_has_a_bound_and_its_default_is_within(name):
    script = importlib.import_module(name)
    hints = get_type_hints(script.Settings, include_extras=True)
    for field in dataclasses.fields(script.Settings):
        kind, *marks = get_args(hints[field.name]) or (hints[field.name],)
        bounds = [mark for mark in marks if isinstance(mark, Bound)]
        assert (kind in (int, float)) == (len(bounds) == 1), field.name
        for bound in bounds:
            assert bound.holds(field.default)
            for wrong in (bound.least - 1, float("nan"), float("inf")):
                with pytest.raises(UserError, match=f"{field.name} is .*: give {bound.sentence}"):
                    check(replace(script.Settings(), **{field.name: wrong}))


def test_a_plan_is_for_as_many_layers_as_the_scripts_own():
    script = importlib.import_module("wgan_64_finetune")
    check(script.Settings(G=Split(1, 2, 2)))
    with pytest.raises(UserError, match=r"--G \(2, 2, 2\) is for 6 layers, and the network has 5"):
        check(script.Settings(G=Split(2, 2, 2)))


def test_what_a_run_does_not_tell_of_reads_as_what_runs_did_then():
    @dataclasses.dataclass(frozen=True)
    class Settings:
        old: int = 1
        new: bool = True
        changed: Annotated[str, Before("before")] = "now"
        where: Path = Path("a/b")

    assert complete(Settings, {"old": 3}) == {"old": 3, "new": True, "changed": "before", "where": "a/b"}
    assert complete(Settings, plain(Settings(changed="x"))) == plain(Settings(changed="x"))


def test_a_run_from_before_a_setting_existed_is_resumed(faces, source, tmp_path):
    script, settings = tiny("wgan_64_finetune", faces, source, tmp_path, iterations=1)
    run = script.main(settings)
    path, state = Checkpoints(run).newest()
    for key in ("optimizer", "loss", "penalty"):
        del state["settings"][key]
    Checkpoints(run).save(1, state)
    description = json.loads((run / "settings.json").read_text())
    description["settings"] = state["settings"]
    (run / "settings.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="started with --optimizer rmsprop"):
        script.main(replace(settings, resume=run, iterations=2, optimizer="adam"))
    script.main(replace(settings, resume=run, iterations=2, optimizer="rmsprop"))
    assert Checkpoints(run).newest()[1]["step"] == 2 and path.exists()


def test_the_first_step_of_the_corrected_optimizer_is_the_learning_rate():
    steps = {}
    for name in ("rmsprop", "adam"):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 3, bias=False)
        before = layer.weight.detach().clone()
        layer(torch.ones(1, 3)).sum().backward()
        optimizer(name, layer, 1e-3).step()
        steps[name] = (layer.weight - before).abs().max().item()
    assert steps["adam"] == pytest.approx(1e-3, rel=1e-3)
    assert steps["rmsprop"] == pytest.approx(1e-2, rel=1e-3)


def test_the_corrected_optimizer_is_the_other_with_its_mean_square_corrected():
    """By 1 - 0.99^t, and by nothing else: their steps from the same gradients differ by its root."""
    torch.manual_seed(0)
    steps, gradients = {}, torch.randn(5, 4, 4)
    for name in ("rmsprop", "adam"):
        layer = torch.nn.Linear(4, 4, bias=False).double()
        taught, steps[name] = optimizer(name, layer, 1e-3), []
        for gradient in gradients.double():
            before = layer.weight.detach().clone()
            layer.weight.grad = gradient
            taught.step()
            steps[name].append(layer.weight.detach() - before)
    for t, (before, corrected) in enumerate(zip(*steps.values(), strict=True), 1):
        torch.testing.assert_close(corrected, before * (1 - 0.99**t) ** 0.5, rtol=1e-5, atol=1e-9)


def test_a_generator_of_several_kinds_is_sampled_through_a_function(faces, tmp_path):
    source = as_source(wgan_64.Generator(4, 4))
    G = wgan_64.Generator(4, 4)
    G.load_state_dict(source.generator)
    average, kinds = Average(G, 0.9), []

    def draw(z):
        kinds.append(torch.arange(len(z)) % 2)
        return torch.where(kinds[-1].view(-1, 1, 1, 1) == 0, 1.0, -1.0).expand(-1, 3, 64, 64)

    scored = []

    class Scores:
        def as_dict(self):
            return {"kid": 1.0}

    def score(pixels):
        scored.append(pixels)
        return Scores()

    script, settings = tiny("wgan_64", faces, None, tmp_path, iterations=1, score_every=1)
    assert script is wgan_64
    run = Run(settings, wgan_64.__file__, Images.load(faces), {"G": G, "average": average}, "", draw, score)
    for _ in run.steps():
        run.losses(generator=torch.zeros(()))
    from PIL import Image

    with Image.open(run.folder / "samples" / "000001.png") as grid:
        assert [grid.getpixel((x, 32)) for x in (32, 96)] == [(255, 255, 255), (0, 0, 0)]
    assert scored[0].shape == (1000, 3, 64, 64) and scored[0][:2, 0, 0, 0].tolist() == [255, 0]
    assert json.loads((run.folder / "scores.jsonl").read_text())["kid"] == 1.0
