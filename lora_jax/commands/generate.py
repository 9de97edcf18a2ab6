"""Continue prompts with a language model, and with adapters on it if any are named.

  lora-jax generate gemma3-270m --prompt "The capital of France is" --max-new 20
  lora-jax generate MODEL --chat --prompt "What is LoRA?" --temperature 0.7 --top-p 0.9 --seed 1
  lora-jax generate MODEL --adapter sql=runs/sql/RUN/adapter \\
      --prompt "sql: List all singers" --prompt "Hello"

MODEL is a name that lora_jax.io.resolve knows, a Hugging Face folder or id, or a .gguf file; a
decoder, or an encoder-decoder (T5). With adapters, a prompt that begins with 'name: ' uses that
one, and a prompt that names none uses none. The answers are printed in order; a single one as it
comes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lora-jax generate`."""
    parser.add_argument("model", metavar="MODEL", help="the base model")
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="a prompt; may be given several times (standard input if none is)",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a trained adapter's folder and its name",
    )

    parser.add_argument("--chat", action="store_true", help="prompts are messages to a chat model")
    parser.add_argument("--max-new", type=int, default=64, help="new tokens at most (64)")

    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default) takes the likeliest token"
    )
    parser.add_argument("--top-k", type=int, help="draw from the k likeliest tokens")
    parser.add_argument(
        "--top-p", type=float, help="draw from the likeliest tokens that add up to p"
    )
    parser.add_argument(
        "--min-p",
        type=float,
        help="draw from tokens with at least p times the likeliest one's probability",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="above 1: less of what the text holds already",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        help="a string that ends a text; may be given several times",
    )

    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.add_argument(
        "--format", default="none", help="store the base quantised, such as nf4 or int8 (none)"
    )
    parser.add_argument(
        "--dense",
        action="store_true",
        help="dequantise the stored weights once, not for every token: faster, and no memory saved",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of weights and products",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints what follows each prompt."""
    import jax

    from lora_jax.core.heap import release_freed_memory
    from lora_jax.generation.sampling import Sampling
    from lora_jax.io.reading_bar import reading_shown

    sampling = Sampling(
        arguments.temperature,
        arguments.top_k,
        arguments.top_p,
        arguments.min_p,
        arguments.repetition_penalty,
    )
    prompts = arguments.prompt or [line.rstrip("\n").removeprefix("\ufeff") for line in sys.stdin]
    if not prompts:
        raise ValueError("There is no prompt. Give --prompt TEXT, or lines on standard input.")
    with reading_shown():
        texts = _generator(arguments)
    release_freed_memory()  # What loading needed beyond the weights.
    named = [_split_name(prompt, texts.adapters) for prompt in prompts]
    asked: list[Any] = [
        [{"role": "user", "content": text}] if arguments.chat else text for _, text in named
    ]
    options = dict(
        max_new=arguments.max_new,
        sampling=sampling,
        key=jax.random.key(arguments.seed),
        stop=arguments.stop,
    )
    if texts.adapters:
        options["adapters"] = [name for name, _ in named]
    if len(asked) == 1:
        for (piece,) in texts.stream(asked, **options):
            print(piece, end="", flush=True)
        print()
        return 0
    for text in texts.generate(asked, **options):
        print(text)
        print("---")
    return 0


def _generator(arguments: argparse.Namespace) -> Any:
    import jax.numpy as jnp

    from lora_jax.commands.adapter import is_stacked
    from lora_jax.core.quantize import dequantize
    from lora_jax.generation.text import TextGenerator
    from lora_jax.io.adapter import load_adapter
    from lora_jax.io.gguf_tokenizer import load_text_tokenizer
    from lora_jax.io.hub import resolve
    from lora_jax.io.weights import open_model

    path = Path(arguments.model) if Path(arguments.model).is_file() else resolve(arguments.model)
    dtype = jnp.dtype(arguments.dtype)
    folders = _named_folders(arguments.adapter)
    layouts = set(map(is_stacked, folders.values())) or {False}
    if len(layouts) > 1:
        raise ValueError(
            "Some of the adapters have stacked layers and others have not; train them with one "
            "setting of model.scan."
        )
    scan = layouts.pop()
    model, params = _model(path, dtype, arguments.format, scan)
    tokenizer = load_text_tokenizer(path)
    base = open_model(path, scan=scan).fingerprint() if folders else None
    if arguments.dense:
        if arguments.format == "none":
            raise ValueError(
                "--dense is of a base that --format stores quantised; without a format all weights "
                "are dense."
            )
        params = dequantize(params)
    adapters = {name: load_adapter(folder, base=base)[0] for name, folder in folders.items()}
    if not adapters:
        return TextGenerator(model, params, tokenizer)
    like = {path: leaf for trainable in adapters.values() for path, leaf in trainable.items()}
    rank = max(leaf.rank for trainable in adapters.values() for leaf in trainable.values())
    texts = TextGenerator(
        model, params, tokenizer, max_adapters=len(adapters), max_rank=rank, like=like
    )
    for name, trainable in adapters.items():
        texts.add(name, trainable)
    return texts


def _model(path: Path, dtype: Any, format: str, scan: bool) -> tuple[Any, Any]:
    """A decoder or an encoder-decoder with its weights, in a format if one is named."""
    from lora_jax.core.quantize import QuantSpec
    from lora_jax.io.weights import load_model
    from lora_jax.models.kinds import model_of

    layers = r"((en|de)coder/)?layers(_\d+)?/.*kernel"
    quant = [] if format == "none" else [(layers, QuantSpec(format))]
    config, params = load_model(path, dtype=dtype, quant=quant, scan=scan)
    return model_of(config, scan=scan, dtype=dtype.type), params


def _named_folders(given: Sequence[str]) -> dict[str, str]:
    """The folder of each adapter by its name."""
    folders: dict[str, str] = {}
    for entry in given:
        name, equals, folder = entry.partition("=")
        if not equals or not name or name in folders:
            raise ValueError(f"--adapter needs NAME=PATH with a name of its own, got {entry!r}.")
        folders[name] = folder
    return folders


def _split_name(prompt: str, names: tuple[str, ...]) -> tuple[str | None, str]:
    """('sql', 'List ...') of 'sql: List ...' if there is such an adapter, else (None, the
    prompt).
    """
    name, colon, rest = prompt.partition(": ")
    return (name, rest) if colon and name in names else (None, prompt)
