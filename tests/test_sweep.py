"""The sweep: what is tried, in which order, who goes on; a worker's death loses and repeats nothing."""

import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from experiments.sweep import __main__ as command
from experiments.sweep import cost, page, space, worker
from experiments.sweep.halving import Sweep
from tests import stand_in_script
from tests.runs import ROOT
from transfer import UserError

PLANS = tuple(f"G{G}-D{D}" for G in ("005", "122", "302") for D in ("005", "203"))


@pytest.fixture
def settings(tmp_path, monkeypatch) -> space.Settings:
    """A sweep of six plans and three rungs over the stand-in, in this process."""
    monkeypatch.setitem(sys.modules, "methods.stand_in", stand_in_script)
    monkeypatch.setattr(worker, "PAUSE", 0.05)
    return space.Settings(
        images=tmp_path / "images", scripts=("stand_in",), plans=PLANS, rungs=(2, 4, 8), workers=1,
        out=tmp_path / "sweep", device="cpu", heartbeat=1,
    )  # fmt: skip


def told(sweep: Sweep) -> list[tuple]:
    """The ranking, as the page shows it, and how far each plan went."""
    return [
        (trial.user_attrs["plan"], trial.state.name, trial.intermediate_values)
        for trial in page.ranking(sweep.trials())
    ]


def computed(out: Path) -> Counter:
    """How often each iteration of each run was computed."""
    return Counter((out / "computed.txt").read_text().splitlines())


# ----------------------------------------------------------------------------------------------------------
# What is tried.


def test_all_pairs_of_splits_are_tried_each_once_and_the_scripts_own_first():
    settings = space.Settings()
    every = space.candidates(settings)
    assert len(every) == len({space.key(each) for each in every}) == 441
    assert space.title(every[0]) == "G(1,2,2) D(1,2,2)"
    assert every == space.candidates(settings) != space.candidates(replace(settings, seed=1))
    two = space.candidates(replace(settings, policies=("adafm", "rank_one")))
    assert len(two) == 2 * 441 - 36, "without a rescaled layer the policy makes no difference"
    for candidate in every[:30]:
        run = space.run_settings(candidate, 5, settings)
        layers = [policy.name for policy in run.G.generator(run.rescale)]
        assert [candidate[f"G{number}"] for number in range(1, 6)] == layers
        layers = [policy.name for policy in run.D.discriminator(run.rescale)]
        assert [candidate[f"D{number}"] for number in range(1, 6)] == layers


def test_settings_are_swept_as_the_scripts_command_line_reads_them():
    settings = space.Settings(plans=("G122-D203",), set=("learning_rate=1e-4,2e-4", "fast=False"))
    first, second = space.candidates(settings)
    assert space.title(second) == "G(1,2,2) D(2,0,3), learning_rate 2e-4, fast False"
    run = space.run_settings(second, 7, settings)
    assert (run.learning_rate, run.fast, run.iterations, run.hold_out) == (2e-4, False, 7, space.ASIDE)
    assert space.run_settings(first, 7, replace(settings, reference=Path("a"))).hold_out == 0
    assert space.folder_of(first) != space.folder_of(second)


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"plans": ("G12-D122",)}, "G12-D122 is not a plan .* such as G122-D122"),
        ({"plans": ("G222-D122",)}, "is not a plan"),
        ({"set": ("learning_rate",)}, "give a setting and its values"),
        ({"set": ("speed=1",)}, "wgan_64_transferlearning has no such setting"),
        ({"set": ("learning_rate=high",)}, "cannot read that value"),
        ({"set": ("learning_rate=-1",)}, "learning_rate is -1"),
        ({"set": ("iterations=5",)}, "the sweep gives the runs their iterations"),
        ({"scripts": ("nothing",)}, "nothing.py, which is not here"),
        ({"scripts": ("projected_critic",), "extractor": "efficientnet_lite1"}, "cannot judge it"),
    ],
)
def test_what_cannot_be_tried_is_said_in_a_sentence(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        space.candidates(replace(space.Settings(), **wrong))
    with pytest.raises(UserError, match="rungs 3 2: give rising iterations"):
        space.verify(space.Settings(rungs=(3, 2)))


def test_the_cost_is_known_in_advance_and_hours_bound_the_plans(settings, capsys):
    assert cost.counts(441, (1, 2, 3), 3) == [441, 147, 49] and cost.counts(2, (1, 2), 3) == [2, 1]
    per_run = cost.each([], settings)
    assert per_run[2] == pytest.approx(2 * per_run[0]), "4 iterations from the second rung, 2 to the first"
    for hours in (0.05, 0.2):
        n = cost.within(hours, 441, [], settings, workers=2)
        spend = [cost.total(count, per_run, settings) / 3600 / 2 for count in (n, n + 1)]
        assert spend[0] <= hours < spend[1]
    command.main(replace(settings, dry_run=True))
    assert "6 plans, 6 to 2 iterations, 2 to 4 iterations, 1 to 8 iterations" in capsys.readouterr().out
    assert not settings.out.exists()


# ----------------------------------------------------------------------------------------------------------
# Who goes on.


def test_the_best_third_goes_on_at_each_rung_and_nothing_is_computed_twice(settings):
    command.main(settings)
    sweep = Sweep.open(settings)
    assert set(computed(settings.out).values()) == {1}
    runs = {each: space.candidates(replace(settings, plans=(each,)))[0] for each in PLANS}
    kids = {
        (name, rung): stand_in_script.kid(space.run_settings(candidate, rung, settings))
        for name, candidate in runs.items()
        for rung in settings.rungs
    }
    on = sorted(PLANS, key=lambda name: (name.startswith("G005"), kids[name, 2]))[:2]
    last = min(on, key=lambda name: (name.startswith("G005"), kids[name, 4]))
    reached = {space.title(runs[name]): [2, 4, 8][: 1 + (name in on) + (name == last)] for name in PLANS}
    assert {plan: list(values) for plan, _, values in told(sweep)} == reached
    assert told(sweep)[0][:2] == (space.title(runs[last]), "COMPLETE")
    assert sweep.study.best_trial.value == kids[last, 8]
    kept = [path.parent.parent.parent.name for path in settings.out.glob("*/0*/checkpoints/*.pt")]
    assert kept == [space.folder_of(runs[last])], "what was stopped keeps no weights"
    command.main(replace(settings, plans=(*PLANS, "G131-D131")))
    assert len(sweep.trials()) == 7 and set(computed(settings.out).values()) == {1}


def test_a_plan_that_copies_does_not_win_whatever_its_kid_is(settings, monkeypatch, capsys):
    monkeypatch.setattr(stand_in_script, "kid", lambda run: 0.001 if run.G.finetune == 5 else 0.5)
    command.main(settings)
    sweep = Sweep.open(settings)
    first, *_ = page.ranking(sweep.trials())
    assert not first.user_attrs["plan"].startswith("G(0,0,5)") and first.value == 0.5
    loaded = optuna.load_study(study_name="sweep", storage=f"sqlite:///{settings.out / 'study.db'}")
    assert loaded.best_trial.number == first.number and loaded.best_trial.constraints["copies"] < 0
    copying = [t for t in sweep.trials() if t.user_attrs["plan"].startswith("G(0,0,5)")]
    assert {t.state for t in copying} == {TrialState.PRUNED}
    assert copying[0].constraints["copies"] == pytest.approx(0.4)


def test_a_run_that_diverges_is_last_and_the_sweep_goes_on(settings):
    command.main(replace(settings, plans=PLANS[2:4], set=("learning_rate=1e-4,2",)))
    trials = page.ranking(Sweep.open(replace(settings, set=("learning_rate=1e-4,2",))).trials())
    assert [t.params["learning_rate"] for t in trials] == ["1e-4", "1e-4", "2", "2"]
    assert trials[0].state == TrialState.COMPLETE and trials[-1].state == TrialState.PRUNED


def test_a_study_is_not_mixed_with_another_sweep_or_another_folder(settings, tmp_path):
    Sweep.open(settings)
    with pytest.raises(UserError, match=r"started with rungs \[2, 4, 8\], and that cannot change"):
        Sweep.open(replace(settings, rungs=(2, 4)))
    url = f"sqlite:///{settings.out / 'study.db'}"
    with pytest.raises(UserError, match="is not where the runs of sweep are"):
        Sweep.open(replace(settings, out=tmp_path / "elsewhere" / "sweep", storage=url))
    with pytest.raises(UserError, match="cannot be opened"):
        Sweep.open(replace(settings, storage="nothing://here"))


def test_what_two_enqueue_at_once_is_tried_once(settings, monkeypatch):
    sweep, plans = Sweep.open(settings), space.candidates(settings)
    sweep.enqueue(plans)
    monkeypatch.setattr(Sweep, "trials", lambda self: [])
    sweep.enqueue(plans)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "methods.stand_in", stand_in_script)
    worker.work(settings)
    assert len(sweep.study.trials) == 12 and len(sweep.trials()) == 6
    assert set(computed(settings.out).values()) == {1}


# ----------------------------------------------------------------------------------------------------------
# Death.


def begin(settings: space.Settings) -> subprocess.Popen:
    """The sweep in a process of its own."""
    code = (
        "import sys; from tests import stand_in_script; sys.modules['methods.stand_in'] = stand_in_script\n"
        "from pathlib import Path, PosixPath, WindowsPath; from experiments.sweep import worker\n"
        "from experiments.sweep.__main__ import main; from experiments.sweep.space import Settings\n"
        f"worker.PAUSE = 0.05; main({settings!r})"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)


def wait_for(condition, *processes: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.02)


def unbroken(settings: space.Settings) -> list[tuple]:
    """What one worker finds that nobody disturbs."""
    alone = replace(settings, out=settings.out.parent / "alone" / "sweep", storage=None)
    stand_in_script.time = SimpleNamespace(sleep=lambda seconds: None)
    command.main(alone)
    return told(Sweep.open(alone))


def dies(settings: space.Settings, workers: int) -> None:
    """Kill one of some workers in the middle of a run, let the others or a new one end, and compare."""
    slow = replace(settings, set=("pause=0.2",), save_every=1)
    processes = [begin(slow) for _ in range(workers)]
    log = settings.out / "computed.txt"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 5, *processes)
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait()
    if workers == 1:
        processes.append(begin(slow))
    for process in processes[1:]:
        assert process.wait(timeout=120) == 0
    times = computed(settings.out)
    assert sum(times.values()) - len(times) <= 1, "the iteration in flight alone is computed again"
    sweep = Sweep.open(slow)
    assert told(sweep) == unbroken(slow)
    assert [t.state for t in sweep.study.trials].count(TrialState.FAIL) == 1


def test_a_sweep_that_is_killed_and_started_again_loses_the_iteration_in_flight(settings):
    dies(settings, workers=1)


def test_two_workers_on_a_journal_one_is_killed_and_nothing_is_lost(settings, tmp_path):
    dies(replace(settings, storage=str(tmp_path / "journal.log")), workers=2)
