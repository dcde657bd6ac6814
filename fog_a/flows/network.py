"""How a network is called: where x_t, t and the conditions go in, and where the prediction comes out."""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fog_a.errors import BadBatch, ShapeMismatch, Unsupported, misfit

CallFunction = Callable[[Any, Tensor, Tensor, dict[str, Any]], Any]
"""(net, x_t, t, cond) → output, with t as the network takes it and cond a dict of the rest of the batch."""
Out = str | int | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class NetworkCall:
    """One way to call a network.

    Args:
        x: name of its argument x_t, or None: it is the first positional one.
        t: name of its argument t, or None: it is the positional one after x_t.
        mask: key of the mask, given to the network only if its forward names it.
        rename: key of the batch → name of the argument.
        call: a function that calls the network, in place of all of these.
        out: where the prediction is in the output: a key or attribute, an index, or a function of the output.
    """

    x: str | None = "x_t"
    t: str | None = "t"
    mask: str = "mask"
    rename: Mapping[str, str] = field(default_factory=dict)
    call: CallFunction | None = None
    out: Out = None

    def check(self, net: Any) -> None:
        """Raises Unsupported where the options contradict each other, or name no argument of the network's forward."""
        if self.call is not None:
            return self._check_call(self.call)
        names = arguments(net)
        if any(p.kind is p.VAR_KEYWORD for p in _parameters(net).values()):
            return
        asked = {"x": self.x, "t": self.t, **{f"rename[{k!r}]": v for k, v in self.rename.items()}}
        for option, name in asked.items():
            if name is not None and name not in names:
                close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise Unsupported(
                    f"{option}={name!r} names no argument of {type(net).__name__}, which takes "
                    f"{', '.join(names) or 'none'}.{hint} None means by position"
                )

    def _check_call(self, call: Any) -> None:
        if not callable(call):
            raise Unsupported(f"call is a function (net, x_t, t, cond) -> output, got {call!r}")
        if why := misfit(call, 4):
            raise Unsupported(
                f"call is a function of four arguments, (net, x_t, t, cond), and does not take them: {why}. Type "
                "call=lambda net, x_t, t, cond: net(x_t, t, **cond)"
            )
        if (self.x, self.t) != ("x_t", "t") or self.rename:
            raise Unsupported(
                "call= says itself where x_t, t and the conditions go, so x=, t= and rename= contradict it. Type "
                "call=lambda net, x_t, t, cond: net(x_t, t, **cond), or leave call out"
            )

    def __call__(self, net: Any, module: Any, x_t: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """What the network predicts, in the shape of x_t.

        Args:
            net: what is called, perhaps a wrapper (DDP) of `module`, whose forward says what the arguments are named.

        Raises:
            BadBatch: it does not run on these conditions. ShapeMismatch: no tensor in the shape of x_t comes out.
        """
        if self.call is not None:
            return self.tensor(self.call(net, x_t, t, dict(cond)), x_t, "call=")
        named = {name: value for name, value in ((self.x, x_t), (self.t, t)) if name is not None}
        placed = [value for name, value in ((self.x, x_t), (self.t, t)) if name is None]
        rest = {self.rename.get(key, key): value for key, value in cond.items()}
        return self.tensor(self.run(net, module, *placed, **named, **rest), x_t, type(module).__name__)

    def run(self, net: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        """The network's output; where it does not run on the batch, the error names the arguments that it lacks."""
        names = arguments(module)
        if self.mask not in names:
            kwargs.pop(self.mask, None)
        try:
            return net(*args, **kwargs)
        except RuntimeError as error:
            if "indices" in str(error) and "Long" in str(error):
                raise BadBatch(
                    f"an embedding of {type(module).__name__} wants whole numbers and got others ({error}). If it is "
                    "the time, type time=lambda t: (999 * (1 - t)).round().long(); if a condition, give it as integers"
                ) from error
            raise
        except (TypeError, AttributeError) as error:
            lacking = [name for name in names[len(args) :] if kwargs.get(name) is None]
            extra = [name for name in kwargs if name not in names]
            if not lacking and not extra:
                raise
            raise BadBatch(
                f"{type(module).__name__} does not run on this batch: {error}. Of its arguments the batch lacks "
                f"{', '.join(lacking) or 'none'}; it gives besides {', '.join(extra) or 'none'}. "
                "Other names: type rename={'key in the batch': 'argument'}; another call: call="
            ) from error

    def tensor(self, output: Any, x_t: Tensor, source: str) -> Tensor:
        """The prediction in an output."""
        value = output
        if callable(self.out):
            value = self.out(output)
        elif self.out is not None:
            try:
                leaf = isinstance(self.out, str) and hasattr(output, self.out)
                value = getattr(output, self.out) if leaf else output[self.out]  # pyright: ignore[reportArgumentType]
            except (KeyError, IndexError, TypeError, AttributeError):
                what, out = _contents(output, x_t)
                raise ShapeMismatch(
                    f"out={self.out!r} names nothing in the network's output, {what}. Type {out}"
                ) from None
        if isinstance(value, Tensor) and value.shape == x_t.shape:
            return value
        what, out = _contents(value, x_t)
        raise ShapeMismatch(
            f"the prediction has the shape of x_t, {tuple(x_t.shape)}; {source} gave {what}. Type {out}"
        )


def _contents(output: Any, x_t: Tensor) -> tuple[str, str]:
    """What an output is, in words, and the `out=` that might be meant."""
    if isinstance(output, Tensor):
        for i, j in itertools.combinations(range(1, output.ndim), 2):
            if output.transpose(i, j).shape == x_t.shape:
                return f"{tuple(output.shape)}", f"out=lambda out: out.transpose({i}, {j})"
        return f"{tuple(output.shape)}", "a module that returns it, or out=lambda out: out[:, :n]"
    if isinstance(output, (tuple, list)):
        each = [x.shape for x in output if isinstance(x, Tensor)] == [x.shape for x in x_t]
        return f"a {type(output).__name__} of {len(output)}", "out=torch.stack" if each else "out=0"
    fields = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    names = [str(key) for key, value in fields.items() if isinstance(value, Tensor)]
    if not names:
        return f"a {type(output).__name__}", "out=lambda out: …"
    return f"a {type(output).__name__} with {', '.join(map(repr, names))}", f'out="{names[0]}"'


def arguments(net: Any) -> list[str]:
    """The names of the arguments of a network's forward, without `*args` and `**kwargs`."""
    return [name for name, p in _parameters(net).items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def argument(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], name: str | None) -> Any:
    """What a call gave under this name, by keyword or by place; None if nothing. `names`: the network's `arguments`."""
    if name is None:
        return None
    if name in kwargs:
        return kwargs[name]
    place = names.index(name) if name in names else len(args)
    return args[place] if place < len(args) else None


def _parameters(net: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(net.forward if isinstance(net, nn.Module) else net).parameters
