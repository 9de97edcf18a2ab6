"""Trained rows of a weight, on a base as loaders give it: numpy arrays that nobody can write to."""

import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax import apply, join, merge
from lora_jax.core import rows_of
from tests.adapters.zoo import kinds


def test_rows_of_a_base_of_numpy_arrays_are_put_in_place():
    model, params, (tokens,) = kinds()
    table = np.asarray(params["embed"]["embedding"])
    table.flags.writeable = False
    base = {**params, "embed": {"embedding": table}}
    rows = rows_of(table, [1, 3])
    trained = {"embed/embedding": rows.replace(value=rows.value + 1)}
    wanted = table.copy()
    wanted[[1, 3]] += 1
    np.testing.assert_array_equal(merge(base, trained)[0]["embed"]["embedding"], wanted)
    dense = model.apply({"params": {**params, "embed": {"embedding": jnp.asarray(wanted)}}}, tokens)
    boxed = model.apply({"params": join(base, trained)}, tokens)
    np.testing.assert_allclose(boxed, dense, atol=1e-6)
    np.testing.assert_allclose(apply(model, base, trained, tokens), dense, atol=1e-6)
    with pytest.raises(ValueError, match="do not fit 'embed/embedding'"):
        join(base, {"embed/embedding": rows_of(np.ones((5, 3)), [1])})
