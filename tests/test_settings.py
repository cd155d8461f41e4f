"""Settings: each number has its bound beside it; a run from before a setting existed is still understood."""

import dataclasses
import importlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import pytest
import torch

import fid.__main__ as fid
import operating_file
import transfer.__main__
import wgan_64
from tests.conftest import as_source
from tests.runs import NAMES, ROOT, tiny
from transfer import UserError
from transfer.checkpoints import Checkpoints
from transfer.images import Images
from transfer.plan import Split
from transfer.record import Run
from transfer.settings import Before, Bound, check, command_line, complete, plain, user_errors
from transfer.weights import Average, optimizer

METHODS = ["minegan", "mind2mind", "generative_latent_optimization", "projected_critic", "several_targets"]
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
            for wrong in (bound.least - 1, bound.below, float("nan"), float("inf")):
                with pytest.raises(UserError, match=f"{field.name} is .*: give {bound.sentence}"):
                    check(replace(script.Settings(), **{field.name: wrong}))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_seed_is_what_torch_takes(name):
    most, script = 2**64 - 1, importlib.import_module(name)
    check(script.Settings(seed=most))
    torch.Generator().manual_seed(most)
    with pytest.raises(UserError, match=f"seed is {most + 1}: give a whole number from 0 to {most}"):
        check(script.Settings(seed=most + 1))


def given(monkeypatch, script, *words):
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, words)])
    return command_line(script.Settings)


def test_a_scripts_own_paths_are_in_the_projects_folder_wherever_it_is_started(tmp_path, monkeypatch):
    script = importlib.import_module("wgan_64_finetune")
    monkeypatch.chdir(ROOT)
    at_home = given(monkeypatch, script)
    assert at_home == script.Settings()
    monkeypatch.chdir(tmp_path)
    away = given(monkeypatch, script)
    assert away.source == ROOT / at_home.source and away.source.exists() and away.images.is_dir()
    assert away.out == ROOT / "target_domain" and away.reference is None
    assert plain(away) == plain(at_home), "a run says the same of itself"
    own = given(monkeypatch, script, "--images", "mine", "--out", "target_domain")
    assert (own.images, own.out) == (Path("mine"), Path("target_domain")), "what is given is meant from here"
    assert own.source == away.source


def test_the_users_folder_is_meant_by_a_tilde_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    script = importlib.import_module("wgan_64_finetune")
    chosen = given(
        monkeypatch, script, "--out=~/x", "--images=~", "--reference", "~/a~b", "--G", "1", "2", "2"
    )
    assert list(map(str, (chosen.out, chosen.images, chosen.reference))) == [
        "/home/anna/x",
        "/home/anna",
        "/home/anna/a~b",
    ]
    fid = importlib.import_module("fid.__main__")
    assert given(monkeypatch, fid, "~/a", "b").paths == (Path("/home/anna/a"), Path("b"))


def ended(capsys, error) -> str:
    with pytest.raises(SystemExit) as end, user_errors():
        raise error
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    return said


def test_a_name_that_is_too_long_is_one_sentence(tmp_path, capsys):
    with pytest.raises(OSError) as error:
        os.stat(tmp_path / ("x" * 5000))
    assert "longer name than the system allows" in ended(capsys, error.value)
    with pytest.raises(UserError, match="File name too long"):
        Images.load(tmp_path / ("x" * 300))
    with pytest.raises(FileNotFoundError), user_errors():
        raise FileNotFoundError(2, "No such file", "a fault of the program's")


def test_less_memory_is_had_by_what_the_program_has(monkeypatch, capsys):
    main = sys.modules["__main__"]
    torch_says = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 9"
    )
    for settings, less in ((wgan_64.Settings, "smaller --batch-size"), (fid.Settings, "smaller --count")):
        monkeypatch.setattr(main, "Settings", settings, raising=False)
        for error in (
            MemoryError(),
            torch_says,
            RuntimeError("MPS backend out of memory (MPS allocated: 9)"),
        ):
            assert f"the memory is used up: give a {less}, or fewer images\n" in ended(capsys, error)
    monkeypatch.delattr(main, "Settings")
    ways = {"draw": "give a smaller --count", "preview": "give fewer images", "share": "end other programs"}
    for command, less in ways.items():
        module = operating_file if command == "preview" else transfer.__main__
        monkeypatch.setattr(main, command, getattr(module, command), raising=False)
        monkeypatch.setattr(sys, "argv", ["python -m transfer", command])
        assert f"the memory is used up: {less}" in ended(capsys, MemoryError())


def test_what_mps_cannot_do_is_one_sentence(capsys):
    for error in (
        NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device.\nMore."),
        TypeError(
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
        ),
    ):
        said = ended(capsys, error)
        assert "mps cannot do all of this (" in said and said.endswith("): give --device cpu\n")
    for other in (RuntimeError("CUDA error: MPS client failed"), TypeError("a fault of the program's")):
        with pytest.raises(type(other)), user_errors():
            raise other


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
