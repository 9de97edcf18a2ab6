"""Updates that are no product of two thin factors: a rotation of the inputs (OFT), entries of the
weight's spectrum (FourierFT), entries of the weight itself (SHiRA). What is trained is one vector a
matrix.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from lora_jax.core.adapted import Adapted
from lora_jax.core.lowrank import in_use
from lora_jax.core.trainable import Trainable


class Change(Trainable, struct.PyTreeNode, repr=False):
    """What `form` makes of a weight seen as a matrix (rows, columns), by n trained numbers.

    'oft': each block of `block` inputs is rotated by the Cayley transform of a skew-symmetric
        matrix Q, whose entries above the diagonal are the numbers, block by block and row by row:
        the adapted weight is R W. `terms` is 0 for (I - Q)(I + Q)^-1, else it is PEFT's Neumann
        series of that many terms, of which Q has the other sign.
    'fourierft': W plus the real part of the inverse Fourier transform (divided by rows * columns)
        of a matrix that is 0 but at `where`.
    'shira': W plus a matrix that is 0 but at `where`.

    `scale` multiplies the numbers: 0 where one is padding or a layer of the stack is not adapted.
    `where` counts the entries of the matrix row by row. `in_axes` are the input axes of the weight,
    stack axes not counted.
    """

    value: Float[Array, "*stack n"]
    scale: Float[Array, "*stack n"]
    where: Int[Array, "*stack n"] | None = None
    form: str = struct.field(pytree_node=False, default="shira")
    rows: int = struct.field(pytree_node=False, default=0)
    columns: int = struct.field(pytree_node=False, default=0)
    block: int = struct.field(pytree_node=False, default=0)
    terms: int = struct.field(pytree_node=False, default=0)
    in_axes: tuple[int, ...] = struct.field(pytree_node=False, default=(0,))
    kind = "change"
    # What products, merges and files ask of factors.
    of_base: ClassVar[bool] = True
    rounded: ClassVar[str] = ""
    dropout: ClassVar[None] = None
    magnitude: ClassVar[None] = None

    @property
    def rank(self) -> int:
        """The numbers of a matrix, padding included."""
        return self.scale.shape[-1]

    @property
    def rotates(self) -> bool:
        """Whether it acts on the inputs alone."""
        return self.form == "oft"

    def changed(self, base: Float[Array, "*stack in out"]) -> Float[Array, "*stack in out"]:
        """The adapted weight of a float32 matrix."""
        if not self.rotates:
            return base + self.delta()
        blocks = base.reshape(*base.shape[:-2], -1, self.block, base.shape[-1])
        return jnp.einsum("...kij,...kjo->...kio", self.rotation(), blocks).reshape(base.shape)

    def turned(self, x: Float[Array, "batch in"]) -> Float[Array, "batch in"]:
        """`x @ R` of one matrix: what the base is to be multiplied with in place of x."""
        blocks = x.reshape(x.shape[0], -1, self.block)
        return jnp.einsum("tki,kij->tkj", blocks, self.rotation().astype(x.dtype)).reshape(x.shape)

    def rotation(self) -> Float[Array, "*stack blocks block block"]:
        """The diagonal blocks of R (Qiu et al. 2023, arXiv 2306.07280, section 3.3; the series: Qiu
        et al. 2025, arXiv 2506.19847, section 3).
        """
        size, stack = self.block, self.value.shape[:-1]
        rows, columns = np.triu_indices(size, 1)
        numbers = (self.value * self.scale).astype(jnp.float32).reshape(*stack, -1, len(rows))
        upper = jnp.zeros((*numbers.shape[:-1], size, size), jnp.float32)
        upper = upper.at[..., rows, columns].set(numbers)
        q, eye = upper - jnp.swapaxes(upper, -1, -2), jnp.eye(size, dtype=jnp.float32)
        if not self.terms:
            return jnp.linalg.solve(eye + q, eye - q)  # The two commute.
        # As PEFT counts its terms: the last power is there once, the others twice.
        powers = [eye]
        for _ in range(self.terms - 1 if self.terms < 3 else max(self.terms - 1, 3)):
            powers.append(powers[-1] @ q)
        whole = sum((2 * power for power in powers[1:]), jnp.broadcast_to(eye, q.shape))
        return whole if self.terms < 3 else whole - powers[-1]

    def delta(self, dtype: Any = jnp.float32) -> Float[Array, "*stack in out"] | None:
        """The dense update; None of a rotation, whose update takes the base."""
        if self.rotates:
            return None
        size = self.rows * self.columns

        def placed(numbers: Array, where: Array) -> Array:
            return jnp.zeros(size, jnp.float32).at[where].add(numbers)

        numbers = (self.value * self.scale).astype(jnp.float32)
        dense = jnp.vectorize(placed, signature="(n),(n)->(m)")(numbers, self.where)
        dense = dense.reshape(*numbers.shape[:-1], self.rows, self.columns)
        return (jnp.fft.ifft2(dense).real if self.form == "fourierft" else dense).astype(dtype)

    def plain(self) -> Any:
        """Refused: no thin factors give this update."""
        raise ValueError(
            f"An update of variant {self.form!r} is no product of thin factors: none compute the "
            "same. Merge it into the base (merge), and go on from there."
        )

    def trained_fields(self) -> tuple[str, ...]:
        """The numbers."""
        return ("value",)

    def label(self, field: str) -> str:
        """'vector'."""
        return "vector"

    def decays(self, field: str) -> bool:
        """The numbers do: they are all of the update."""
        return True

    def described(self) -> tuple[tuple[int, ...], str]:
        """Shape of the weight, and how many numbers change a matrix, for a table."""
        return (*self.value.shape[:-1], self.rows, self.columns), f"{self.form} {self.rank}"

    def active_parameters(self) -> int:
        """Numbers in use, of all layers; of shapes all."""
        return int(in_use(self.scale).sum())

    def onto(self, base: Any, path: str, key: jax.Array | None = None) -> Adapted:
        """The weight's box with this change.

        Raises:
            ValueError: it is of a weight of another shape.
        """
        stack = self.value.shape[:-1]
        kernel = tuple(base.shape[len(stack) :])
        inputs = [kernel[axis] for axis in self.in_axes if axis < len(kernel)]
        same = tuple(base.shape[: len(stack)]) == tuple(stack)
        if not same or (math.prod(inputs), math.prod(kernel)) != (
            self.rows,
            self.rows * self.columns,
        ):
            raise ValueError(
                f"The adapter of {path!r} does not fit: it changes a stack {tuple(stack)} of "
                f"{self.rows} x {self.columns}, and the weight has shape {tuple(base.shape)}. It "
                "was made for another model or another layout of this one."
            )
        return Adapted(base=base, lora=self)

    def pad(self, like: Change) -> Change:
        """The same change with as many numbers as `like`.

        Raises:
            ValueError: `like` is another kind of change, or has fewer numbers.
        """
        if (self.form, self.block, self.terms) != (like.form, like.block, like.terms):
            raise ValueError(
                f"variant {self.form!r} in blocks of {self.block} is no {like.form!r} in blocks of "
                f"{like.block}: they have no arrays in common."
            )
        return self.with_rank(like.rank)

    def with_rank(self, rank: int) -> Change:
        """The same change with `rank` numbers, those that are added of scale 0.

        Raises:
            ValueError: it has more, or is a rotation, whose blocks would be others.
        """
        extra = rank - self.rank
        if extra < 0 or (extra and self.rotates):
            raise ValueError(
                f"a change by {self.rank} numbers (variant {self.form!r}) cannot be padded to "
                f"{rank}."
            )
        return self._each(lambda x: jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, extra)]))

    def used_columns(self) -> np.ndarray:
        """The numbers that some layer uses."""
        return np.flatnonzero(np.any(np.asarray(self.scale).reshape(-1, self.rank) != 0, axis=0))

    def trim(self) -> Change | None:
        """The same without numbers that no layer uses; None if none is used."""
        used = self.used_columns()
        return self._each(lambda x: jnp.take(x, used, axis=-1)) if used.size else None

    def _each(self, change: Any) -> Change:
        where = None if self.where is None else change(self.where)
        return self.replace(value=change(self.value), scale=change(self.scale), where=where)
