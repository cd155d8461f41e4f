"""Resuming as a person does it: the run's own settings are the defaults, and every hint works as printed."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runs import ROOT, tiny
from transfer import UserError
from transfer.checkpoints import Checkpoints
from transfer.plan import Split, plan
from transfer.settings import command, command_line, complete, flags, plain, stored


def reached(run):
    return Checkpoints(run).newest()[1]["step"]


def content(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".owner"}


PLANS = {"G": plan("finetune,adafm,adafm,freeze,freeze"), "D": Split(2, 1, 2)}


@pytest.mark.parametrize("name", ["wgan_64_transferlearning", "methods.minegan"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_run_goes_on_without_any_other_flag_and_hints_work_as_printed(
    name, program, faces, source, tmp_path, monkeypatch
):
    script, settings = tiny(name, faces, source, tmp_path / "my runs", iterations=1, seed=3, **PLANS)
    run = script.main(settings)
    monkeypatch.chdir(ROOT if name.startswith("methods") else tmp_path)
    line = command(Path(script.__file__), "--resume", "latest")
    status, out = program(line, "--out", tmp_path / "my runs")
    assert status == 0, out
    (longer,) = re.findall(r"go on longer with (.*)", out)
    status, out = program(longer)
    assert status == 0 and f"going on with {run} after iteration 1" in out
    assert reached(run) == 2
    told = json.loads((run / "settings.json").read_text())["settings"]
    assert told | {"resume": None, "iterations": 1} == plain(settings)
    status, out = program(line, "--out", tmp_path / "my runs", "--seed", 4)
    assert status == 2 and "was started with --seed 3, and that cannot change" in out
    assert "Traceback" not in out


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_another_scripts_run_names_its_own_command(program, faces, source, tmp_path):
    script, settings = tiny("wgan_64_finetune", faces, source, tmp_path, iterations=1)
    run = script.main(settings)
    status, out = program(command(ROOT / "methods" / "minegan.py", "--resume", run))
    assert status == 2
    (own,) = re.findall(r"resume it with (.*)", out)
    status, out = program(own, "--iterations", 2)
    assert status == 0 and reached(run) == 2


def test_what_cannot_be_resumed_is_said_in_one_sentence(program, tmp_path):
    line = command(ROOT / "wgan_64.py", "--resume")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file.pt").write_bytes(b"")
    reasons = {"none": "does not exist", "empty": "holds no checkpoint", "file.pt": "is a file"}
    for given, why in reasons.items():
        status, out = program(line, tmp_path / given)
        assert status == 2 and why in out and out.count("\n") == 1
    status, out = program(line, "latest", "--out", tmp_path)
    assert status == 2 and "holds no run of wgan_64.py" in out


def test_fewer_iterations_than_were_reached_do_nothing(faces, source, tmp_path, capsys):
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=3)
    run = script.main(settings)
    before = content(run)
    capsys.readouterr()
    assert script.main(replace(settings, resume=run, iterations=2)) == run
    out = capsys.readouterr().out
    assert "iteration 2 and is beyond that already: go on longer with " in out
    assert out.strip().endswith(f"--resume {run} --iterations 6")
    assert content(run) == before
    assert script.main(replace(settings, resume=run, iterations=4)) == run and reached(run) == 4


def test_a_finished_run_stays_as_it_is(faces, source, tmp_path, capsys):
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=2)
    run = script.main(settings)
    before = content(run)
    script.main(replace(settings, resume=run))
    assert "and is there: go on longer with" in capsys.readouterr().out
    assert content(run) == before


@pytest.mark.parametrize("damage", ["missing", "cut off", "no object"])
def test_without_settings_a_run_goes_on_with_those_of_its_checkpoint(
    damage, program, faces, source, tmp_path
):
    script, settings = tiny("wgan_64_transferlearning", faces, source, tmp_path, iterations=1, **PLANS)
    run = script.main(settings)
    file = run / "settings.json"
    text = file.read_text()
    file.unlink()
    if damage != "missing":
        file.write_text(text[:100] if damage == "cut off" else "[]")
    for resume in ("latest", run):
        line = command(ROOT / "wgan_64_transferlearning.py", "--resume", resume, "--out", tmp_path)
        status, out = program(line, "--iterations", 2)
        assert status == 0, out
        assert reached(run) == 2
    told = json.loads(file.read_text())
    assert told["settings"]["G"] == list(PLANS["G"]) and told["images"]["count"] == 8
    assert told["script"] == "wgan_64_transferlearning.py" and told["resumed"][0]["step"] == 1


def test_a_source_is_known_by_its_content(faces, source, tmp_path):
    script, settings = tiny("wgan_64_finetune", faces, source, tmp_path / "out", iterations=1)
    there = shutil.copy(source, tmp_path / "there.safetensors")
    run = script.main(replace(settings, source=Path(there)))
    moved = Path(there).rename(tmp_path / "moved.safetensors")
    assert script.main(replace(settings, resume=run, iterations=2, source=moved)) == run
    other, others = tiny("wgan_64_finetune", faces, source, tmp_path / "others", iterations=1)
    trained = other.main(others)
    with pytest.raises(UserError, match=r"from another model than .* \(it was .*moved.safetensors\)"):
        script.main(replace(settings, resume=run, iterations=3, source=trained))


def test_a_run_from_before_sources_were_known_by_content_goes_on_from_the_same_path(faces, source, tmp_path):
    script, settings = tiny("wgan_64_finetune", faces, source, tmp_path, iterations=1)
    run = script.main(settings)
    _, state = Checkpoints(run).newest()
    del state["source"]
    Checkpoints(run).save(1, state)
    other = Path(shutil.copy(source, tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match=r"was started with --source .*tiny.safetensors"):
        script.main(replace(settings, resume=run, iterations=2, source=other))
    assert script.main(replace(settings, resume=run, iterations=2)) == run


def test_stored_settings_are_the_settings(tmp_path, faces, source):
    for name in ("wgan_64", "wgan_64_finetune", "methods.wgan_64_regularised"):
        more = {} if name == "wgan_64" else PLANS
        script, settings = tiny(name, faces, source, tmp_path, iterations=1, **more)
        run = script.main(settings)
        assert stored(script.Settings, run, Path(script.__file__)) == settings


def test_flags_are_what_the_command_line_reads(monkeypatch):
    import wgan_64_freeze_layers as script

    settings = script.Settings(G=PLANS["G"], fast=False, images=Path("my images"), seed=2)
    words = shlex.split(flags(complete(script.Settings, plain(settings))))
    monkeypatch.setattr(sys, "argv", ["wgan_64_freeze_layers.py", *words])
    assert command_line(script.Settings) == settings
