"""Operations by what they do to a stream. Whatever is not named is taken to be nonlinear and mixing.

Names are those of torch's dispatcher without overload, and without the underscore of the in-place form.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from fog_a.blocks.tree import leaves


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MOVE = _names("""
    _conj _index_put_impl _reshape_alias _to_copy _unsafe_view alias as_strided as_strided_ as_strided_scatter cat
    channel_shuffle chunk clone constant_pad_nd contiguous copy detach diagonal expand flatten flip gather index
    index_put index_select lift_fresh mT masked_fill masked_scatter movedim narrow numpy_T pad permute pixel_shuffle
    pixel_unshuffle real repeat reshape resolve_conj resolve_neg roll rot90 scatter select select_scatter slice
    slice_scatter split split_copy split_with_sizes squeeze squeeze_ stack t t_ to transpose transpose_ tril triu
    unbind unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_ view view_as
    where
""")
"""Rearrangements: each element of the result is an element of an operand (or a constant)."""
SCALE = _names("""
    clamp clamp_max clamp_min div hardtanh mul nan_to_num neg true_divide
""")
"""Products: a stream passes if the other factor does not depend on it."""
SUM = _names("""
    add addcdiv addcmul index_add lerp scatter_add sub
""")
"""Additions, also of chosen elements."""
NORM = _names("""
    _batch_norm_impl_index _batch_norm_no_update _fused_layer_norm _fused_rms_norm _native_batch_norm_legit
    _native_batch_norm_legit_no_training batch_norm batch_norm_with_update cudnn_batch_norm group_norm instance_norm
    layer_norm miopen_batch_norm native_batch_norm native_group_norm native_layer_norm rms_norm
""")
"""Normalizations: they pass a stream on after an update only (post-norm)."""
POOL = _names("""
    _adaptive_avg_pool2d _adaptive_avg_pool3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    adaptive_avg_pool1d avg_pool1d avg_pool2d avg_pool3d col2im im2col max_pool2d_with_indices
    max_pool3d_with_indices reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d
""")
"""Pooling, interpolation, padding: a shortcut may pass through them."""
LINEAR = _names("""
    _convolution _mkldnn_linear addbmm addmm addmv baddbmm bmm conv1d conv2d conv3d conv_transpose1d convolution cumsum
    dot einsum linear matmul mkldnn_convolution mkldnn_linear mm mv
""")
"""Linear maps of one operand, products of two."""
POINTWISE = _names("""
    _prelu_kernel abs acos asin atan atan2 ceil celu complex cos cosh elu erf erfc erfinv exp expm1 floor fmod frac
    gelu glu hardshrink hardsigmoid hardswish leaky_relu log log10 log1p log2 log_sigmoid_forward logit maximum
    minimum mish native_dropout polar pow prelu reciprocal relu relu6 remainder round rrelu_with_noise rsqrt rsub
    selu sigmoid sign silu sin sinh softplus softshrink softsign special_erf sqrt square tan tanh threshold trunc
    view_as_complex view_as_real xlogy
""")
"""Functions of each element."""
REDUCE = _names("""
    all amax amin any argmax argmin linalg_vector_norm logsumexp max mean min norm prod std std_mean sum var
    var_mean
""")
"""Reductions over axes."""

_STRAIGHT = MOVE | SCALE | SUM | POOL | LINEAR | REDUCE | {"alias"}
_APART = MOVE | SCALE | SUM | NORM | POINTWISE | REDUCE | {"alias"}


def base(name: str) -> str:
    """The operation's name without the underscore of its in-place form."""
    return name if name.startswith("_") or not name.endswith("_") else name[:-1]


NONLINEAR, MIXING = 1, 2


@functools.cache
def effect(name: str) -> int:
    """What it does to a path: `NONLINEAR` in any one of its operands, `MIXING` elements of them, or both."""
    bends = name not in _STRAIGHT or name.startswith(("max_pool", "clamp", "hardtanh"))
    return NONLINEAR * bends | MIXING * (name not in _APART)


class Watching(TorchDispatchMode):
    """A mode that sees every operation, also those that hold functions (`flex_attention`, `torch.cond`)."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing compiled runs inside; torch's guard against it would import its compiler: a second


def has_schema(func: Any) -> bool:
    """Is it an ordinary operation, rather than one that holds functions?"""
    return isinstance(func, OpOverload)


_WRITES: dict[Any, tuple[tuple[int, str], ...]] = {}


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors among the arguments that `func` writes into."""
    places = _WRITES.get(func)
    if places is None:
        schema = func._schema.arguments if has_schema(func) else ()
        marked = [(i, a.name) for i, a in enumerate(schema) if a.alias_info is not None and a.alias_info.is_write]
        places = _WRITES[func] = tuple(marked)
    if not places:
        return []
    found = []
    for i, name in places:
        arg = kwargs[name] if name in kwargs else args[i] if i < len(args) else None
        found += [t for _, t in leaves(arg)]
    return found
