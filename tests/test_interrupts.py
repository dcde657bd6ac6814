"""Ctrl-C at any moment leaves nothing, and the probes of two threads take turns."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from small_flow import Statistics, a_batch, a_flow
from small_nets import Layer, tokens
from test_no_trace import messy, same, state_of
from torch import nn

import fog_a
from fog_a.blocks.untouched import preserved

Prepared = tuple[nn.Module, Callable[[], Any]]


def found() -> Prepared:
    net, x = messy(), tokens()
    return net, lambda: fog_a.find_blocks(net, x)


def attributed() -> Prepared:
    net, x = messy(), tokens()
    return net, lambda: fog_a.attribute(net, x, progress=False)


def gated() -> Prepared:
    """By hand, outside any probe."""
    net, x = nn.Sequential(Layer(4), Layer(4), Layer(4)), tokens()
    blocks = fog_a.find_blocks(net, x)

    def run() -> None:
        with fog_a.gate(blocks, 0.5), fog_a.gate(blocks[:1], 0), fog_a.tap(blocks):
            net(x)

    return net, run


def stored() -> Prepared:
    flow, batch = a_flow(), a_batch(30)
    return flow.module, lambda: fog_a.lasp(flow, batch, Statistics(), times=2)


PROBES = {"find_blocks": found, "attribute": attributed, "gate and tap": gated, "lasp": stored}


class Alarm:
    """A handler that raises as Ctrl-C does, once each time that it is armed."""

    armed = False

    def __call__(self, number: int, frame: object) -> None:
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt


def interrupted(prepare: Callable[[], Prepared], hits: int, seed: int) -> None:
    """So many interrupts that hit the call, by a timer at random moments of it; each leaves nothing."""
    net, call = prepare()
    call()
    start = time.perf_counter()
    call()
    lasts = time.perf_counter() - start
    draw = random.Random(seed)
    before = state_of(net)
    alarm = Alarm()
    users = signal.signal(signal.SIGALRM, alarm)
    try:
        for _ in range(20 * hits):  # one that comes after the call has ended is no hit
            try:
                alarm.armed = True
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, lasts))
                call()
                alarm.armed = False
            except KeyboardInterrupt as error:
                hits -= 1
                same(before, state_of(net))  # now, not when the exception with its frames is forgotten
                del error
            assert signal.getsignal(signal.SIGALRM) is alarm
            same(before, state_of(net))
            if not hits:
                return
        pytest.fail(f"{hits} interrupts did not hit")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        time.sleep(0.01)
        signal.signal(signal.SIGALRM, users)


# hypothesis listens to the garbage collector: an exception raised inside that callback is nobody's to catch
LOST = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@LOST
@pytest.mark.parametrize("name", PROBES)
def test_an_interrupt_leaves_nothing(name: str) -> None:
    interrupted(PROBES[name], 30, seed=0)


@LOST
@pytest.mark.soak
@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("seed", range(1, 4))
def test_three_thousand_interrupts_leave_nothing(name: str, seed: int) -> None:
    interrupted(PROBES[name], 250, seed)


@pytest.mark.parametrize("shared", [True, False])
def test_threads_take_turns(shared: bool) -> None:
    """On one model and on two: the scores are those of a call alone, and nothing is left."""
    nets = [messy()] * 2 if shared else [messy(), messy()]
    want = [fog_a.attribute(net, tokens(), progress=False).values.tobytes() for net in nets]
    before, scores = [state_of(net) for net in nets], dict[int, list[bytes]]()

    def work(i: int) -> None:
        scores[i] = [fog_a.attribute(nets[i], tokens(), progress=False).values.tobytes() for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scores == {i: [want[i]] * 5 for i in range(2)}
    for net, was in zip(nets, before, strict=True):
        same(was, state_of(net))


def test_an_interrupt_ends_the_wait_for_another_threads_probe() -> None:
    """Ctrl-C while this thread waits for its turn is not held back until the other's has ended."""
    entered, leave = threading.Event(), threading.Event()

    def lasting() -> None:
        with preserved(nn.Identity()):
            entered.set()
            leave.wait(20)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    other, net = threading.Thread(target=lasting), messy()
    before = state_of(net)
    other.start()
    entered.wait()
    users = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            fog_a.attribute(net, tokens(), progress=False)
        assert time.perf_counter() - start < 10
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, users)
        leave.set()
        other.join()
    same(before, state_of(net))
    assert fog_a.attribute(net, tokens(), progress=False).values.shape == (3, 1, 3)
