"""How adapters read a dict: what it must hold, what it tells of its samples, and a smaller dict of the same kind.

Besides a model's own keys a batch may hold what no network takes and every adapter reads: `ids`, `domains` and `groups`
(one name per sample), `audio` (B, N), its `rate` in Hz and `audio_lengths`, and `crops` (B, 2), start and end of each
sample in its clip in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fog_a.blocks.tree import leaves, replaced
from fog_a.errors import BadBatch
from fog_a.flows.noise import content_ids
from fog_a.flows.samples import Samples

ABOUT = ("ids", "domains", "groups", "crops", "audio", "rate", "audio_lengths")
"""Keys of a batch that tell of its samples and are not given to the network."""


def require_keys(batch: Any, keys: Sequence[str], reader: str, hint: str) -> None:
    """BadBatch if the batch is no mapping with these keys."""
    if not isinstance(batch, Mapping):
        raise BadBatch(f"{reader} reads a dict with {', '.join(keys)}, got {type(batch).__name__}. {hint}")
    missing = [key for key in keys if key not in batch]
    if missing:
        got = ", ".join(map(str, batch)) or "nothing"
        raise BadBatch(f"{reader}: the batch lacks {', '.join(missing)} (it has {got}). {hint}")


def to_module(batch: Mapping[str, Any], module: nn.Module, *data: str) -> dict[str, Any]:
    """The batch with its tensors on the module's device, as every trainer does.

    Raises:
        BadBatch: a tensor under one of the keys `data` is of another floating dtype than the weights.
    """
    weight = (
        next((p for p in module.parameters() if p.is_floating_point()), None) if isinstance(module, nn.Module) else None
    )
    if weight is None:
        return dict(batch)
    given = {key: batch.get(key) for key in data}
    odd = [
        (k, x) for k, x in given.items() if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != weight.dtype
    ]
    if odd and not torch.is_autocast_enabled(weight.device.type):
        key, x = odd[0]
        raise BadBatch(
            f"the batch's {key!r} is {x.dtype}, the model's weights are {weight.dtype}. "
            f"Type batch[{key!r}] = batch[{key!r}].to({weight.dtype}), or run under torch.autocast"
        )
    return replaced(dict(batch), {path: x.to(weight.device) for path, x in leaves(batch) if x.device != weight.device})


def samples_from(
    batch: Mapping[str, Any],
    x1: Tensor,
    *,
    lengths: Sequence[int] | None = None,
    axis: int = 1,
    mask: Bool[Tensor, "B ..."] | None = None,
    named: str | Callable[[Any], Sequence[str]] | None = None,
    shared: Sequence[str] = (),
    padded: Mapping[str, tuple[int, str]] | None = None,
) -> Samples:
    """The Samples of a dict whose data is x1 (B, …): what its keys `ids`, `domains`, `audio`, … tell, and `rows`.

    Args:
        lengths, axis: valid entries of each sample of x1, and the axis along which the others are padding.
        named: the domain, where the batch tells none.
        shared, padded: as `rows` takes them.
    """
    if len(x1) == 0:
        raise BadBatch("expected at least one sample, got an empty batch")
    ids = batch.get("ids")
    given = named(batch) if callable(named) else batch.get("domains", named or "all")
    domains = [given] * len(x1) if isinstance(given, str) else given
    crops = None if batch.get("crops") is None else torch.as_tensor(batch["crops"], dtype=torch.float64).cpu()
    if crops is not None and crops.shape != (len(x1), 2):
        raise BadBatch(f"crops: expected start and end of each sample, ({len(x1)}, 2), got {tuple(crops.shape)}")
    for what, names in (("ids", ids), ("domains", domains), ("groups", batch.get("groups"))):
        if names is not None and len(names) != len(x1):
            raise BadBatch(f"one of {what} per sample: expected {len(x1)}, got {len(names)}")
    return Samples(
        ids=content_ids(x1, lengths, axis) if ids is None else tuple(map(str, ids)),
        domains=tuple(map(str, domains)),
        rows=lambda index: rows(batch, index, len(x1), shared, padded or {}),
        audio=batch.get("audio"),
        rate=batch.get("rate"),
        lengths=batch.get("audio_lengths"),
        mask=mask,
        groups=tuple(map(str, batch.get("groups", ()))),
        crops=crops,
    )


def rows(
    batch: Mapping[str, Any],
    index: Sequence[int],
    count: int,
    shared: Sequence[str] = (),
    padded: Mapping[str, tuple[int, str]] | None = None,
) -> dict[str, Any]:
    """The samples at `index`, of everything in the batch that has one entry per sample; the rest is kept.

    Args:
        shared: keys of what belongs to no sample, though it may have as many entries.
        padded: key → (its axis of frames, key of the lengths): cut to the longest sample that is left, for models that
            size their masks and embeddings by the lengths.
    """
    where = [int(i) for i in index]

    def pick(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) == count:
            return value[torch.tensor(where, device=value.device, dtype=torch.long)]
        if isinstance(value, Mapping):
            return {key: pick(part) for key, part in value.items()}
        if isinstance(value, tuple) and value and all(isinstance(part, Tensor) for part in value):
            return tuple(pick(part) for part in value)  # arguments of the network, each with all samples
        if isinstance(value, (list, tuple)) and len(value) == count:
            return type(value)([value[i] for i in where])
        return value

    fewer = {key: value if key in shared else pick(value) for key, value in batch.items()}
    for key, (axis, lengths) in (padded or {}).items() if where else ():
        fewer[key] = fewer[key].narrow(axis, 0, int(max(fewer[lengths])))
    return fewer
