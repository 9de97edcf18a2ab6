"""How a weight is stored in few bits."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from lora_jax.core import codebooks
from lora_jax.core.hadamard import ROTATIONS
from lora_jax.core.plain_types import check_types
from lora_jax.core.scales import SCALE_DTYPES, SECOND_LEVELS


@dataclass(frozen=True, repr=False)
class QuantSpec:
    """How a weight is stored.

    format: a name in `lora_jax.core.codebooks.FORMATS`.
    block_size: weights that share one scale, along the input axis; None gives one scale for each
        output channel.
    double: the scales are stored in 8 bits, 256 to a group, by `second_level`: 'mean' is QLoRA's,
        'log' is safe where some blocks are far larger than others, 'tensor' is NVFP4's: E4M3
        under one float32 number a matrix (with block size 16 and format 'fp4_e2m1').
    scale_dtype: of scales that are not double quantised: 'float32', 'bfloat16', or 'e8m0', the
        power-of-two scales of MX (with block size 32 and an MX format).
    fit: how a block's scale is chosen, and its offset: 'range' by its largest magnitude (with an
        offset by its smallest and largest weight), 'hqq' for a smaller p-norm of the error, p =
        0.7, 'entropy' with an offset for each block by which its codes have the largest entropy
        (IR-QLoRA; formats of 2 to 4 bits): see `lora_jax.core.fits`.
    rotation: 'hadamard' quantises the weight with its inputs rotated (`lora_jax.core.hadamard`), which
        spreads outliers; what is read is rotated back.
    kernel: what multiplies with the weight, see `lora_jax.kernels.choice`.
    """

    format: str = "nf4"
    block_size: int | None = 64
    double: bool = True
    scale_dtype: str = "float32"
    second_level: str = "mean"
    fit: str = "range"
    rotation: str = "none"
    # No part of what is stored, so in no file and no fingerprint; but part of a program's key.
    kernel: str = field(default="auto", repr=False)

    def __post_init__(self) -> None:
        check_types("QuantSpec.", self, double=bool)
        format, size = codebooks.format_named(self.format), self.block_size
        counted = isinstance(size, int) and not isinstance(size, bool)
        if size is not None and (not counted or size < 2 or size % 2):
            raise ValueError(
                "block_size must be an even number of weights or None (one block a column), got "
                f"{size!r}."
            )

        for name, known in (
            ("scale_dtype", SCALE_DTYPES),
            ("second_level", SECOND_LEVELS),
            ("fit", codebooks.FITS),
            ("rotation", ROTATIONS),
            ("kernel", ("auto", "reference", "pallas")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}."
                )
        if self.double and self.scale_dtype != "float32":
            raise ValueError(
                f"scale_dtype {self.scale_dtype!r} needs double=False: double quantisation stores "
                "the scales in 8 bits."
            )
        if self.double and self.second_level == "tensor" and format.offset:
            raise ValueError(
                f"second_level 'tensor' needs a symmetric format, and {self.format!r} has an "
                "offset. Use 'mean' or 'log'."
            )
        if self.scale_dtype == "e8m0" and format.offset:
            raise ValueError(
                f"scale_dtype 'e8m0' needs a symmetric format, and {self.format!r} has an offset. "
                "Use 'bfloat16'."
            )

        codebooks.check_fit(format, self.fit, self.scale_dtype)
        if self.fit == "entropy" and self.double and self.second_level == "tensor":
            raise ValueError(
                "second_level 'tensor' is NVFP4's, which has no offsets, and fit 'entropy' makes "
                "some. Use second_level 'mean' or 'log'."
            )

    def __repr__(self) -> str:
        # Fingerprints of quantised weights are of this text: what came later is left out where it
        # is as it was before.
        later = {"fit": "range", "rotation": "none"}
        shown = [
            f"{one.name}={value!r}"
            for one in fields(self)
            if one.repr and (value := getattr(self, one.name)) != later.get(one.name)
        ]
        return f"QuantSpec({', '.join(shown)})"

    @property
    def has_zero(self) -> bool:
        """Whether each block has an offset (`QuantizedArray.zero`)."""
        return codebooks.format_named(self.format).offset or self.fit == "entropy"

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return codebooks.format_named(self.format).bits
