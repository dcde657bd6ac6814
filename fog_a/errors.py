"""What can go wrong. Each message says what was expected, what was got and what to type next."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeGuard, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class FogError(Exception):
    """The root of every error that fog_a raises on purpose."""


class NoBlocksFound(FogError):
    """No residual block in this model."""


class NotResidual(FogError):
    """A block whose gate cannot be closed, or whose gate does not do what a gate must."""


class BadBatch(FogError, ValueError):
    """A batch that cannot be read: empty, no samples axis, missing keys."""


class BadOutput(FogError, ValueError):
    """An output without a float tensor, NaN or inf in v, or v = 0."""


class Untrained(BadOutput):
    """No block changes the velocity: all scores are zero."""


class ZeroVelocity(BadOutput):
    """v = 0 everywhere: no change can be measured relative to it. The output layer is at its zero initialisation."""


class UnknownBlock(FogError, KeyError):
    """A name that is no block of this model."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class UnknownAdapter(FogError, LookupError):
    """No adapter for this model's class, or none of this name."""


class ShapeMismatch(FogError, ValueError):
    """Tensors or scores that do not fit together."""


class BadScores(FogError, ValueError):
    """A scores file that is corrupt, foreign or of another model."""


class NotWritten(FogError, OSError):
    """A file that could not be written: a full disk, a folder without permission, a bad path."""


class BadArgument(FogError, ValueError):
    """An argument or option that names nothing, or is out of its range."""


class BadManifest(FogError, ValueError):
    """A data manifest with missing or unusable files."""


class BadFeatures(FogError, ValueError):
    """Teacher features of the wrong count or width, with NaN, or from a corrupt cache."""


class NoWeights(FogError, OSError):
    """A teacher's weights that cannot be loaded: the hub is out of reach, a file is missing or foreign."""


class NoActivations(FogError, RuntimeError):
    """Nothing was captured: no forward ran, or it ran without a graph."""


class Unsupported(FogError, NotImplementedError):
    """A combination that is refused, with the reason."""


class MissingDependency(FogError, ImportError):
    """An optional package that is absent or does not import."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a measurement. `except KeyboardInterrupt` catches it; `except Exception` does not.

    Attributes:
        scores: the Scores of the finished cells, one batch at one time each. The cell that was being measured is lost,
            also the blocks of it that were done. None: no cell was finished.
    """

    def __init__(self, message: str, scores: Any = None) -> None:
        super().__init__(message)
        self.scores = scores


def near(name: str, names: Iterable[str], n: int = 3) -> str:
    """`; near: blocks.1, blocks.2`, or nothing where no name is near.

    >>> near("block.1", ["blocks.1", "head"])
    '; near: blocks.1'
    """
    matches = difflib.get_close_matches(name, list(names), n=n, cutoff=0.4)
    return f"; near: {', '.join(matches)}" if matches else ""


def misfit(function: Callable[..., Any], count: int) -> str | None:
    """Why a function does not take so many arguments by place; None where it does, or has no signature.

    >>> misfit(lambda v, v_k: v, 3)
    'too many positional arguments'
    """
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError as error:
        return str(error)
    except ValueError:  # built in
        return None
    return None


def known_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """The same function; a keyword that it does not have is a BadArgument with the names that are near."""
    parameters = inspect.signature(function).parameters
    names = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for unknown in [k for k in kwargs if k not in parameters]:
            similar = difflib.get_close_matches(unknown, parameters, n=2) or names
            raise BadArgument(f"{function.__name__} has no keyword {unknown!r}: did you mean {', '.join(similar)}?")
        return function(*args, **kwargs)

    return checked


def is_real(x: object) -> TypeGuard[float]:
    """Whether it is a finite number, no bool."""
    return isinstance(x, numbers.Real) and not isinstance(x, bool) and math.isfinite(x)


def is_whole(n: object) -> bool:
    """Whether it is a whole number: an int or numpy's, no bool."""
    return isinstance(n, numbers.Integral) and not isinstance(n, bool)
