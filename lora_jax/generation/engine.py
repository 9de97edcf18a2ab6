"""Tokens from a decoder with a cache of static shape: one program for prompts, one for the rest."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from lora_jax.adapters.apply import apply, join
from lora_jax.core.host import to_device
from lora_jax.core.paths import flatten, unflatten
from lora_jax.core.platform import platform
from lora_jax.generation.sampling import Sampling, choose
from lora_jax.models.decoder import Cache, Decoder, empty_cache
from lora_jax.models.t5 import T5, T5Cache


class GenerationState(struct.PyTreeNode):
    """Texts in the making: `logits` of the next token; in `out` the `count` tokens so far, then pad."""

    cache: Cache | T5Cache
    logits: Float[Array, "batch vocab"]
    seen: Bool[Array, "batch vocab"]
    out: Int[Array, "batch new"]
    count: Int[Array, ""]
    done: Bool[Array, " batch"]
    keys: jax.Array


class PerText(struct.PyTreeNode):
    """Adapters of which every text of a batch has its own: all arrays count texts first."""

    trainable: Any


class Generator:
    """Continues token ids. Prompts and results are padded to sizes that repeat, so that programs
    are compiled once.

    `frozen` and `trainable` are what `lora_jax.adapt` or a loader gives; `trainable` may be empty,
    or a stack with a leading axis (`lora_jax.adapters.stack`, or a bank's), out of which every text
    takes the entry that `adapters` names.

    With `unroll` (by default on a CPU), stacked layers of a decoder are taken apart, since a scan
    copies each layer's weights for every token. That is a second copy of them for as long as the
    caller keeps the first; loading with scan=False makes only one.
    """

    def __init__(
        self,
        model: Decoder | T5,
        frozen: Mapping[str, Any],
        trainable: Mapping[str, Any] | None = None,
        *,
        eos_ids: Sequence[int] = (),
        pad_id: int = 0,
        slots: int | None = None,
        prompt_multiple: int = 16,
        unroll: bool | None = None,
    ) -> None:
        self._apart = (
            model.scan
            and not model.writes_targets
            and (platform() == "cpu" if unroll is None else unroll)
        )
        self.model = model.clone(scan=False) if self._apart else model
        self.frozen = jax.tree.map(to_device, frozen_apart(frozen) if self._apart else frozen)
        self.trainable = dict(trainable or {})
        check_ids([[pad_id, *eos_ids]], model.config.vocab_size)
        # Who writes targets has no positions that could change.
        self._switch = None if model.writes_targets else model.config.switch_length
        self.eos_ids = tuple(eos_ids)
        self.pad_id = pad_id
        self.slots = model.config.max_positions if slots is None else slots
        self._multiple = prompt_multiple
        self._start = jax.jit(self._start_fn, static_argnames=("slots", "new"))
        self._arrange = jax.jit(adapters_apart, static_argnames="axis")
        self._advance = jax.jit(
            self._advance_fn, static_argnames=("sampling",), donate_argnums=(2,)
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new: int,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        key: jax.Array | None = None,
        adapters: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """The tokens that follow each prompt, an end token included if one came.

        Args:
            max_new: tokens at most.
            key: of the draws, needed unless temperature is 0; every text has a key of its own.
            adapters: for each prompt, its index in a stacked `trainable`.

        Raises:
            ValueError: a prompt is empty, has an id that the vocabulary has not, or is with max_new
                longer than the model's window; `key` is missing; or `adapters` does not name an
                entry of a stack for each prompt.
        """
        state, trainable = self.start(
            prompts, max_new=max_new, sampling=sampling, key=key, adapters=adapters
        )
        state = self._grow(prompts, trainable, state, 0, max_new, sampling)
        return self._texts(state)[: len(prompts)]

    def generate_all(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        batch_size: int,
        max_new: int,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        key: jax.Array | None = None,
    ) -> list[list[int]]:
        """What `generate` gives, for any number of prompts: in batches of one size, neighbours in
        length together, so that few programs are compiled and little is padding.
        """
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
        out: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = [prompts[row] for row in rows]
            batch += [batch[0]] * (batch_size - len(batch))
            own = None if key is None else jax.random.fold_in(key, start)
            made = self.generate(batch, max_new=max_new, sampling=sampling, key=own)
            for row, tokens in zip(rows, made):
                out[row] = tokens
        return out

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new: int,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        key: jax.Array | None = None,
        adapters: Sequence[int] | None = None,
    ) -> Iterator[list[int | None]]:
        """What `generate` gives, one token of every text at a time; None for texts that have ended."""
        state, trainable = self.start(
            prompts, max_new=max_new, sampling=sampling, key=key, adapters=adapters
        )
        for n in range(max_new):
            done = np.asarray(state.done)
            if done.all():
                return
            state = self._grow(prompts, trainable, state, n, n + 1, sampling)
            yield [
                None if ended else int(token)
                for token, ended in zip(np.asarray(state.out[:, n]), done)
            ][: len(prompts)]

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new: int,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        key: jax.Array | None = None,
        adapters: Sequence[int] | None = None,
    ) -> tuple[GenerationState, Mapping[str, Any] | PerText]:
        """The state after the prompts, and the adapters of these texts."""
        if not prompts or not isinstance(max_new, Integral) or max_new < 1:
            raise ValueError(
                f"Needed at least one prompt and max_new of 1 or more, got {len(prompts)} prompts "
                f"and max_new={max_new}."
            )
        if any(isinstance(prompt, str) or not hasattr(prompt, "__len__") for prompt in prompts):
            raise TypeError(
                f"Needed a list of token ids for each prompt, such as [[1, 5, 7]]; got {prompts!r:.80}. "
                "Texts are continued by a TextGenerator."
            )
        if any(len(prompt) == 0 for prompt in prompts):
            raise ValueError("A prompt has no tokens. Begin it with the model's bos token.")
        check_ids(prompts, self.model.config.vocab_size)
        if key is None and sampling.temperature > 0:
            raise ValueError(
                f"Drawing tokens at temperature {sampling.temperature} needs a key; give one, or "
                "temperature 0."
            )
        longest = max(map(len, prompts))
        if longest + max_new > min(self.slots, self.model.config.max_positions):
            raise ValueError(
                f"A prompt of {longest} tokens and {max_new} new ones need {longest + max_new} "
                "positions, and the window has "
                f"{min(self.slots, self.model.config.max_positions)}. Shorten the prompt, or lower "
                "max_new."
            )
        tokens, mask = left_padded(prompts, self.pad_id, self._multiple)
        trainable = self.trainable
        if adapters is not None:
            self._check_choice(adapters, len(prompts))
            chosen = jnp.asarray(adapters, jnp.int32)
            trainable = jax.tree.map(lambda leaf: leaf[chosen], trainable)
        if self._apart:
            trainable = self._arrange(trainable, axis=int(adapters is not None))
        trainable = trainable if adapters is None else PerText(trainable)

        keys = jax.random.split(jax.random.key(0) if key is None else key, len(prompts))
        return self._read(trainable, tokens, mask, keys, room=max_new, new=max_new), trainable

    def _read(
        self, trainable: Any, tokens: Any, mask: Any, keys: Any, *, room: int, new: int
    ) -> GenerationState:
        """The state after these texts, with room for as many tokens more."""
        slots = -(-(tokens.shape[1] + room) // self._multiple) * self._multiple
        arrays = jnp.asarray(tokens), jnp.asarray(mask), keys
        return self._start(self.frozen, trainable, *arrays, slots=slots, new=new)

    def _grow(
        self,
        prompts: Sequence[Sequence[int]],
        trainable: Any,
        state: GenerationState,
        count: int,
        until: int,
        sampling: Sampling,
    ) -> GenerationState:
        """The state with `until` tokens in place of `count`. Where a text outgrows the angles that
        its past was computed with, all are read again: every text's own length chooses its angles.
        """
        new = state.out.shape[1]
        outgrown = set()
        if self._switch is not None:
            outgrown = {self._switch + 1 - len(prompt) for prompt in prompts}
        for stop in sorted({n for n in outgrown if count < n < until} | {until}):
            steps, count = jnp.int32(stop - count), stop
            state = self._advance(self.frozen, trainable, state, steps, sampling=sampling)
            if stop in outgrown and stop < new and not np.asarray(state.done).all():
                state = self._read_again(prompts, trainable, state, stop)
        return state

    def _read_again(
        self, prompts: Sequence[Sequence[int]], trainable: Any, state: GenerationState, count: int
    ) -> GenerationState:
        made, done = np.asarray(state.out[:, :count]).tolist(), np.asarray(state.done)
        texts = [
            list(prompt) if ended else [*prompt, *row]
            for prompt, row, ended in zip(prompts, made, done, strict=True)
        ]
        tokens, mask = left_padded(texts, self.pad_id, self._multiple)
        new = state.out.shape[1]
        again = self._read(trainable, tokens, mask, state.keys, room=new - count, new=new)
        return state.replace(cache=again.cache, logits=again.logits)

    def _check_choice(self, adapters: Sequence[int], prompts: int) -> None:
        """Raises ValueError where an index would take another adapter, or a layer of one."""
        sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(self.trainable)}
        count = next(iter(sizes))[0] if len(sizes) == 1 and () not in sizes else 0
        if len(adapters) != prompts or not all(0 <= n < count for n in adapters):
            known = f"from 0 to {count - 1}" if count else "of a stack (there is none)"
            raise ValueError(
                f"Needed an adapter {known} for each of {prompts} prompts, got {list(adapters)}."
            )

        def joined(frozen: Any, trainable: Any) -> Any:
            one = jax.tree.map(lambda leaf: leaf[0], trainable)
            return join(frozen, adapters_apart(one, 0) if self._apart else one)

        try:
            jax.eval_shape(joined, self.frozen, self.trainable)
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(
                "`adapters` names entries of a stack, and these are no stack of adapters for this "
                f"model (lora_jax.adapters.stack([first, second]) makes one): {error}"
            ) from None

    def forward(
        self,
        frozen: Any,
        trainable: Any,
        tokens: Int[Array, "batch time"],
        mask: Bool[Array, "batch time"],
        cache: Cache,
    ) -> tuple[Array, Cache]:
        """Logits of the last token's successor, and the cache; `trainable` may be `PerText`."""

        def run(trainable: Any, tokens: Array, mask: Array, cache: Cache) -> tuple[Array, Cache]:
            x, cache = apply(
                self.model, frozen, trainable, tokens, mask, cache=cache, method="hidden"
            )
            # The head for the last token alone: a whole prompt's logits would be the largest array.
            return apply(self.model, frozen, trainable, x[:, -1], method="logits"), cache

        if not isinstance(trainable, PerText):
            return run(trainable, tokens, mask, cache)
        axes = Cache(k=cache.batch_axis, v=cache.batch_axis, positions=0, filled=0, index=None)

        def one(trainable: Any, tokens: Array, mask: Array, cache: Cache) -> tuple[Array, Cache]:
            logits, cache = run(
                trainable, tokens[None], mask[None], cache.change_rows(jnp.expand_dims)
            )
            return logits[0], cache.change_rows(jnp.squeeze)

        return jax.vmap(one, in_axes=(0, 0, 0, axes), out_axes=(0, axes))(
            trainable.trainable, tokens, mask, cache
        )

    def _start_fn(
        self,
        frozen: Any,
        trainable: Any,
        tokens: Array,
        mask: Array,
        keys: jax.Array,
        *,
        slots: int,
        new: int,
    ) -> GenerationState:
        batch, vocab = tokens.shape[0], self.model.config.vocab_size
        cache = empty_cache(self.model.config, batch, slots, self.model.dtype, scan=self.model.scan)
        logits, cache = self.forward(frozen, trainable, tokens, mask, cache)
        rows = jnp.arange(batch)[:, None]
        seen = (
            jnp.zeros((batch, vocab), bool)
            .at[rows, jnp.where(mask, tokens, vocab)]
            .set(True, mode="drop")
        )
        return self._begun(cache, logits, seen, keys, new)

    def _begun(
        self, cache: Any, logits: Array, seen: Array, keys: Any, new: int
    ) -> GenerationState:
        """The texts of which nothing is made yet."""
        batch = len(logits)
        out = jnp.full((batch, new), self.pad_id, jnp.int32)
        zero, done = jnp.zeros((), jnp.int32), jnp.zeros(batch, bool)
        return GenerationState(cache, logits, seen, out, zero, done, keys)

    def _advance_fn(
        self,
        frozen: Any,
        trainable: Any,
        state: GenerationState,
        steps: Array,
        *,
        sampling: Sampling,
    ) -> GenerationState:
        """Up to `steps` more tokens; stops when all texts have ended."""
        last = jnp.minimum(state.count + steps, state.out.shape[1])
        going = lambda state: (state.count < last) & ~state.done.all()
        return jax.lax.while_loop(
            going, functools.partial(self._step, frozen, trainable, sampling), state
        )

    def _step(
        self, frozen: Any, trainable: Any, sampling: Sampling, state: GenerationState
    ) -> GenerationState:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.keys, state.count)
        token = jnp.where(state.done, self.pad_id, choose(state.logits, state.seen, keys, sampling))
        ended = (
            jnp.isin(token, jnp.asarray(self.eos_ids, jnp.int32))
            if self.eos_ids
            else jnp.zeros_like(state.done)
        )
        logits, cache = self.forward(
            frozen, trainable, token[:, None], ~state.done[:, None], state.cache
        )
        return state.replace(
            cache=cache,
            logits=logits,
            seen=state.seen.at[jnp.arange(len(token)), token].set(True),
            out=jax.lax.dynamic_update_slice(state.out, token[:, None], (0, state.count)),
            count=state.count + 1,
            done=state.done | ended,
        )

    def _texts(self, state: GenerationState) -> list[list[int]]:
        made = np.asarray(state.out)[:, : int(state.count)]
        return [_until_end(row.tolist(), self.eos_ids) for row in made]


def check_ids(texts: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Nothing, if every id is one of the vocabulary's.

    Raises:
        ValueError: one is not; its embedding would be NaN, or another token's.
    """
    for text in texts:
        ids = np.asarray(text)
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocab_size:
            outside = [n for n in text if isinstance(n, bool) or n < 0 or n >= vocab_size]
            raise ValueError(
                f"Token ids need to be from 0 to {vocab_size - 1}, and {[*outside, *text][0]!r} "
                "came. Use the tokenizer that the model was trained with."
            )


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, multiple: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask (batch, time), padded on the left to a multiple."""
    time = -(-max(map(len, prompts)) // multiple) * multiple
    tokens = np.full((len(prompts), time), pad_id, np.int32)
    mask = np.zeros((len(prompts), time), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, time - len(prompt) :] = prompt
        mask[row, time - len(prompt) :] = True
    return tokens, mask


def _until_end(tokens: list[int], eos_ids: Sequence[int]) -> list[int]:
    return next((tokens[: n + 1] for n, token in enumerate(tokens) if token in eos_ids), tokens)


_STACKED = "layers/"


def frozen_apart(frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of a model with scan as those of the same model without: `layers/...` becomes
    `layers_0/...`, `layers_1/...`.
    """
    return unflatten(_apart(flatten(frozen), 0))


def adapters_apart(trainable: Mapping[str, Any], axis: int) -> dict[str, Any]:
    """The same of adapters, whose arrays have `axis` axes before that of the layers."""
    return _apart(trainable, axis)


def _apart(flat: Mapping[str, Any], axis: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for path, leaf in flat.items():
        if not path.startswith(_STACKED):
            out[path] = leaf
            continue
        count = jax.tree.leaves(leaf)[0].shape[axis]
        for n in range(count):
            out[f"layers_{n}/{path.removeprefix(_STACKED)}"] = jax.tree.map(
                lambda x, n=n: x[(slice(None),) * axis + (n,)], leaf
            )
    return out
