"""What must hold for any residual network: held against random ones whose forward is written by hand with its gates.

`FOG_A_EXAMPLES` sets the number of examples per property: 40 in `make test`, 500 in `make soak`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_nets import Net, build, nets
from random_parents import Spec
from torch import Tensor

import fog_a
from fog_a.errors import ShapeMismatch

EXAMPLES = int(os.environ.get("FOG_A_EXAMPLES", "40"))
random_nets = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
)
ANY = ("float32", "float64", "bfloat16", "float16")
RTOL = {"float64": 1e-6, "float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2}  # Scores.values are float32
SMALLEST = 0.5
"""A score below this is a difference of nearly equal numbers: it is held to the absolute error allowed at this one
(5e-6 in float32, where v itself is known to some 1e-6; float64 nets are held to ten times less)."""


def score(v_k: Tensor, v: Tensor) -> np.ndarray:
    """Eq. 9 per sample."""
    v_k, v = v_k.double().flatten(1), v.double().flatten(1)
    return ((v_k - v).norm(dim=1) / (v.norm(dim=1) + 1e-8)).numpy()


def agree(got: np.ndarray, want: np.ndarray, rtol: float, doubt: float = 0.0) -> None:
    np.testing.assert_array_less(np.abs(got - want), rtol * np.maximum(np.abs(want), SMALLEST) + doubt + 1e-12)


Gatings = Sequence[tuple[dict[int, Any], dict[tuple[int, int], Any]]]


def true_scores(net: Net, gatings: Gatings) -> np.ndarray:
    """(S, gatings), by hand."""
    v = net.v()
    return np.stack([score(net.v(*gates), v) for gates in gatings], 1)


def doubt(net: Net, gatings: Gatings, want: np.ndarray) -> float:
    """How well float32 knows these scores: a norm of a tiny update, say, multiplies each rounding. Ten times what the
    hand-written forward itself is off by, against the same in float64."""
    if net.spec.dtype != "float32":
        return 0.0
    return 10 * float(np.abs(true_scores(build(replace(net.spec, dtype="float64")), gatings) - want).max())


def run(net: Net) -> Tensor:
    """The output under whatever hooks stand, on a fresh batch."""
    return net.run()


def found(net: Net, level: Literal["layer", "branch"] = "layer") -> fog_a.Blocks:
    return fog_a.find_blocks(net.module, net.batch, level=level)


def close(p: str, label: str) -> bool:
    """A module is the labelled one, or lies inside it, or around it."""
    return any(p == q or p.startswith(q + ".") or q.startswith(p + ".") for q in label.split("|"))


def matched(net: Net) -> Iterator[tuple[int, fog_a.Blocks, Any]]:
    """Each block with the number of its layer and its label."""
    blocks = found(net)
    assert len(blocks) == len(net.labels)
    for k, label in enumerate(net.labels):
        yield k, blocks[k : k + 1], label


def places(got: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Which label each module answers: every label once."""
    assert len(got) == len(labels), got
    answers = [next((i for i, label in enumerate(labels) if close(p, label)), -1) for p in got]
    assert sorted(answers) == list(range(len(labels))), got
    return answers


@random_nets
@given(nets(dtypes=ANY))
def test_every_layer_is_found_in_order_under_its_own_name(spec: Spec) -> None:
    net = build(spec)
    blocks = found(net)
    names = [label.name or block.name for label, block in zip(net.labels, blocks, strict=False)]
    assert list(blocks.names) == names and len(blocks) == len(net.labels), net.labels
    for block, label in zip(blocks, net.labels, strict=True):
        assert (block.form, block.main) == (label.form, label.main), block
        assert label.form == "branch" or block.definition == label.definition, block
        assert label.inputs in (None, block.inputs), block
        places(block.parts, label.parts)


@random_nets
@given(nets())
def test_scores_are_those_of_a_forward_written_by_hand(spec: Spec) -> None:
    compare_scores(build(spec))


@random_nets
@given(nets(dtypes=("float64", "bfloat16", "float16")))
def test_scores_in_other_precisions(spec: Spec) -> None:
    compare_scores(build(spec))


def compare_scores(net: Net) -> None:
    main = net.main
    gatings = [({k: 0}, {}) for k in main]
    want = true_scores(net, gatings)
    assume(want.max() > 0.01)  # all scores (nearly) zero is an error, tested elsewhere
    scores = fog_a.attribute(net.module, net.batch, progress=False)
    if all(net.labels[k].name for k in main):
        assert list(scores.layers) == [net.labels[k].name for k in main]
    assert scores.values.shape == (net.spec.samples, 1, len(main))
    agree(scores.values[:, 0], want, RTOL[net.spec.dtype], doubt(net, gatings, want))


@random_nets
@given(nets(dtypes=ANY), st.data())
def test_gate_one_is_bit_equal_to_no_gate(spec: Spec, data: st.DataObject) -> None:
    net = build(spec)
    blocks = found(net)
    chosen = data.draw(st.slices(len(blocks)))
    value = data.draw(st.sampled_from([1, 1.0, torch.ones(spec.samples), torch.ones(())]))
    v = run(net)
    with unless_ambiguous(net), fog_a.gate(blocks[chosen], value):
        assert torch.equal(run(net), v)
    assert torch.equal(run(net), v)


@random_nets
@given(nets(dtypes=ANY))
def test_gate_zero_gives_the_stream_back(spec: Spec) -> None:
    """What block k hands on with its gate closed is, to the bit, what it was handed."""
    net = build(spec)
    for k, block, label in matched(net):
        if label.form != "stream" or label.definition != "identity":
            continue
        module, inputs, outputs = net.ends(k)
        calls: list[tuple[list[Tensor], list[Tensor]]] = []
        with fog_a.gate(block, 0):
            before = module.register_forward_pre_hook(
                lambda m, args, kwargs: calls.append(([x.clone() for x in inputs(args, kwargs)], [])),  # noqa: B023
                with_kwargs=True,
            )
            after = module.register_forward_hook(
                lambda m, args, out: calls[-1][1].extend(x.clone() for x in outputs(out))  # noqa: B023
            )
            run(net)
        before.remove()
        after.remove()
        ins, outs = calls[int(label.name.split("@")[1]) if "@" in label.name else 0]
        assert all(torch.equal(x, y) for x, y in zip(ins, outs, strict=True))


@random_nets
@given(nets())
def test_taps_read_what_each_layer_hands_on(spec: Spec) -> None:
    """Also when the next layer writes into it."""
    net = build(spec)
    assume(hands_on(net))
    blocks = found(net)
    with fog_a.tap(blocks) as h:
        run(net)
    for block, streams in zip(blocks, net.streams(), strict=True):
        same_streams(h.all[block.name], streams)
        assert any(h[block.name] is x for x in h.all[block.name])


def hands_on(net: Net) -> bool:
    """Whether a module receives what each layer gives: not if the parent adds and returns at once."""
    return net.spec.topology != "lists" or bool(net.spec.head)


def same_streams(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    assert len(got) == len(want)
    for x in want:
        errors = [float((x - y).float().norm() / x.float().norm()) for y in got if y.shape == x.shape]
        assert errors and min(errors) <= 1e-5, errors


@random_nets
@given(nets(), st.sampled_from([0.25, 0.5, 0.75]), st.booleans())
def test_gates_between_interpolate(spec: Spec, value: float, every: bool) -> None:
    """In one block, or in all blocks at once."""
    net = build(spec)
    blocks = found(net)
    if every:
        with fog_a.gate(blocks, value):
            same_v(run(net), net.v(dict.fromkeys(range(len(blocks)), value)))
        return
    for k, block, _ in matched(net):
        with fog_a.gate(block, value):
            same_v(run(net), net.v({k: value}))


@random_nets
@given(nets(), st.data())
def test_gates_per_sample(spec: Spec, data: st.DataObject) -> None:
    """0 and 1 select, anything between interpolates, each sample for itself."""
    net = build(spec)
    values = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=spec.samples, max_size=spec.samples)
    for k, block, _ in matched(net):
        value = torch.tensor(data.draw(values))
        with unless_ambiguous(net), fog_a.gate(block, value):
            same_v(run(net), net.v({k: value}))


@contextlib.contextmanager
def unless_ambiguous(net: Net) -> Iterator[None]:
    """A gate per sample is never guessed: it may be refused where several axes are as long as the batch."""
    try:
        yield
    except ShapeMismatch:
        assert any([*x.shape].count(net.spec.samples) > 1 for streams in net.streams() for x in streams)


def same_v(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@random_nets
@given(nets(dtypes=("float32", "bfloat16")))
def test_all_gates_closed_leaves_no_update(spec: Spec) -> None:
    net = build(spec)
    with fog_a.gate(found(net), 0):
        got = run(net)
    want = net.v(dict.fromkeys(range(len(net.labels)), 0))
    rtol = 1e-5 if spec.dtype == "float32" else 2e-2
    torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * float(want.float().abs().max()))


@random_nets
@given(nets())
def test_branches_are_single_updates(spec: Spec) -> None:
    """level="branch": one for each update, in order, scored by closing that one alone."""
    assume(spec.topology != "dual" or "joint" not in spec.option)  # there one module updates both streams
    net = build(spec)
    pairs = [(k, j) for k in net.main for j in range(len(net.labels[k].parts))]
    parts = [net.labels[k].parts[j] for k, j in pairs]
    gatings = [({}, {pair: 0}) for pair in pairs]
    want = true_scores(net, gatings)
    unsure = doubt(net, gatings, want)
    assume(want.max() > 0.01)
    blocks = found(net, "branch").main
    scores = fog_a.attribute(net.module, net.batch, blocks=blocks, progress=False)
    if spec.topology == "dual":  # which of two streams comes first is not said
        want = want[:, places([block.name for block in blocks], parts)]
    agree(scores.values[:, 0], want, RTOL["float32"], unsure)


@pytest.mark.hypothesis
@pytest.mark.parametrize("name", sorted({"stack", "stages", "tied", "lists", "unet", "dual", "convnet"}))
def test_the_reference_is_the_module(name: str) -> None:
    """The hand-written forward with all gates open, against the module's own."""

    @settings(random_nets, max_examples=max(EXAMPLES // 5, 10))
    @given(nets(dtypes=ANY, topologies=(name,)))
    def check(spec: Spec) -> None:
        net = build(spec)
        got, want = net.run(), net.v()
        assert got.dtype == want.dtype
        rtol = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}[spec.dtype]
        assert float((got - want).float().norm()) <= rtol * float(want.float().norm())

    check()
