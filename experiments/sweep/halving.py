"""The halving: what the workers of a sweep share, an Optuna study, and who goes on to the next rung."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.sweep.space import LAYER, Candidate, Settings, key, title
from transfer import UserError
from transfer.policies import POLICIES
from transfer.settings import plain

DEAD = 3  # heartbeats that a living worker does not miss
# What a study cannot change: all else bounds or widens it, or says how it is worked on.
FIXED = ("images", "reference", "hold_out", "scripts", "set", "rungs", "reduction", "batch_size")
FIXED += ("copies", "density", "extractor", "seed")

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats are among what Optuna calls experimental


# ----------------------------------------------------------------------------------------------------------
# Who goes on: functions of the study's trials, whoever made them and in whatever order.


def living(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count: of each candidate the first that has not failed."""
    found: dict[tuple, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.state != TrialState.FAIL:
            found.setdefault(key(trial.params), trial)
    return list(found.values())


def feasible(trial: FrozenTrial, step: int) -> bool:
    """Whether a trial kept the bounds of copies and density at a rung."""
    return all(value <= 0 for value in trial.user_attrs[str(step)]["constraints"].values())


def ranked(trials: list[FrozenTrial], step: int) -> list[FrozenTrial]:
    """The trials that have reached a rung, the best first: by KID, those beyond a bound behind all others."""
    reached = [trial for trial in trials if step in trial.intermediate_values]
    return sorted(reached, key=lambda t: (not feasible(t, step), t.intermediate_values[step], key(t.params)))


class Halving(optuna.pruners.BasePruner):
    """Successive halving: of those that reached a rung the first of every `reduction` go on, at least one.

    Asked once all have reached it. Optuna's own SuccessiveHalvingPruner decides as each arrives, so that who
    is stopped depends on who came before: two workers would find another ranking than one.
    """

    def __init__(self, reduction: int) -> None:
        self.reduction = reduction

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether a trial is to stop at the last rung that it reached."""
        if trial.last_step is None:
            return False
        order = ranked(living(study.get_trials(deepcopy=False)), trial.last_step)
        on = order[: max(1, len(order) // self.reduction)]
        return trial.number not in {each.number for each in on}


def ready(trials: list[FrozenTrial], rungs: tuple[int, ...]) -> list[FrozenTrial]:
    """Of the trials that wait those that can be worked on: at a rung all wait for the last to reach it."""
    going = [trial for trial in trials if not trial.state.is_finished()]
    behind = min((len(trial.intermediate_values) for trial in going), default=0)
    return [
        trial
        for trial in going
        if trial.state == TrialState.WAITING and len(trial.intermediate_values) in (behind, len(rungs))
    ]


# ----------------------------------------------------------------------------------------------------------
# What the workers share.


@dataclass(frozen=True)
class Sweep:
    """A sweep's study, and what its workers do with it.

    A trial is a candidate. It waits (WAITING) for its first rung, and between rungs; it is worked on
    (RUNNING) up to the next; at the end it was stopped (PRUNED) or is COMPLETE. The figures of a rung are its
    user attribute of that name, and its KID the intermediate value. A trial whose worker died has FAILed, and
    another, with all that it had reached, takes its place.
    """

    study: optuna.Study
    storage: BaseStorage
    settings: Settings

    @classmethod
    def open(cls, settings: Settings) -> Sweep:
        """The settings' study, which is made where there is none.

        Raises:
            UserError: when it cannot be opened, or is of another sweep, or of runs in a folder not seen here.
        """
        settings.out.mkdir(parents=True, exist_ok=True)
        for tries_left in (2, 1, 0):
            try:
                storage = storage_of(settings)
                study = optuna.create_study(
                    storage=storage,
                    study_name=settings.study or settings.out.resolve().name,
                    direction="minimize",
                    load_if_exists=True,
                    sampler=optuna.samplers.RandomSampler(settings.seed),  # all is enqueued: it draws nothing
                    pruner=Halving(settings.reduction),
                )
                break
            except UserError:
                raise
            except Exception as error:  # each kind of storage fails in ways of its own
                if not tries_left:
                    reason = str(error).strip().partition("\n")[0]
                    raise UserError(
                        f"the storage cannot be opened ({reason}): see that it runs, or give another"
                    ) from None
                time.sleep(1)  # two workers that make its tables at once are in each other's way
        sweep = cls(study, storage, settings)
        sweep._agree()
        return sweep

    def _agree(self) -> None:
        """Note in the study what it is of, and refuse to mix it with another."""
        own = json.loads(json.dumps({name: plain(self.settings)[name] for name in FIXED}))
        before = self.study.user_attrs.get("sweep", own)
        changed = [name for name in FIXED if before[name] != own[name]]
        if changed:
            was = ", ".join(f"{name} {before[name]}" for name in changed)
            raise UserError(
                f"{self.study.study_name} was started with {was}, and that cannot change: leave it as it was,"
                " or give another --out or --study"
            )
        mark = self.settings.out / "sweep.json"
        with contextlib.suppress(FileExistsError), open(mark, "x", encoding="utf-8") as file:
            json.dump({"folder": str(uuid.uuid4())}, file)
        folder = json.loads(mark.read_text(encoding="utf-8"))["folder"]
        if self.study.user_attrs.get("folder", folder) != folder:
            raise UserError(
                f"{self.settings.out} is not where the runs of {self.study.study_name} are: give the folder"
                " that its other workers see as --out"
            )
        if "sweep" not in self.study.user_attrs:
            self.study.set_user_attr("sweep", own)
            self.study.set_user_attr("folder", folder)

    def trials(self) -> list[FrozenTrial]:
        """One trial a candidate, see living."""
        return living(self.study.get_trials(deepcopy=False))

    def enqueue(self, candidates: list[Candidate]) -> None:
        """Add those candidates that the study does not have; of what two add at once, the first is tried."""
        known = {key(trial.params) for trial in self.trials()}
        for candidate in candidates:
            if key(candidate) not in known:
                self.study.add_trial(
                    optuna.create_trial(
                        state=TrialState.WAITING,
                        params=candidate,
                        distributions=self._distributions(candidate),
                        user_attrs={"plan": title(candidate)},
                    )
                )
        first = {trial.number for trial in self.trials()}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if trial.number not in first:
                with contextlib.suppress(UpdateFinishedTrialError):
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _distributions(self, candidate: Candidate) -> dict[str, CategoricalDistribution]:
        """The choices of each param: the same for all trials of a study."""
        choices: dict[str, Any] = {"script": self.settings.scripts}
        for text in self.settings.set:
            name, _, values = text.partition("=")
            choices[name.replace("-", "_")] = tuple(dict.fromkeys(values.split(",")))
        return {
            name: CategoricalDistribution(tuple(POLICIES) if LAYER.fullmatch(name) else choices[name])
            for name in candidate
        }

    def claim(self, trials: list[FrozenTrial]) -> Trial | None:
        """Take one of the trials that can be worked on, which nobody else gets; None when none can."""
        for trial in ready(trials, self.settings.rungs):
            with self._alone(), contextlib.suppress(UpdateFinishedTrialError):
                if self.storage.get_trial(trial._trial_id).state == TrialState.WAITING:
                    self.beat(trial._trial_id)  # first: whoever is killed from here on is missed
                    if self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                        return Trial(self.study, trial._trial_id)
        return None

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        """SQLite does not lock what it reads: two could take the same trial. The others' storages do."""
        if isinstance(self.storage, RDBStorage) and self.storage.url.startswith("sqlite"):
            return FileLock(self.settings.out / "claim.lock")
        return contextlib.nullcontext()

    def put_back(self, trial: Trial) -> None:
        """Let the trial wait: for the others at its rung, or for a worker."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    # -- heartbeats ----------------------------------------------------------------------------------------

    def beat(self, trial_id: int) -> None:
        """Say that the trial's worker lives; a journal has no heartbeat of its own, so it is an attribute."""
        if isinstance(self.storage, RDBStorage):
            self.storage.record_heartbeat(trial_id)
        else:
            self.storage.set_trial_user_attr(trial_id, "beat", time.time())

    @contextlib.contextmanager
    def beating(self, trial: Trial) -> Iterator[None]:
        """Beat in the background while a trial is worked on."""

        def beats(over: threading.Event) -> None:
            while not over.wait(self.settings.heartbeat):
                with contextlib.suppress(Exception):  # a storage that is away for a moment is asked again
                    self.beat(trial._trial_id)

        with meanwhile(beats):
            yield

    def take_back(self) -> None:
        """Let the trials of dead workers wait again, with all that they had reached."""
        if isinstance(self.storage, RDBStorage):
            optuna.storages.fail_stale_trials(self.study)
            return
        again, latest = retry(), time.time() - DEAD * self.settings.heartbeat
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("beat", 0) < latest:
                with contextlib.suppress(UpdateFinishedTrialError):
                    if self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL):
                        again(self.study, trial)


@contextlib.contextmanager
def meanwhile(does: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run a function in a thread of its own; the event that it is given is set at the end."""
    over = threading.Event()
    thread = threading.Thread(target=does, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def retry() -> RetryHeartbeatStaleTrialCallback:
    """What puts another trial in the place of one whose worker died, with all that it had reached."""
    return RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)


def storage_of(settings: Settings) -> BaseStorage:
    """Optuna's storage for what the settings name: a database's URL, a journal's file, else SQLite in out."""
    url = settings.storage or f"sqlite:///{(settings.out / 'study.db').resolve()}"
    if "://" not in url:
        return JournalStorage(JournalFileBackend(url))
    if url.startswith(("postgresql://", "postgres://")):
        url = "postgresql+psycopg://" + url.partition("://")[2]
        try:
            import psycopg  # noqa: F401
        except ModuleNotFoundError:
            raise UserError(
                "PostgreSQL needs psycopg, which is missing: pip install 'psycopg[binary]'"
            ) from None
    local = url.startswith("sqlite")
    return RDBStorage(
        url,
        engine_kwargs={"connect_args": {"timeout": 60}} if local else {"pool_pre_ping": True},
        heartbeat_interval=settings.heartbeat,
        grace_period=DEAD * settings.heartbeat,
        heartbeat_stale_trial_callback=retry(),
    )
