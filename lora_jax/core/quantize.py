"""Blockwise quantised weights: `quantize`, the box that dequantises itself, and honest bytes."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Shaped, UInt8

from lora_jax.core import codebooks, scales
from lora_jax.core.boxes import Boxed
from lora_jax.core.codes import block_sizes, decode, encode, has_raw_levels
from lora_jax.core.fits import block_scales
from lora_jax.core.hadamard import rotated, rotated_back
from lora_jax.core.matrix import from_matrix, to_matrix
from lora_jax.core.mesh import Cut, dividing
from lora_jax.core.order import unfused
from lora_jax.core.paths import flatten
from lora_jax.core.quant_spec import QuantSpec
from lora_jax.core.scales import DoubleQuantized

_DAMAGED = 0.05  # a scale is damaged when storing it in 8 bits moves it by more than this


class QuantizedArray(Boxed, repr=False):
    """A weight in k-bit codes. Reading it gives the dequantised weight.

    The weight is seen as a matrix (in, out): `in_axes` names which of its axes (stack axes not
    counted) are inputs. `codes` is (*stack, `bit_packing.packed_rows(in, bits)`, out), so (*stack,
    in / 2, out) for 4 bits. `scale` is (*stack, blocks, out) in the spec's `scale_dtype` (uint8
    exponents for 'e8m0'), or `DoubleQuantized` with n = out * blocks. `zero`, for formats with an
    offset, is the smallest weight of each block, stored as `scale` is; with fit 'entropy' what is
    added to its weights. `kernel_shape` is the
    weight's shape without stack axes. `in_scale` (*stack, in) multiplies the rows (activation-aware
    quantisation), if there is one. `cut` says how it lies on a mesh, if it does.
    """

    codes: UInt8[Array, "*stack packed out"]
    scale: Shaped[Array, "*stack blocks out"] | DoubleQuantized
    spec: QuantSpec = struct.field(pytree_node=False)
    kernel_shape: tuple[int, ...] = struct.field(pytree_node=False)
    in_axes: tuple[int, ...] = struct.field(pytree_node=False)
    dtype: Any = struct.field(pytree_node=False)
    kind = "quantised"
    zero: Shaped[Array, "*stack blocks out"] | DoubleQuantized | None = None
    in_scale: Float[Array, "*stack in"] | None = None
    cut: Cut | None = struct.field(pytree_node=False, default=None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, stack axes first."""
        return (*self.codes.shape[:-2], *self.kernel_shape)

    @property
    def ndim(self) -> int:
        """Number of axes of the weight, stack axes counted."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Inputs of the weight as a matrix."""
        return math.prod(self.kernel_shape[axis] for axis in self.in_axes)

    def __repr__(self) -> str:
        shape, format = self.described()
        return f"QuantizedArray({format}, {list(shape)}, {bytes_of(self):,} bytes)"

    def described(self) -> tuple[tuple[int, ...], str]:
        """Shape of the weight and its format, for a table: `nf4/64 double`."""
        spec = self.spec
        block = "column" if spec.block_size is None else spec.block_size
        extra = ["double" if spec.double else spec.scale_dtype]
        extra += [] if spec.fit == "range" else [spec.fit]
        extra += [] if spec.rotation == "none" else [spec.rotation]
        extra += [] if self.in_scale is None else ["in_scale"]
        return self.shape, " ".join([f"{spec.format}/{block}", *extra])

    def matrix(self, dtype: Any = None) -> Float[Array, "*stack in out"]:
        """The dequantised weight as matrices, computed in float32 and rounded once to `dtype` (its
        own by default).
        """
        q = self._gathered()
        weight = decode(q.codes, q.scale, q.zero, q.spec, q.rows)
        if q.spec.rotation != "none":
            weight = rotated_back(unfused(weight))
        if q.in_scale is not None:
            weight = weight * q.in_scale[..., None]
        return weight.astype(self.dtype if dtype is None else dtype)

    def unrotated(self) -> QuantizedArray:
        """The same codes read as they lie: of a weight whose inputs are rotated."""
        return self.replace(spec=dataclasses.replace(self.spec, rotation="none"))

    def _gathered(self) -> QuantizedArray:
        """Itself as a product takes it, cut along the mesh's `model` alone: the codes travel and the
        stored scales, not the dense weight.
        """
        cut = self.cut
        if cut is None:
            return self
        rows, columns = cut.in_product
        # A block of which two devices had a part each would make the dense weight travel.
        blocks = block_sizes(self.rows, self.spec.block_size)[1]
        rows = dividing(blocks, cut.mesh, rows)

        def whole(stored: Any) -> Any:
            if isinstance(stored, DoubleQuantized):  # Each device restores its own outputs' scales.
                return stored.replace(
                    codes=cut.held(stored.codes, columns),
                    absmax=cut.held(stored.absmax),
                    offset=cut.held(stored.offset),
                )
            return None if stored is None else cut.held(stored, rows, columns)

        return self.replace(
            codes=cut.held(self.codes, rows, columns),
            scale=whole(self.scale),
            zero=whole(self.zero),
            in_scale=None if self.in_scale is None else cut.held(self.in_scale, rows),
        )

    def unbox(self) -> Array:
        """The dequantised weight in its own shape and dtype."""
        return from_matrix(self.matrix(), self.kernel_shape, self.in_axes)

    def recoded(self, matrix: Float[Array, "*stack in out"], *, refit: bool) -> QuantizedArray:
        """Other matrices in this weight's format: the levels nearest to them under the scales that
        are stored, or with `refit` under new ones, as `quantize` fits them.

        An `in_scale` stays. All programs give the same bytes.
        """
        matrix = unfused(matrix.astype(jnp.float32))
        if self.in_scale is not None:
            matrix = unfused(matrix * (1 / self.in_scale)[..., None])
        matrix = in_its_basis(matrix, self.spec)
        if refit:
            codes, scale, zero = _fitted(matrix, self.spec)[:3]
            return self.replace(codes=codes, scale=scale, zero=zero)
        shape = block_sizes(matrix.shape[-2], self.spec.block_size)[1], matrix.shape[-1]
        zero = None if self.zero is None else scales.load(self.zero, *shape)
        codes = encode(matrix, scales.load(self.scale, *shape), zero, self.spec)
        return self.replace(codes=codes)


def quantize(
    w: Float[Array, "*axes"],
    spec: QuantSpec,
    *,
    kernel_ndim: int = 2,
    in_axes: tuple[int, ...] = (0,),
) -> QuantizedArray:
    """The k-bit codes and per-block scales whose product is nearest `w`, block by block.

    The last `kernel_ndim` axes of `w` are the weight, seen as a matrix (in, out) whose inputs are
    `in_axes`; axes before them are a stack of weights that are quantised one by one. Blocks run
    along `in`; each is divided by its largest magnitude and rounded to the nearest level of the
    format (ties as `codebooks.Format` says). A last block may be short. With `spec.double`, the
    scales themselves are stored in 8 bits, 256 to a group: 0.127 bits a weight, not 0.5.

    Where in % block_size == 0, codes, scales and nested scales of the transposed matrix equal
    bitsandbytes' on CUDA; for other sizes, and for what its CPU backend does otherwise, see
    `lora_jax.io.bitsandbytes`.

    Reference: QLoRA, Dettmers et al. 2023, section 3 (arXiv 2305.14314).

    Raises:
        TypeError: `w` is no array, or `spec` no QuantSpec.
        ValueError: `w` has too few axes, is not floating, is empty, or holds a NaN or an infinity
            (outside jit only).

    Warns:
        UserWarning: storing the scales in 8 bits damages more than 2 % of those of a matrix
            (outside jit only).

    >>> quantize(jnp.ones((128, 32)), QuantSpec(double=False)).codes.shape
    (64, 32)
    """
    if not isinstance(spec, QuantSpec) or not hasattr(w, "ndim"):
        raise TypeError(
            "quantize needs an array and a QuantSpec, such as quantize(w, QuantSpec('nf4')); got "
            f"{type(w).__name__} and {spec!r:.80}."
        )
    if w.ndim < kernel_ndim or not 0 < len(in_axes) < kernel_ndim or not w.size:
        raise ValueError(
            f"Cannot quantise a weight of shape {w.shape} with {kernel_ndim} kernel axes, of which "
            f"{in_axes} are inputs: needed at least one input and one output axis, none of size 0."
        )
    if not jnp.issubdtype(w.dtype, jnp.floating):
        raise ValueError(
            f"Cannot quantise a weight of dtype {w.dtype}: needed a floating dtype. Leave it out "
            "of the quantisation rules."
        )

    codes, scale, zero, damaged, finite = _quantize_matrix(w, spec, kernel_ndim, in_axes)
    if not isinstance(finite, jax.core.Tracer):
        check_quantized(w.shape, bool(finite), damaged)
    return QuantizedArray(
        codes=codes,
        scale=scale,
        zero=zero,
        spec=spec,
        kernel_shape=tuple(w.shape[w.ndim - kernel_ndim :]),
        in_axes=tuple(in_axes),
        dtype=jnp.dtype(w.dtype),
    )


def check_quantized(shape: tuple[int, ...], finite: bool, damaged: Array | None) -> None:
    """Raises, or warns, as `quantize` of a weight of this shape does by what was found of it."""
    if not finite:
        raise ValueError(
            f"Cannot quantise a weight of shape {shape}: it holds a NaN or an infinity. "
            "Repair the checkpoint, or leave it out."
        )
    if damaged is not None and float(damaged) > 0.02:
        warnings.warn(
            f"Double quantisation moves {100 * float(damaged):.1f} % of the scales of a matrix "
            f"in a {shape} weight by more than {_DAMAGED:.0%}: some blocks are far larger "
            "than others. Use QuantSpec(second_level='log') or double=False for it (in a run's "
            "config: quant.second_level='log').",
            stacklevel=3,
        )


def store_scales(scale: Array, zero: Array | None, spec: QuantSpec) -> tuple[Any, Any]:
    """(scales, zeros) in the form that the spec stores."""
    top = codebooks.format_named(spec.format).top
    stored = scales.store(
        scale, double=spec.double, dtype=spec.scale_dtype, level=spec.second_level, top=top
    )
    if zero is None:
        return stored, None
    return stored, scales.store(zero, double=spec.double, dtype=spec.scale_dtype, level="mean")


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _quantize_matrix(
    w: Array, spec: QuantSpec, kernel_ndim: int, in_axes: tuple[int, ...]
) -> tuple[Array, Any, Any, Array | None, Array]:
    matrix = in_its_basis(to_matrix(w, kernel_ndim, in_axes), spec)
    return *_fitted(matrix, spec), jnp.isfinite(matrix).all()


def in_its_basis(
    matrix: Float[Array, "*stack in out"], spec: QuantSpec
) -> Float[Array, "*stack in out"]:
    """The matrix whose codes a format stores: in float32 with its inputs rotated, if it does that.

    Raises:
        ValueError: the inputs are of an odd number.
    """
    if spec.rotation == "none":
        return matrix
    return unfused(rotated(matrix.astype(jnp.float32)))


def _fitted(matrix: Array, spec: QuantSpec) -> tuple[Array, Any, Any, Array | None]:
    """Codes under scales fitted to a matrix, these and the zeros as stored, and the damage."""
    scale, zero = block_scales(matrix, spec)
    blocks, out = scale.shape[-2:]
    stored, stored_zero, damaged = stored_scales(scale, zero, spec)
    if codes_need_stored(spec):
        scale = scales.load(stored, blocks, out)
        zero = None if zero is None else scales.load(stored_zero, blocks, out)
    return encode(matrix, scale, zero, spec), stored, stored_zero, damaged


@functools.partial(jax.jit, static_argnums=2, inline=True)
def stored_scales(
    scale: Array, zero: Array | None, spec: QuantSpec
) -> tuple[Any, Any, Array | None]:
    """The scales and zeros as they are stored, and the largest share that is damaged by it."""
    stored, stored_zero = store_scales(scale, zero, spec)
    # NVFP4's scales have 3 bits behind the first, and codes are chosen under what is stored.
    if not spec.double or spec.second_level == "tensor":
        return stored, stored_zero, None
    damaged = _damaged(stored, stored_zero, scale, zero, spec).mean((-2, -1)).max()
    return stored, stored_zero, damaged


def codes_need_stored(spec: QuantSpec) -> bool:
    """Whether codes are nearest under the scale that will be read; QLoRA takes the exact one."""
    plain = spec.second_level == "mean" and spec.scale_dtype == "float32"
    return spec.has_zero or not plain or spec.fit != "range"


def scale_damage(w: Float[Array, "*axes"], q: QuantizedArray) -> Float[Array, "*stack"]:
    """For each matrix of `w`, the share of blocks whose stored scale is off by more than 5 %.

    A zero that is off by as much of its block's range counts as well. Above a hundredth, double
    quantisation has met blocks of very different sizes: `QuantSpec(second_level='log')` stores
    them.
    """
    matrix = in_its_basis(to_matrix(w, len(q.kernel_shape), q.in_axes), q.spec)
    scale, zero = block_scales(matrix, q.spec)
    return _damaged(q.scale, q.zero, scale, zero, q.spec).mean((-2, -1))


def _damaged(
    stored: Any, stored_zero: Any, scale: Array, zero: Array | None, spec: QuantSpec
) -> Array:
    # A block of less than a fifth of the average may be off by more: that is little of the matrix.
    allowed = _DAMAGED * jnp.maximum(scale, 0.2 * scale.mean((-2, -1), keepdims=True))
    shape, format = scale.shape[-2:], codebooks.format_named(spec.format)
    unit = format.top if has_raw_levels(spec) and not format.offset else 1.0
    off = jnp.abs(scales.load(stored, *shape) * unit - scale) > allowed
    if zero is None:
        return off
    allowed_of_zero = allowed * (format.limit if format.offset else 1)
    return off | (jnp.abs(scales.load(stored_zero, *shape) - zero) > allowed_of_zero)


def dequantize(tree: Any) -> Any:
    """The tree with every quantised weight dense, in its own dtype, one weight after the other.

    The same model, faster where it reads few tokens at a time, at the unquantised one's memory.
    """

    def is_quantized(leaf: Any) -> bool:
        return isinstance(leaf, QuantizedArray)

    return jax.tree.map(
        lambda leaf: _dense(leaf) if is_quantized(leaf) else leaf, tree, is_leaf=is_quantized
    )


_dense = jax.jit(QuantizedArray.unbox)


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays stored in a tree, or of such shapes; boxes counted by what they store."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_by_path(tree: Mapping[str, Any]) -> dict[str, int]:
    """`bytes_of` every parameter of nested mappings, by path."""
    return {path: bytes_of(leaf) for path, leaf in flatten(tree).items()}
