"""Weights as matrices: `from_matrix` undoes `to_matrix`, and the matrix is the one of the
contraction.
"""

import itertools

import jax
import numpy as np
import pytest

from lora_jax.core.matrix import from_matrix, to_matrix

KERNEL = (2, 3, 4)
CHOICES = [axes for n in (1, 2) for axes in itertools.combinations(range(3), n)] + [(2, 0)]


@pytest.mark.parametrize("stack", [(), (5,), (2, 2)])
@pytest.mark.parametrize("in_axes", CHOICES)
def test_from_matrix_undoes_to_matrix(in_axes: tuple[int, ...], stack: tuple[int, ...]) -> None:
    w = np.arange(np.prod([*stack, *KERNEL])).reshape(*stack, *KERNEL)
    matrix = to_matrix(jax.numpy.asarray(w), 3, in_axes)
    assert matrix.shape == (
        *stack,
        np.prod([KERNEL[axis] for axis in in_axes]),
        np.prod([KERNEL[axis] for axis in range(3) if axis not in in_axes]),
    )
    assert np.array_equal(from_matrix(matrix, KERNEL, in_axes), w)


@pytest.mark.parametrize("in_axes", CHOICES)
def test_the_matrix_contracts_as_the_kernel_does(in_axes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    w, x = (
        rng.integers(-9, 9, KERNEL),
        rng.integers(-9, 9, (7, *(KERNEL[axis] for axis in in_axes))),
    )
    letters = "abc"
    inputs = "".join(letters[axis] for axis in in_axes)
    outputs = "".join(letter for letter in letters if letter not in inputs)
    expected = np.einsum(f"t{inputs},{letters}->t{outputs}", x, w)
    assert np.array_equal(
        x.reshape(7, -1) @ np.asarray(to_matrix(jax.numpy.asarray(w), 3, in_axes)),
        expected.reshape(7, -1),
    )
