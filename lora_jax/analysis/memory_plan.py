"""What a training run will need on each device, and the cheapest change that makes it fit: from the
sizes of a model alone, without weights, data or an accelerator.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_jax.analysis.devices import USABLE, Device
from lora_jax.analysis.footprint import Footprint, bounded, footprint_of_task
from lora_jax.config import ADAPTERS, Config, with_value
from lora_jax.core.fake_devices import with_devices
from lora_jax.core.host import can_offload
from lora_jax.core.init import initializer_named
from lora_jax.core.json_files import read_json
from lora_jax.core.mesh import bytes_on_device
from lora_jax.core.paths import nearest
from lora_jax.core.platform import platform
from lora_jax.core.quantize import QuantizedArray
from lora_jax.io.described import read_config
from lora_jax.io.hub import resolve
from lora_jax.io.weights import open_model
from lora_jax.models.kinds import ModelConfig
from lora_jax.models.sizes import SIZES
from lora_jax.tasks.building import check_length
from lora_jax.tasks.shapes import batch_shapes, shapes_task
from lora_jax.training.collectives import Collective
from lora_jax.training.compile import Memory
from lora_jax.training.needs import needs_of


@dataclass(frozen=True)
class Plan:
    """What the largest training step of a config needs of each device, in bytes.

    footprint: by arithmetic, and by what it is for. memory: by the compiler's account of the step,
    lowered and compiled by shapes for the devices that are here; None where nothing was compiled.
    collectives: what the devices of a mesh receive of each other. platform: of these devices.
    seconds: that tracing and compiling took. held: by path, the boxes of weights that the model's
    files hold quantised.
    """

    config: Config
    model: ModelConfig
    footprint: Footprint
    memory: Memory | None = None
    collectives: tuple[Collective, ...] = ()
    platform: str = "cpu"
    seconds: float = 0.0
    held: Mapping[str, QuantizedArray] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Bytes at the largest moment: the compiler's where it said them, else by arithmetic."""
        return self.footprint.total if self.memory is None else sum(self.memory)

    @property
    def notes(self) -> list[str]:
        """What of the config is not in the figures, or is otherwise on an accelerator."""
        said, found = [], self.footprint
        if found.away:
            said.append(
                f"{found.away / 1e9:,.2f} GB of moments wait in the host's memory, a device's part "
                "each. The device is counted with those of two weights, one that comes and one that "
                "goes; a compiler that brings all at once needs the difference more. No GPU has "
                "shown it."
            )
        if self.config.model.offload and self.platform == "cpu":
            said.append(
                "This machine has no memory of a device apart from its own: block inputs that are "
                "offloaded are counted as if they stayed."
            )
        if self.collectives and self.platform == "cpu":
            said.append(
                "Collectives are those of XLA for a CPU: a GPU's may sum and cut in one operation "
                "(reduce-scatter), of half the bytes, and send bfloat16 where float32 stands here."
            )
        if found.scores > 0.05 * found.total:
            said.append(
                f"Attention's scores are {found.scores / 1e9:,.2f} GB of this, which cuDNN's flash "
                "attention does not hold."
            )
        return said

    def fits(self, device: Device) -> bool:
        """Whether the peak is within what a program may take of a device (`USABLE`)."""
        return self.peak <= USABLE * device.memory


def plan(config: Config, model: ModelConfig | None = None, *, compiled: bool = True) -> Plan:
    """What a training step of a run needs: texts of `data.max_length` tokens, a row each.

    Weights are counted as tasks load them: in `model.base_dtype` but for those that are quantised;
    of a folder that another tool quantised, in the codes that its files hold, by their headers.
    Of a sweep, the config's own settings are planned. A step that is compiled here and then trained
    is compiled once. For a mesh of more devices than there are, a process is started with so many
    of a CPU's, which does not know what was registered in this one.

    Args:
        model: the sizes of its model; by default those that `config.model.name` stands for, as
            `sizes_of` and `held_in` read them.
        compiled: whether the step is compiled. It takes some ten seconds where layers are one scan
            (`model.scan`), and minutes for many layers one by one.

    Raises:
        FileNotFoundError: the model is not known here.
        ValueError: the settings do not fit the model, or the codes that its files hold.
    """
    held: Mapping[str, QuantizedArray] = {}
    if model is None:
        name, scan = config.model.name, config.model.scan
        model, held = sizes_of(name), held_in(name, scan=scan)
    return _planned(config, model, held, compiled)


Held = Mapping[str, QuantizedArray]


def _planned(config: Config, model: ModelConfig, held: Held, compiled: bool) -> Plan:
    check_length(model, config.model, config.data)
    return with_devices(config.mesh.devices, _plan, bounded(config), model, held, compiled)


def _plan(config: Config, model: ModelConfig, held: Held, compiled: bool) -> Plan:
    start = time.perf_counter()
    shaped, task = _by_shapes(config), shapes_task(config, model, held=held)
    found, memory, travels = footprint_of_task(shaped, task), None, ()
    if compiled:
        needs = needs_of(shaped, task, batch_shapes(shaped, task))
        memory, travels = needs.memory, needs.collectives
        if memory is not None and found.away and not can_offload():
            # Of a CPU, whose memory is the host's, the compiler counts all of it.
            there = bytes_on_device(needs.state.opt_state) - found.optimiser
            memory = memory._replace(arguments=memory.arguments - there)
    took = time.perf_counter() - start
    return Plan(config, model, found, memory, travels, platform(), took, held)


def sizes_of(name: str) -> ModelConfig:
    """The sizes of a model: of a folder with config.json (or a GGUF file), of a model that is on
    this machine, or of a name in `lora_jax.models.sizes.SIZES`, whole or without its owner.

    Raises:
        FileNotFoundError: it is none of these; nothing is fetched.
        ValueError: the config.json describes no model that is supported.
    """
    known, files = _found(name)
    return known or read_config(files)


def held_in(name: str, *, scan: bool = True) -> dict[str, QuantizedArray]:
    """By path, the boxes of the weights that a model's files hold quantised, with the shape and
    dtype of each of their arrays: of a folder with a `quantization_config`, by its headers.

    Args:
        scan: whether layers are stacked.

    Raises:
        FileNotFoundError: as `sizes_of`.
        ValueError: the files are not there, or hold them in a way that is not read.
    """
    known, files = _found(name)
    if known is not None or not (files / "config.json").is_file():
        return {}
    said = read_json(files / "config.json").get("quantization_config")
    if said is None:
        return {}
    if not any(files.glob("*.safetensors")):
        raise ValueError(
            f"{files / 'config.json'} says that weights are quantised, and which of them, and in how "
            "many bytes, only their files say: there is no *.safetensors beside it. Plan where the "
            "files are; or take quantization_config out of a copy, and give a format as config.quant."
        )
    return open_model(files, scan=scan).boxes


def _found(name: str) -> tuple[ModelConfig | None, Path]:
    """The known sizes of a name, or else where its files are."""
    short = {known.rpartition("/")[2].lower(): known for known in SIZES}
    known = name if name in SIZES else short.get(name.lower())
    if known is not None and not Path(name).exists():
        return SIZES[known], Path()
    if Path(name).is_file():
        return None, Path(name)
    try:
        return None, resolve(name, fetch=False)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"A plan needs a folder with config.json, a model that is on this machine, or a known "
            f"size, and {name!r} is none. Nearest sizes: {', '.join(nearest(name, SIZES, 3))}. Copy "
            "the model's config.json into a folder of its own and give that: no weights are needed."
        ) from None


def _by_shapes(config: Config) -> Config:
    """The same shapes, without an initialiser that measures data."""
    if initializer_named(config.lora.init).measures:
        return replace(config, lora=replace(config.lora, init="kaiming"))
    return config


@dataclass(frozen=True)
class Change:
    """Settings that need less memory, as overrides of a config, and the plan with them."""

    settings: tuple[str, ...]
    plan: Plan


def changes(before: Plan, device: Device) -> list[Change]:
    """What makes a plan fit on a device, in the order of what it costs: each change by itself, and
    where none is enough, with those before it. The last one fits, if any does; empty if the plan
    fits as it is.

    8-bit moments cost next to nothing, parts of a batch, moments in the host's memory and recomputed
    blocks time, lower ranks and fewer bits quality. The mesh stays as it is.
    """
    return with_devices(before.config.mesh.devices, _changes, before, device)


def _changes(before: Plan, device: Device) -> list[Change]:
    found: list[Change] = []
    together: Change | None = None
    for rung in (_eight_bits, _parts, _offloaded, _recomputed, _nf4, _lower_rank):
        now = before if together is None else together.plan
        if now.fits(device):
            break
        alone = _with(before, rung(before, device))
        if alone is None:
            continue
        found.append(alone)
        if alone.plan.fits(device):
            return found
        with_those = together and _with(now, rung(now, device), together.settings)
        together = with_those or together or alone
    return [*found, together] if together and len(together.settings) > 1 else found


Step = dict[str, object]  # Settings by their dotted keys.


def _with(before: Plan, step: Step, taken: tuple[str, ...] = ()) -> Change | None:
    """The plan with other settings, None where there are none, or they save nothing."""
    if not step:
        return None
    config = before.config
    for key, value in step.items():
        config = with_value(config, key, value)
    after = _planned(config, before.model, before.held, before.memory is not None)
    settings = (*taken, *(f"{key}={value}" for key, value in step.items()))
    return Change(settings, after) if after.peak < before.peak else None


def _eight_bits(before: Plan, device: Device) -> Step:
    optim = before.config.optim
    return {"optim.name": "adamw8bit"} if (optim.name, optim.factors) == ("adamw", "adam") else {}


def _parts(before: Plan, device: Device) -> Step:
    """A row at a time on each device: fewer would be whole on all of them."""
    train, mesh = before.config.train, before.config.mesh
    parts = train.batch_size // (mesh.data * mesh.fsdp)
    divides = parts * mesh.data * mesh.fsdp == train.batch_size
    return {"train.accumulate": parts} if divides and train.accumulate < parts else {}


def _offloaded(before: Plan, device: Device) -> Step:
    is_small = before.footprint.optimiser < 0.01 * before.peak
    return {} if before.config.optim.offload or is_small else {"optim.offload": True}


def _recomputed(before: Plan, device: Device) -> Step:
    return {} if before.config.model.remat else {"model.remat": True}


def _nf4(before: Plan, device: Device) -> Step:
    config = before.config
    # Codes of files stay as they are.
    if config.method not in ADAPTERS or config.quant.format == "nf4" or before.held:
        return {}
    method: Step = {} if config.method == "qlora" else {"method": "qlora"}
    return method | {"quant.format": "nf4"}


def _lower_rank(before: Plan, device: Device) -> Step:
    """The rank by halves, as far as its share of the bytes says that it must fall."""
    rank, found = before.config.lora.rank, before.footprint
    if before.config.method not in ADAPTERS or rank < 2:
        return {}
    of_one = (found.factors + found.optimiser + found.gradients) / rank
    too_much = before.peak - USABLE * device.memory
    lower = rank // 2
    while lower > 1 and (rank - lower) * of_one < too_much:
        lower //= 2
    return {"lora.rank": lower}
