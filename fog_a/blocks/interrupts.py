"""Ctrl-C leaves nothing: a signal that would raise while a context is entered or left waits until it has been.

An exception between an act and the note that it must be undone leaves the act undone by nobody, and Python looks for
signals in between. So while a probe lasts, our handler stands before the user's: where the signal comes inside an
`__enter__` or `__exit__` (torch's and contextlib's too) it is sent again a moment later.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

_SIGNALS = [getattr(signal, s) for s in ("SIGINT", "SIGALRM", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, s)]
_HERE = os.path.dirname(__file__)
_PAUSE = 0.0005
_turn = threading.RLock()


class _Handlers:
    """The user's handlers of signals, behind ours while `depth` is not 0."""

    def __init__(self) -> None:
        self.depth = 0
        self._users: dict[int, Any] = {}
        self._outermost: FrameType | None = None

    def begin(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python runs handlers in its main thread
        try:
            self.depth += 1
            if self.depth == 1:
                self._outermost = _caller()
                self._stand_before()
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self.depth -= 1
        if self.depth == 0:
            self._outermost = None
            try:
                self._step_back()
            finally:
                self._step_back()  # a signal may have broken the first

    def _stand_before(self) -> None:
        for number in _SIGNALS:
            users = signal.getsignal(number)
            if callable(users) and users != self._handle:
                self._users[number] = users
                signal.signal(number, self._handle)

    def _step_back(self) -> None:
        for number, users in self._users.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, users)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._in_between(frame):
            _thread.start_new_thread(_again, (number,))
        else:
            self._users[number](number, frame)

    def _in_between(self, frame: FrameType | None) -> bool:
        """Whether a context is being entered or left, below the outermost of ours."""
        waits = frame is not None and frame.f_code is _take_turn.__code__
        if waits and not _turn._is_owned():  # pyright: ignore[reportAttributeAccessIssue] - as threading.Condition asks
            return False  # another thread's probe may last: nothing is done yet
        while frame is not None and frame is not self._outermost:
            name, file = frame.f_code.co_name, frame.f_code.co_filename
            if name in ("__enter__", "__exit__") or (file == contextlib.__file__ and name != "inner"):
                return True
            frame = frame.f_back
        return False


_handlers = _Handlers()


def _again(number: int) -> None:
    time.sleep(_PAUSE)
    os.kill(os.getpid(), number)


def _caller() -> FrameType | None:
    """The innermost frame outside this folder and contextlib: it holds the `with`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (
        frame.f_code.co_filename == contextlib.__file__ or os.path.dirname(frame.f_code.co_filename) == _HERE
    ):
        frame = frame.f_back
    return frame


class unbroken(contextlib.ContextDecorator, contextlib.AbstractContextManager[None]):
    """Inside, a signal breaks neither the entering nor the leaving of a context; it breaks what lies between.

    Leaving other contexts belongs inside. Outside the main thread, where no handler runs, it does nothing. Public calls
    are decorated with it, for contexts that they open outside a probe: torch's own have the same gap.
    """

    def __enter__(self) -> None:
        _handlers.begin()

    def __exit__(self, *exc: object) -> None:
        _handlers.end()


class alone(contextlib.AbstractContextManager[None]):
    """`unbroken`, and no other thread's probe meanwhile: generators, flags and hooks belong to the whole process."""

    def __enter__(self) -> None:
        _handlers.begin()
        try:
            _take_turn()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # it was broken before it had its turn
                _turn.release()
            _handlers.end()
            raise

    def __exit__(self, *exc: object) -> None:
        _turn.release()
        _handlers.end()


def _take_turn() -> None:
    _turn.acquire()
