"""The sweep: what is tried, in which order, who goes on; a worker's death loses and repeats nothing."""

import contextlib
import html
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from PIL import Image

from experiments import lines, suggest
from experiments.resume import equal
from experiments.sweep import __main__ as command
from experiments.sweep import cost, figures, page, simulation, space, summary, worker
from experiments.sweep.halving import Halving, Sweep
from tests import stand_in_script
from tests.stand_ins import tiny as projection
from transfer import UserError, record
from transfer.checkpoints import Checkpoints
from transfer.plan import Split
from transfer.signals import Stop

PLANS = tuple(f"G{G}-D{D}" for G in ("005", "122", "302") for D in ("005", "203"))


@pytest.fixture
def settings(tmp_path, monkeypatch) -> space.Settings:
    """A sweep of six plans and three rungs over the stand-in, in this process."""
    monkeypatch.setitem(sys.modules, "methods.stand_in", stand_in_script)
    monkeypatch.setattr(worker, "PAUSE", 0.05)
    monkeypatch.setattr(page, "write", lambda sweep: "")
    return space.Settings(
        images=tmp_path / "images", scripts=("stand_in",), plans=PLANS, rungs=(2, 4, 8), workers=1,
        out=tmp_path / "sweep", device="cpu", heartbeat=1,
    )  # fmt: skip


def told(sweep: Sweep) -> list[tuple]:
    """The ranking, as the page shows it, and how far each plan went."""
    return [
        (trial.user_attrs["plan"], trial.state.name, trial.intermediate_values)
        for trial in figures.ranking(sweep.trials())
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
    first, *_ = figures.ranking(sweep.trials())
    assert not first.user_attrs["plan"].startswith("G(0,0,5)") and first.value == 0.5
    loaded = optuna.load_study(study_name="sweep", storage=f"sqlite:///{settings.out / 'study.db'}")
    assert loaded.best_trial.number == first.number and loaded.best_trial.constraints["copies"] < 0
    copying = [t for t in sweep.trials() if t.user_attrs["plan"].startswith("G(0,0,5)")]
    assert {t.state for t in copying} == {TrialState.PRUNED}
    assert copying[0].constraints == {"copies": pytest.approx(0.4)}
    assert loaded.best_trial.constraints["density"] == pytest.approx(-0.24)


def test_a_run_that_diverges_is_last_and_the_sweep_goes_on(settings):
    command.main(replace(settings, plans=PLANS[2:4], set=("learning_rate=1e-4,2",)))
    trials = figures.ranking(Sweep.open(replace(settings, set=("learning_rate=1e-4,2",))).trials())
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


def test_what_two_enqueue_at_once_is_tried_once(settings):
    sweep, plans = Sweep.open(settings), space.candidates(settings)
    sweep.enqueue(plans)
    for plan in plans[:2]:
        sweep.study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=plan,
                distributions=sweep._distributions(plan),
                user_attrs={"plan": ""},
            )
        )
    command.main(settings)
    assert [trial.state for trial in sweep.study.trials[6:]] == 2 * [TrialState.FAIL]
    assert len(sweep.trials()) == 6 and set(computed(settings.out).values()) == {1}


def test_the_pruner_stops_all_but_the_first_third_and_never_all():
    study, kind = optuna.create_study(pruner=Halving(3)), optuna.distributions.CategoricalDistribution("0123")
    for number, value in enumerate((0.3, 0.1, 0.5, 0.4)):
        figures = {"constraints": {"copies": 0.1 if number == 1 else -0.1}}
        own = {
            "params": {"script": str(number)},
            "distributions": {"script": kind},
        }
        waits = optuna.create_trial(
            state=TrialState.WAITING, intermediate_values={9: value}, user_attrs={"9": figures}, **own
        )
        study.add_trial(waits)
    assert [study.pruner.prune(study, trial) for trial in study.trials] == [False, True, True, True]
    assert not study.pruner.prune(study, optuna.create_trial(value=1.0)), "it has reached no rung"


# ----------------------------------------------------------------------------------------------------------
# Death.


def begin(settings: space.Settings) -> multiprocessing.Process:
    """The sweep in a process of its own, which has all that this one has imported."""
    process = multiprocessing.get_context("fork").Process(target=command.main, args=(settings,))
    process.start()
    return process


def wait_for(condition) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def unbroken(settings: space.Settings) -> list[tuple]:
    """What one worker finds that nobody disturbs."""
    alone = replace(settings, out=settings.out.parent / "alone" / "sweep", storage=None)
    with at_once():
        command.main(alone)
    return told(Sweep.open(alone))


@contextlib.contextmanager
def at_once():
    """Meanwhile the stand-in does not pause, here and in processes that are forked from this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stand_in_script, "time", SimpleNamespace(sleep=lambda seconds: None))
        yield


def dies(settings: space.Settings, workers: int) -> None:
    """Kill one of some workers in the middle of a run, let the others or a new one end, and compare."""
    slow = replace(settings, set=("pause=0.1",), save_every=1)
    processes = [begin(slow) for _ in range(workers)]
    log = settings.out / "computed.txt"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 5)
    processes[0].kill()
    processes[0].join()
    if workers == 1:
        with at_once():
            processes.append(begin(slow))
    for process in processes[1:]:
        process.join(timeout=600)
        assert process.exitcode == 0
    times = computed(settings.out)
    assert sum(times.values()) - len(times) <= 1, "the iteration in flight alone is computed again"
    sweep = Sweep.open(slow)
    assert told(sweep) == unbroken(slow)
    assert any("failed_trial" in trial.system_attrs for trial in sweep.study.trials), "it was given back"


def test_a_sweep_that_is_killed_and_started_again_loses_the_iteration_in_flight(settings):
    dies(settings, workers=1)


def test_two_workers_on_a_journal_one_is_killed_and_nothing_is_lost(settings, tmp_path):
    dies(replace(settings, storage=str(tmp_path / "journal.log")), workers=2)


def test_workers_of_one_command_share_its_plans_and_end_with_it(settings, monkeypatch):
    fork = multiprocessing.get_context("fork")  # in which the stand-in lives on
    monkeypatch.setattr(worker.multiprocessing, "get_context", lambda kind: fork)
    slow = replace(settings, set=("pause=0.3",), save_every=1, workers=2)
    first, log = begin(slow), settings.out / "computed.txt"
    wait_for(lambda: log.exists() and len(computed(settings.out)) > 2)
    first.kill()  # its workers are told by nobody
    first.join()
    sweep = Sweep.open(slow)

    def quiet():
        before = computed(settings.out)
        time.sleep(2.5)  # a worker looks after its parent every second
        running = [t for t in sweep.study.trials if t.state == TrialState.RUNNING]
        return not running and computed(settings.out) == before

    wait_for(quiet)
    states = {trial.state for trial in sweep.study.trials}
    assert states == {TrialState.WAITING}, "put back, and none given up"
    with at_once():
        command.main(slow)
    assert told(sweep) == unbroken(slow)


def test_time_ends_a_sweep_and_the_same_command_goes_on(settings):
    slow = replace(settings, set=("pause=0.2",), save_every=1)
    sweep = Sweep.open(slow)
    sweep.enqueue(space.candidates(slow))
    worker.work(slow, until=time.time() + 1)
    states = Counter(trial.state for trial in sweep.trials())
    assert states == {TrialState.WAITING: 6}
    with at_once():
        command.main(slow)
    assert told(sweep) == unbroken(slow)
    assert sum(computed(settings.out).values()) - len(computed(settings.out)) <= 1


@pytest.fixture
def postgres():
    """The URL of a PostgreSQL of the test's own, behind a socket in a folder of its own."""
    pytest.importorskip("psycopg", reason="psycopg, PostgreSQL's driver, is not installed")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    server = shutil.which("postgres") or (found and found[-1])
    if not server:
        pytest.skip("PostgreSQL is not installed (Debian's package: postgresql)")
    binaries, prefix = Path(server).resolve().parent, []
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path has to be short
    if os.geteuid() == 0:  # whom PostgreSQL refuses
        if not shutil.which("setpriv"):
            pytest.skip("PostgreSQL does not run as root, and setpriv is not installed")
        import pwd

        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    own = {"cwd": folder, "stdout": subprocess.DEVNULL, "env": os.environ | {"LC_ALL": "C"}}
    make = [binaries / "initdb", "-D", folder / "data", "-U", "sweep", "--auth=trust", "--no-sync", "-EUTF8"]
    subprocess.run([*prefix, *make], check=True, **own)
    serve = [binaries / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses="]
    process = subprocess.Popen([*prefix, *serve, "-c", "fsync=off"], stderr=subprocess.DEVNULL, **own)
    try:
        ready = [*prefix, binaries / "pg_isready", "-h", folder]
        wait_for(lambda: subprocess.run(ready, **own).returncode == 0)
        yield f"postgresql://sweep@/postgres?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        shutil.rmtree(folder)


def test_two_workers_on_postgresql_one_is_killed_and_nothing_is_lost(settings, postgres):
    dies(replace(settings, storage=postgres, study="faces"), workers=2)


# ----------------------------------------------------------------------------------------------------------
# A real script.


def test_a_sweep_that_is_stopped_goes_on_to_the_bit(settings, source, faces, monkeypatch, tmp_path):
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(record, "SCORED", 8)
    monkeypatch.setattr("fid.scores.load", lambda *_, **__: projection(name="tiny-12-bilinear-8"))
    whole = replace(
        settings, scripts=("wgan_64_transferlearning",), images=faces, plans=PLANS[1:4], batch_size=2,
        set=(f"source={source}", "critic_steps=1"), rungs=(2, 5), density=0, out=tmp_path / "whole" / "sweep",
    )  # fmt: skip
    command.main(whole)
    broken, calls, losses = replace(whole, out=tmp_path / "sweep"), [], record.Run.losses

    def stopped(run, **found):
        calls.append(run)
        if len(calls) in (4, 8):  # in the second plan's second iteration, and within the second rung
            os.kill(os.getpid(), signal.SIGTERM)
        losses(run, **found)

    monkeypatch.setattr(record.Run, "losses", stopped)
    for _ in range(2):
        with pytest.raises(Stop) as stop:
            command.main(broken)
        assert stop.value.sentence == "and nothing is lost: the same command goes on"
    command.main(broken)
    assert len(calls) == 3 * 2 + 3, "each iteration once"
    one, other = (Sweep.open(each) for each in (whole, broken))
    assert told(one) == told(other)
    assert TrialState.FAIL not in {trial.state for trial in other.study.trials}
    runs = [each.settings.out / each.study.best_trial.user_attrs["5"]["run"] for each in (one, other)]
    states = [Checkpoints(run).newest()[1] for run in runs]
    assert states[0]["step"] == 5 and equal(*states)
    assert page.html(one).count("data:image/webp") == 4, "a strip for each plan, and the source's"


def test_many_workers_of_whom_some_die_find_what_one_finds():
    calm = simulation.Settings(plans=30, deaths=0, stragglers=0)
    rough = replace(calm, deaths=12, stragglers=0.2, save_every=1)
    one, many = simulation.Simulation(calm, 1), simulation.Simulation(rough, 7)
    assert many.deaths > 3 and one.deaths == 0
    order = [figures.ranking(each.sweep.trials()) for each in (one, many)]
    assert len(order[0]) == 30 and [t.params for t in order[0]] == [t.params for t in order[1]]
    assert [t.intermediate_values for t in order[0]] == [t.intermediate_values for t in order[1]]
    assert one.now == pytest.approx(one.busy) and many.now < one.now < many.busy


# ----------------------------------------------------------------------------------------------------------
# What one sees.


def test_optuna_alone_finds_the_pages_figures_in_the_study(settings):
    settings = replace(settings, plans=(*PLANS, "G032-D104", "G500-D005"))
    command.main(settings)
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{settings.out / 'study.db'}")
    shown = page.html(Sweep.open(settings))
    best = study.best_trial
    assert f"{best.user_attrs['plan']} is first of 8 plans ({1000 * best.value:.1f})" in html.unescape(shown)
    for trial in study.trials:
        assert f"<td>{trial.user_attrs['plan']}</td>" in shown
        first = f"{trial.user_attrs['plan']}: {1000 * trial.intermediate_values[2]:.1f} after 2"
        assert f"<title>{first}" in shown, "each is on the map"
        last = max(trial.intermediate_values)
        assert f'data-head="KID x 1000">{1000 * trial.intermediate_values[last]:.1f}</td>' in shown
    stopped = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert f"{len(stopped)} of 8 plans were stopped early" in shown
    early = optuna.create_study()
    early.add_trials(
        [
            optuna.create_trial(
                params=t.params, distributions=t.distributions, value=t.intermediate_values[2]
            )
            for t in study.trials
        ]
    )
    varied = [name for name in best.params if len({t.params[name] for t in study.trials}) > 1]
    for name, share in optuna.importance.get_param_importances(early, params=varied).items():
        assert re.search(rf"<span>{name}</span><div [^>]+></div><span>{share:.2f}</span>", shown)


def test_a_sweep_that_is_kept_is_on_the_page_of_results_and_is_what_suggest_is_compared_with(
    settings, monkeypatch, tmp_path
):
    monkeypatch.setattr(lines, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(summary, "PICTURES", tmp_path / "runs")
    settings = replace(settings, plans=(*PLANS, "G032-D104", "G500-D005"))
    with pytest.raises(UserError, match="holds no sweep to keep"):
        command.main(replace(settings, keep=True))
    Sweep.open(settings)
    with pytest.raises(UserError, match="has been scored yet"):
        command.main(replace(settings, keep=True))
    command.main(settings)
    for trial in Sweep.open(settings).trials():
        samples = settings.out / trial.user_attrs["2"]["run"] / "samples"
        samples.mkdir()
        for step in (0, trial.last_step):
            Image.new("RGB", (1024, 256)).save(samples / f"{step:06d}.png")
    command.main(replace(settings, keep=True))
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{settings.out / 'study.db'}")
    best, shown = study.best_trial, summary.markdown()
    assert "7 of 8 plans were stopped before iteration 8" in shown
    row = [
        best.user_attrs["plan"].removesuffix(", stand_in"),
        *(f"{1000 * v:.1f}" for v in best.intermediate_values.values()),
    ]
    assert f"| **{row[0]}** | {' | '.join(row[1:])} |" in shown, "the best of the ranking"
    assert shown.index(f"**{row[0]}**") == shown.index("**"), "is first in it"
    cells = next(text for text in shown.splitlines() if text.startswith("| G(0,3,2) |"))
    (tried,) = (trial for trial in study.trials if "G(0,3,2)" in trial.user_attrs["plan"])
    assert f"{1000 * tried.intermediate_values[2]:.1f}" in cells, "the map has it"
    kids = suggest.swept(settings.images.name)["2 iterations of sweep"]
    assert kids[Split(0, 3, 2), Split(1, 0, 4)] == pytest.approx(1000 * tried.intermediate_values[2])
    assert len(kids) == 8 and len(suggest.swept(settings.images.name)["8 iterations of sweep"]) == 1
    with Image.open(tmp_path / "sweeps" / "sweep.webp") as image:
        assert image.size == (8 * 64, 7 * 64), "the source and the first six plans, eight latents each"
    command.main(replace(settings, plans=(*settings.plans, "G131-D131")))
    command.main(replace(settings, plans=(*settings.plans, "G131-D131"), keep=True))
    assert "9 plans on images" in summary.markdown() and summary.markdown().count("###") == 1
