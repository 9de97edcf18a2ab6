"""Language models with any adapter and quantisation in lm-evaluation-harness:
`simple_evaluate(model=HarnessModel(...), tasks=[...])`.

Importing this module needs the package lm_eval (extra 'harness'). Contexts, continuations, rolling
windows and stop sequences are those of the harness's own Hugging Face backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from lora_jax.generation.engine import Generator
from lora_jax.generation.sampling import Sampling
from lora_jax.metrics.table import library
from lora_jax.models.decoder import Decoder
from lora_jax.tasks.continuations import score_continuations
from lora_jax.tasks.generated import cut_greedily

_MODEL = library("lm_eval.api.model", extra="harness")
_UTILS = library("lm_eval.utils", extra="harness")
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class HarnessModel(_MODEL.TemplateLM):
    """A decoder as the harness sees a model.

    >>> run = load_run("runs/sql/RUN")  # doctest: +SKIP
    >>> model = HarnessModel.of_run(run)  # doctest: +SKIP
    >>> lm_eval.simple_evaluate(model=model, tasks=["arc_easy"])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Decoder,
        frozen: Mapping[str, Any],
        tokenizer: Any,
        trainable: Mapping[str, Any] | None = None,
        *,
        batch_size: int = 16,
        max_length: int | None = None,
        max_new: int = 256,
        seed: int = 0,
    ) -> None:
        """`max_length` is the window (by default the model's), `max_new` the tokens of an answer if
        a task does not say.
        """
        super().__init__()
        self.model, self.frozen, self.trainable = model, frozen, dict(trainable or {})
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.max_length = model.config.max_positions if max_length is None else max_length
        self.max_new = max_new
        self._key = jax.random.key(seed)
        self._engine: Generator | None = None

    @classmethod
    def of_run(cls, run: Any, **options: Any) -> HarnessModel:
        """The model of a finished run, as `lora_jax.load_run` gives it."""
        return cls(run.task.model, run.frozen, run.task.tokenizer, run.trainable, **options)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        adapter: Path | str | None = None,
        format: str = "none",
        **options: Any,
    ) -> HarnessModel:
        """A base model from a folder or a .gguf file, stored in `format`, with a trained adapter if
        one is named.
        """
        from lora_jax.core.quantize import QuantSpec
        from lora_jax.io.adapter import load_adapter
        from lora_jax.io.gguf_tokenizer import load_text_tokenizer
        from lora_jax.io.weights import load_decoder

        quant = [] if format == "none" else [("layers/.*kernel", QuantSpec(format))]
        config, params = load_decoder(path, quant=quant)
        trainable = None if adapter is None else load_adapter(adapter)[0]
        return cls(Decoder(config), params, load_text_tokenizer(path), trainable, **options)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: bos, or the end token of models that have
        none.
        """
        return self.eot_token_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """What the harness keys its request cache by: the base model's vocabulary."""
        return f"lora_jax-{self.tokenizer.vocab_size}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids, with bos where the model wants one; a text that begins with bos gets no second
        one.
        """
        if add_special_tokens is not None:
            return self.tokenizer.encode(string, special=add_special_tokens)
        ids = self.tokenizer.encode(string)
        return ids[1:] if self.tokenizer.add_bos and ids[:2] == [self.tokenizer.bos_id] * 2 else ids

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as the model's own template writes it; without a prompt for an answer,
        it ends where the last message does.
        """
        return self.tokenizer.chat(
            chat_history, answer=add_generation_prompt, continued=not add_generation_prompt
        )

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        found = self._score(pairs)
        for (key, _, _), answer in zip(requests, found, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of whole texts, in windows that do not overlap in what they predict;
        all windows are batched together.
        """
        windows: list[tuple[list[int], list[int]]] = []
        counts = []
        for request in requests:
            (text,) = request.args
            parts = _UTILS.get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, 1
            )
            found = [_UTILS.make_disjoint_window(part) for part in parts]
            windows += found
            counts.append(len(found))
        scores = iter(self._score(windows))
        totals = [sum(next(scores)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first of the task's stop sequences; greedy unless the task draws
        (temperature, top_k, top_p).
        """
        out = [""] * len(requests)
        # Requests of equal settings are drawn together.
        groups: dict[str, list[int]] = {}
        for n, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(n)

        for members in groups.values():
            settings = requests[members[0]].args[1]
            lengths = [settings[name] for name in _LENGTHS if settings.get(name) is not None]
            max_new = int([*lengths, self.max_new][0])
            until = settings.get("until") or []
            until = [until] if isinstance(until, str) else list(until)

            prompts = [self.tok_encode(requests[n].args[0]) for n in members]
            texts = self._generate(prompts, max_new, _sampling(settings))
            for n, text in zip(members, texts, strict=True):
                out[n] = cut_greedily(text, until)
                self.cache_hook.add_partial("generate_until", requests[n].args, out[n])
        return out

    def _score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        return score_continuations(
            self.model,
            self.frozen,
            self.trainable,
            pairs,
            batch_size=self.batch_size,
            window=self.max_length,
            pad_id=self.tokenizer.pad_id,
        )

    def _generate(self, prompts: list[list[int]], max_new: int, sampling: Sampling) -> list[str]:
        room = self.max_length - max_new
        if room < 1:
            raise ValueError(
                f"An answer of {max_new} tokens needs a window of more, and max_length is "
                f"{self.max_length}. Lower max_gen_toks."
            )
        if self._engine is None:
            self._engine = Generator(
                self.model,
                self.frozen,
                self.trainable,
                eos_ids=self.tokenizer.eos_ids,
                pad_id=self.tokenizer.pad_id,
            )

        begun = [(prompt or [self.prefix_token_id])[-room:] for prompt in prompts]
        self._key, key = jax.random.split(self._key)
        made = self._engine.generate_all(
            begun, batch_size=self.batch_size, max_new=max_new, sampling=sampling, key=key
        )
        return [self.tokenizer.decode(ids) for ids in made]


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    temperature = float(settings.get("temperature") or 0.0)
    if not settings.get("do_sample", temperature > 0):
        return Sampling()
    return Sampling(
        temperature or 1.0, settings.get("top_k"), settings.get("top_p"), settings.get("min_p")
    )
