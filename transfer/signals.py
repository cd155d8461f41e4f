"""The signals that end a run or have it saved: heard at once, obeyed where nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

STOPS, SAVE = ("SIGTERM", "SIGHUP", "SIGINT"), "SIGUSR1"


class Stop(SystemExit):
    """The end of the program, with the exit status that the signal asks for (128 + its number).

    Attributes:
        sentence: where the program has stopped, and how it goes on.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name
        self.sentence = "before the first iteration was over: nothing is lost, and no folder stays"


class Signals:
    """What has been asked for since it was entered; the handlers of before are put back when it is left.

    SIGTERM, SIGHUP (a closed terminal) and Ctrl-C ask for a stop, SIGUSR1 for a checkpoint. A second request
    to stop ends the program at once. Signals that were ignored before, as under nohup, stay ignored; outside
    the main thread, where Python hears none, nothing happens.

    Attributes:
        stop: the signal that asked for a stop, or None.
        save: whether a checkpoint has been asked for.
        at_once: whether a stop may be raised wherever the program is, because nothing would be lost.
        leave: what is done before that, if anything.
    """

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self.save, self.at_once = False, False
        self.leave: Callable[[], None] | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in (*STOPS, SAVE):
                number = getattr(signal, name, None)  # Windows knows two of them
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == getattr(signal, SAVE, None):
            self.save = True
            return
        again, self.stop = self.stop is not None, signal.Signals(number)
        if again or self.at_once:
            if self.leave is not None:
                self.leave()
            raise Stop(number)

    def check(self) -> None:
        """Raise Stop if that has been asked for."""
        if self.stop is not None:
            raise Stop(self.stop)
