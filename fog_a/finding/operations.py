"""Operations by kind, in one table: what each does to a path, and the ways on which a stream goes on through it.

    kind       a path through it       ways
    move       stays as it is          trunk  level  bypass  passed
    scale      stays as it is          trunk  level  bypass  passed     (of the factor that moves)
    sum        stays as it is          trunk  level  bypass  passed
    norm       is bent                        level  bypass  passed
    pool       is mixed                       level  bypass
    reduce     stays as it is                 level  bypass             (over some axes)
    linear     is mixed                              bypass             (of the one operand that moves)
    pointwise  is bent                                       passed     (of one operand)
    other      is bent and mixed

The ways are sets of forks, kept for each value (`paths.Flow`). Which operands carry a stream is decided in `streams`.

Names are those of torch's dispatcher without overload, and without the underscore of the in-place form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from fog_a.blocks.tree import leaves

NONLINEAR, MIXING = 1, 2


@dataclass(frozen=True, eq=False)
class Kind:
    """A row of the table.

    Attributes:
        does: what operations of this kind do to a path, in any one of their operands: bend it, mix elements, or both.
        ways: on which a stream goes on through them.
    """

    does: int
    ways: tuple[str, ...] = ()

    def named(self, names: str) -> Kind:
        """The operations of these names are of this kind."""
        _KINDS.update(dict.fromkeys(names.split(), self))
        return self


_KINDS: dict[str, Kind] = {}
_EVERY = ("trunk", "level", "bypass", "passed")

# rearrangements: each element of the result is an element of an operand, or a constant
MOVE = Kind(0, _EVERY).named("""
    _conj _index_put_impl _reshape_alias _to_copy _unsafe_view alias as_strided as_strided_scatter cat channel_shuffle
    chunk clone constant_pad_nd contiguous copy detach diagonal expand flatten flip gather index index_put index_select
    lift_fresh mT masked_fill masked_scatter movedim narrow numpy_T pad permute pixel_shuffle pixel_unshuffle real
    repeat reshape resolve_conj resolve_neg roll rot90 scatter select select_scatter slice slice_scatter split
    split_copy split_with_sizes squeeze stack t to transpose tril triu unbind unflatten unfold unsafe_chunk unsafe_split
    unsafe_split_with_sizes unsqueeze view view_as where
""")
# products: a stream passes if the other factor does not depend on it
SCALE = Kind(0, _EVERY).named("""
    clamp clamp_max clamp_min div hardtanh mul nan_to_num neg true_divide
""")
# additions, also of chosen elements
SUM = Kind(0, _EVERY).named("""
    add addcdiv addcmul index_add lerp scatter_add sub
""")
NORM = Kind(NONLINEAR, ("level", "bypass", "passed")).named("""
    _batch_norm_impl_index _batch_norm_no_update _fused_layer_norm _fused_rms_norm _native_batch_norm_legit
    _native_batch_norm_legit_no_training batch_norm batch_norm_with_update cudnn_batch_norm group_norm instance_norm
    layer_norm miopen_batch_norm native_batch_norm native_group_norm native_layer_norm rms_norm
""")
# pooling, interpolation, padding: a shortcut may pass through them
POOL = Kind(MIXING, ("level", "bypass")).named("""
    _adaptive_avg_pool2d _adaptive_avg_pool3d _upsample_nearest_exact1d _upsample_nearest_exact2d adaptive_avg_pool1d
    avg_pool1d avg_pool2d avg_pool3d col2im im2col max_pool2d_with_indices max_pool3d_with_indices reflection_pad1d
    reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
""")
REDUCE = Kind(0, ("level", "bypass")).named("""
    all amax amin any argmax argmin linalg_vector_norm logsumexp max mean min norm prod std std_mean sum var var_mean
""")
# linear maps of one operand, products of two
LINEAR = Kind(MIXING, ("bypass",)).named("""
    _convolution _mkldnn_linear addbmm addmm addmv baddbmm bmm conv1d conv2d conv3d conv_transpose1d convolution cumsum
    dot einsum linear matmul mkldnn_convolution mkldnn_linear mm mv
""")
POINTWISE = Kind(NONLINEAR, ("passed",)).named("""
    _prelu_kernel abs acos asin atan atan2 ceil celu complex cos cosh elu erf erfc erfinv exp expm1 floor fmod frac gelu
    glu hardshrink hardsigmoid hardswish leaky_relu log log10 log1p log2 log_sigmoid_forward logit maximum minimum mish
    native_dropout polar pow prelu reciprocal relu relu6 remainder round rrelu_with_noise rsqrt rsub selu sigmoid sign
    silu sin sinh softplus softshrink softsign special_erf sqrt square tan tanh threshold trunc view_as_complex
    view_as_real xlogy
""")
OTHER = Kind(NONLINEAR | MIXING)


def kind_of(name: str) -> Kind:
    """The kind of the operation of this name."""
    return _KINDS.get(name, OTHER)


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
