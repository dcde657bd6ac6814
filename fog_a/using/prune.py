"""Taking blocks out of a model for good, where that is the same as closing their gates.

Closing a gate is exact in every model; taking the block out of its list is not: other blocks move up, and what goes by
a number goes wrong. So the shorter model is run before it is handed out, and must have the bits of the closed gates.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.blocks.calls import is_sharded, named_modules, unwrapped
from fog_a.blocks.gate import gate
from fog_a.blocks.interrupts import unbroken
from fog_a.blocks.untouched import preserved
from fog_a.errors import BadArgument, UnknownBlock, Unsupported, known_keywords
from fog_a.finding.blocks import find_blocks
from fog_a.flows.bare import flow_of
from fog_a.flows.case import Case, same_bits
from fog_a.flows.flow import Flow
from fog_a.flows.override import Forward
from fog_a.scores.lists import indices
from fog_a.using.numbered import why_not


@dataclass(frozen=True)
class Pruned:
    """What is left of a pruned model.

    Attributes:
        kept: old name → new name of every block that is still there, in order of execution.
        dropped: names of the blocks that were taken out.
        depth: list path → how many layers it has now: what the configuration of a fresh model needs.
        state_dict: of the model (of a flow: `flow.model`) under new names, its own tensors:
            `fresh.load_state_dict(pruned.state_dict)`.
    """

    kept: Mapping[str, str]
    dropped: tuple[str, ...]
    depth: Mapping[str, int]
    state_dict: Mapping[str, Tensor] = field(repr=False)


@known_keywords
@unbroken()
def prune(
    model: nn.Module | Flow,
    drop: Blocks | ResidualBlock | str | Sequence[str],
    batch: Any,
    *,
    forward: Forward | None = None,
) -> Pruned:
    """Take blocks out of the model itself, after a check that its output has the bits of their closed gates.

    Args:
        model: a module whose blocks are items of `ModuleList`s or `Sequential`s, or a flow. It is changed in place;
            after an error it is as it was.
        drop: blocks, or their names: `select(scores, k, by="bottom").layers`.
        batch, forward: as in `attribute`, one batch; a flow is tried at each of its times.

    Raises:
        Unsupported: taking them out is not the same as closing them, with the reason; or the model is compiled,
            wrapped or sharded. BadArgument: a whole list is dropped, or a block is no item of a list. UnknownBlock.

    A small loss now is no promise: after fine-tuning other choices may be better (TinyFusion, arXiv 2412.01199).

    Example:
        >>> import fog_a, torch
        >>> def make(depth):
        ...     layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        ...     return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        >>> net = make(4)
        >>> pruned = fog_a.prune(net, ["layers.1", "layers.2"], torch.randn(2, 5, 8))
        >>> pruned.kept, pruned.depth
        ({'layers.0': 'layers.0', 'layers.3': 'layers.1'}, {'layers': 2})
        >>> make(pruned.depth["layers"]).load_state_dict(pruned.state_dict)
        <All keys matched successfully>
    """
    flow = flow_of(model, forward)
    _check_plain(flow)
    cases = [Case(flow, batch, t) for t in flow.grid(None)]
    blocks = find_blocks(flow, batch)
    drop = drop.name if isinstance(drop, ResidualBlock) else drop
    net, dropped = blocks.model, drop if isinstance(drop, Blocks) else blocks.named(drop)
    if not dropped or dropped.model is not net:
        got = f"{len(dropped)} of another model" if dropped else "none"
        raise UnknownBlock(
            f"expected names of blocks of this model in drop=, at least one, got {got}. find_blocks lists them"
        )
    lists = _kept(net, dropped)
    _check_alone(blocks, dropped)
    modules = named_modules(net)
    with preserved(*cases[0].modules):
        for path, kept in lists.items():
            if reason := why_not(net, path, kept, cases[0].run):
                raise _refused(dropped, f"in {path or 'the model'} {reason}")
        with gate(dropped, 0):
            want = [case.run() for case in cases]
        with _shortened([(modules[path], kept) for path, kept in lists.items()]):
            _check_same(dropped, cases, want)
    now = {module: name for name, module in named_modules(net).items()}
    stems = {name: re.split(r"[@[]", name)[0] for name in blocks.names if name not in dropped.names}
    return Pruned(
        kept={name: now[modules[stem]] + name[len(stem) :] for name, stem in stems.items() if stem in modules},
        dropped=dropped.names,
        depth={path: len(kept) for path, kept in lists.items()},
        state_dict=(flow.model if isinstance(flow.model, nn.Module) else net).state_dict(),
    )


def _check_plain(flow: Flow) -> None:
    """Raises Unsupported for a model that is compiled, wrapped for many devices, or sharded."""
    for root in [m for m in (flow.model, flow.module) if isinstance(m, nn.Module)]:
        around = [m for m in root.modules() if unwrapped(m) is not m or m._compiled_call_impl is not None]
        what = f"compiled or wrapped ({type(around[0]).__name__})" if around else ""
        if is_sharded(root) or any(p.is_meta for p in root.parameters()):
            what = what or "sharded, or on the meta device"
        if what:
            raise Unsupported(f"the model is {what}: prune the plain module first, then compile, wrap or shard it")


def _kept(net: nn.Module, dropped: Blocks) -> dict[str, list[int]]:
    """List path → the numbers that stay. Raises BadArgument: a block is no item of a list, or none is left of one."""
    modules, lists = named_modules(net), {}
    for path, numbers in indices(dropped.names).items():
        parent = modules.get(path)
        if not isinstance(parent, (nn.ModuleList, nn.Sequential)):
            raise BadArgument(
                f"{path!r} is a {type(parent).__name__}: expected blocks that are items of a ModuleList. "
                "Close them by fog_a.gate(blocks, 0)"
            )
        lists[path] = [i for i in range(len(parent)) if i not in numbers]
        if not lists[path]:
            raise BadArgument(f"drop= names all {len(parent)} blocks of {path or 'the model'}: keep at least one")
    return lists


def _check_alone(blocks: Blocks, dropped: Blocks) -> None:
    """Raises Unsupported for a block that gives out something else than its stream: that goes with the block."""
    beside = {row.block or row.place: row.reason for row in blocks.coverage.of("beside")}
    for block in dropped:
        sources = [source for point in block.gate_points for source in point.give.values()]
        aside = block.form == "stream" and None in sources and any(source is not None for source in sources)
        if aside or block.name in beside:
            reason = beside.get(block.name, "its parent adds it elsewhere")
            raise _refused(dropped, f"{block.name} gives something beside its stream: {reason}")


@contextlib.contextmanager
def _shortened(lists: Sequence[tuple[nn.Module, Sequence[int]]]) -> Iterator[None]:
    """These lists with the numbered items alone; after an exception they are as they were."""
    before = [module._modules for module, _ in lists]
    try:
        for module, kept in lists:
            items = list(module._modules.values())
            module._modules = {str(i): items[k] for i, k in enumerate(kept)}
        yield
    except BaseException:
        for (module, _), modules in zip(lists, before, strict=True):
            module._modules = modules
        raise


def _check_same(dropped: Blocks, cases: Sequence[Case], want: Sequence[Tensor]) -> None:
    """Raises Unsupported where the shorter model does not run, or its output has other bits."""
    for case, v in zip(cases, want, strict=True):
        try:
            got = case.run()
        except Exception as e:
            raise _refused(dropped, f"the model does not run without them ({type(e).__name__}: {e})") from e
        if not same_bits(got, v):
            fixed = [b.name for b in dropped if b.definition == "branches"]
            reason = f"; gate 0 keeps the shortcut of {fixed[0]}, which goes with the module" if fixed else ""
            raise _refused(dropped, f"the output differs: the model goes by the number of its layers{reason}")


def _refused(dropped: Blocks, reason: str) -> Unsupported:
    return Unsupported(
        f"taking out {', '.join(dropped.names)} is not the same as closing them: {reason}. The model is as it was; "
        "fog_a.gate(blocks, 0) closes them exactly"
    )
