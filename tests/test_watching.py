"""What one sees while a run trains: its folder, its progress, its curves, and --help."""

import os
import re
import subprocess
import sys
import time

import pytest

from tests.runs import ROOT, tiny
from transfer import UserError, board
from transfer.images import Images
from transfer.plan import Split
from transfer.record import in_words
from transfer.settings import command_line

SCRIPT = "wgan_64_freeze_layers"
HEADING = "[│ ] [A-Z]+ +[│ ]"


def started(*words, **more):
    """A command line of the project, run from its folder."""
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, **more
    )


def test_without_a_terminal_lines_tell_the_folder_and_the_time_left(faces, source, tmp_path, capsys):
    script, settings = tiny(SCRIPT, faces, source, tmp_path, iterations=4, log_every=2)
    folder = script.main(settings)
    said = capsys.readouterr().out.splitlines()
    place = said.index(f"the run is in {folder}")
    told = [line for line in said if line.startswith("iteration ")]
    assert [line.partition(",")[0] for line in told] == ["iteration 2 of 4", "iteration 4 of 4"]
    assert re.fullmatch(r"iteration 4 of 4, 0 s left", told[1]) and place < said.index(told[0])


def test_what_comes_between_iterations_is_not_in_their_speed(faces, source, tmp_path, monkeypatch):
    script, settings = tiny(SCRIPT, faces, source, tmp_path, iterations=2, log_every=1, sample_every=1)
    monkeypatch.setattr("transfer.record.Run.sample", lambda run: time.sleep(1.0))
    folder = script.main(settings)
    speeds = [line["images_per_second"] for line in board.lines(folder, "log")]
    assert speeds[1] > 2 * settings.batch_size * settings.critic_steps, "a second of each is the sample's"


@pytest.mark.parametrize("seconds, words", [(40, "40 s"), (600, "10 min"), (3 * 3600, "3.0 h")])
def test_times_are_told_in_words(seconds, words):
    assert in_words(seconds) == words


def test_help_is_in_groups():
    done = started("wgan_64_freeze_layers.py", "--help", env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    lines = done.stdout.splitlines()
    headings = [line.strip("│ ") for line in lines if re.fullmatch(HEADING, line)]
    assert not done.returncode and headings == ["WHAT", "PLAN", "TRAINING", "OUTPUT", "SCORES", "START"]
    after = {
        lines[n + 1].strip("│ ").split()[0] for n, line in enumerate(lines) if re.fullmatch(HEADING, line)
    }
    assert after == {"--source", "--G", "--iterations", "--out", "--score-every", "--resume"}


@pytest.mark.parametrize("words", [("2", "2"), ("2", "2", "2"), ("freeze", "nothing")])
def test_a_wrong_plan_names_its_flag(words, capsys, monkeypatch):
    from wgan_64_freeze_layers import Settings

    monkeypatch.setattr(sys, "argv", ["wgan_64_freeze_layers.py", "--D", *words])
    with pytest.raises(SystemExit) as end:
        command_line(Settings)
    assert end.value.code == 2 and "wgan_64_freeze_layers.py: --D " in capsys.readouterr().err


def test_a_reader_that_has_read_enough_ends_nothing_in_a_traceback():
    line = f"{sys.executable} wgan_64_freeze_layers.py --dry-run | true"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert not done.stderr


def test_images_set_aside_and_never_scored_are_said_to_be_so(faces, source, tmp_path, capsys):
    script, settings = tiny(SCRIPT, faces, source, tmp_path, hold_out=0.5)
    script.main(settings)
    assert "are set aside, and --score-every 0 never scores them" in capsys.readouterr().out


def test_a_run_is_told_that_its_source_saw_through_the_judge(faces, source, tmp_path, monkeypatch):
    import fid.scores as scores

    _, settings = tiny(SCRIPT, faces, source, tmp_path, score_every=2, extractor="efficientnet_lite1")
    seen = []
    monkeypatch.setattr(scores, "load", lambda *_, **__: None)
    monkeypatch.setattr(scores, "score", lambda *_, **given: seen.append(given["seen"]))
    told = type("Told", (), {"settings": {"features": "efficientnet_lite1"}})
    monkeypatch.setattr(scores.Source, "read", lambda path: told)
    scores.scorer(settings, Images.load(faces, "cpu"))
    assert seen == [("efficientnet_lite1",)]


# ----------------------------------------------------------------------------------------------------------
# TensorBoard.

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def events(folder):
    """What TensorBoard reads of a run's event files."""
    found = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def test_the_board_has_a_runs_curves_and_grids_and_follows_it(faces, source, tmp_path):
    script, settings = tiny(SCRIPT, faces, source, tmp_path / "runs", G=Split(0, 0, 5), iterations=2)
    folder = script.main(settings)
    to = tmp_path / "events"
    (mirror,) = board.write(tmp_path / "runs", to)
    place = to / "runs" / folder.name
    losses = [line["generator"] for line in board.lines(folder, "log")]
    assert [e.value for e in events(place).Scalars("log/generator")] == pytest.approx(losses)
    assert [e.step for e in events(place).Images("samples")] == [0, 1, 2]

    script.main(script.Settings(**{**vars(settings), "resume": folder, "iterations": 4}))
    mirror.follow()
    assert [e.step for e in events(place).Scalars("log/generator")] == [1, 2, 3, 4]

    log = folder / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))  # it went back to a checkpoint
    mirror.follow()
    assert [e.step for e in events(place).Scalars("log/generator")] == [1, 2, 3]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_board_says_where_there_is_no_run_and_keeps_what_is_there(program, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        board.write(tmp_path, tmp_path / "events")
    status, out = program(f"{sys.executable} -m transfer board", tmp_path, "--to", tmp_path)
    assert status == 2 and out.startswith("python -m transfer: ") and "is there already" in out


def test_tensorboard_is_started_with_options_that_it_has(monkeypatch, faces, source, tmp_path):
    """A server that ends at once, as with a wrong option, is not waited for."""
    from tensorboard import default, program

    script, settings = tiny(SCRIPT, faces, source, tmp_path, iterations=1)
    script.main(settings)
    given = []

    class Server:
        def __init__(self, words):
            given.extend(words[3:])

        poll = terminate = wait = lambda self: 0

    monkeypatch.setattr(board.subprocess, "Popen", Server)
    board.show(tmp_path, 6006)
    program.TensorBoard(default.get_plugins()).configure(["tensorboard", *given])  # raises SystemExit if not
