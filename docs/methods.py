"""A page for each method, made when the documentation is built: the row of the table below, what the
library says of bases, modules and other settings, and what was measured.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Method(NamedTuple):
    """One method.

    settings: of a config, without `config.`. trained: how many numbers of a weight with
    n inputs and m outputs, at rank r; g is `lora.group_size`, p and q are the largest divisors of n
    and m that are not above their square roots. claims: ids in the ledger. row: its row in
    experiments/MATRIX.md, if that has another name than the page. quantised: whether it needs a
    quantised base.
    """

    title: str
    settings: str
    formula: str
    says: str
    trained: str
    paper: str
    claims: str = ""
    row: str = ""
    quantised: bool = False


ADDED = "W + scale * (a @ b)"
FACTORS = "r * (n + m)"
ENTRIES = "As many are trained as LoRA of that rank trains, so that `lora.rank` means one cost."
START = (
    "The start is kept beside the factors and subtracted, so the stored base stays as it is; files "
    "of plain LoRA hold both, as twice the rank."
)
METHODS = {
    "lora": Method(
        "LoRA", "lora.variant=lora", ADDED,
        "`a` starts as random numbers and `b` as 0 (`lora.init=kaiming`, or `gaussian`), so the "
        "adapted model starts as the base. Scale is alpha / r.",
        FACTORS, "Hu et al. 2021, arXiv 2106.09685", "C13 C14 C15 C22 C24 C31 C32 C38",
    ),
    "rslora": Method(
        "rsLoRA", "lora.scaling=rslora", "W + alpha / sqrt(r) * (a @ b)",
        "LoRA with a scale that falls with the root of the rank, not with the rank. A learning rate "
        "that was found at one rank has to be found again at another.",
        FACTORS, "Kalajdzievski 2023, arXiv 2312.03732", "C26 N8 N16", "lora",
    ),
    "lora_plus": Method(
        "LoRA+", "optim.lora_plus_ratio=16", ADDED,
        "LoRA whose `b` learns at a rate so many times that of `a`. Nothing else is different.",
        FACTORS, "Hayou et al. 2024, arXiv 2402.12354", "C27 N9 N16", "lora",
    ),
    "dora": Method(
        "DoRA", "lora.dora=true", "magnitude * V / norm(V), V = W + scale * (a @ b)",
        "The columns of the sum are divided by their norms and multiplied by a trained magnitude, "
        "which starts as the norms of W's. The norms count as constants in gradients.",
        "r * (n + m) + m", "Liu et al. 2024, arXiv 2402.09353", "C33 N11 N16",
    ),
    "lora_fa": Method(
        "LoRA-FA", "lora.variant=lora_fa", ADDED,
        "`a` stays as it was drawn. Only `b` is trained, so only `x @ a` is kept for its gradient.",
        "r * m", "Zhang et al. 2023, arXiv 2308.03303", "C37",
    ),
    "vera": Method(
        "VeRA", "lora.variant=vera", "W + a @ diag(gain) @ b @ diag(out_gain)",
        "`a` and `b` are random, fixed and the same at all sites of a shape; two vectors are trained.",
        "r + m", "Kopiczko et al. 2023, arXiv 2310.11454", "C35",
    ),
    "adalora": Method(
        "AdaLoRA", "lora.variant=adalora optim.adalora.target_rank=4",
        "W + scale * (a @ diag(gain) @ b)",
        "Training starts at `lora.rank` columns a matrix and takes columns away where they matter "
        "least, down to `optim.adalora.target_rank` in the mean. A penalty keeps a and b orthogonal.",
        "r * (n + m) + r", "Zhang et al. 2023, arXiv 2303.10512", "C36",
    ),
    "qa_lora": Method(
        "QA-LoRA", "lora.variant=qa_lora", "W + scale * (repeat(a, g) @ b)",
        "g neighbouring inputs share a row of `a` (`lora.group_size`). The update then only moves "
        "the zero-points of integer formats whose blocks are those groups, and merges exactly.",
        "r * (n // g + m)", "Xu et al. 2023, arXiv 2309.14717", "C11",
    ),
    "lora_xs": Method(
        "LoRA-XS", "lora.variant=lora_xs", "W + scale * (U S @ mix @ V^T)",
        "The r largest singular triplets of W stay fixed, and a small square matrix between them is "
        "trained. It needs a decomposition of every adapted weight at the start.",
        "r * r", "Bałazy et al. 2024, arXiv 2405.17604",
    ),
    "miss": Method(
        "MiSS", "lora.variant=miss", "W + tiled(identity of r) @ b",
        "One r x m matrix is trained and added to every r rows of W. There is no scale.",
        "r * m", "Kang and Yin 2024, arXiv 2409.15371",
    ),
    "loha": Method(
        "LoHa", "lora.variant=loha", "W + scale * (a @ b) * (a2 @ b2), entry by entry",
        "Two products of rank r multiplied entry by entry have rank up to r squared.",
        "2 * r * (n + m)", "Hyeon-Woo et al. 2021, arXiv 2108.06098",
    ),
    "lokr": Method(
        "LoKr", "lora.variant=lokr lora.rank=4", "W + scale * kron(outer, a @ b)",
        "A small p x q matrix times a product of rank r, by Kronecker. p and q are the largest "
        "divisors of n and m that are not above their square roots.",
        "p * q + r * (n // p + m // q)", "Yeh et al. 2023, arXiv 2309.14859",
    ),
    "gralora": Method(
        "GraLoRA", "lora.variant=gralora", "W + scale * blocks of a_ij @ b_ij",
        "W is cut into `lora.blocks` x `lora.blocks` parts, each with factors of its own of rank "
        "r / blocks: the cost is LoRA's, the rank of the whole is higher.",
        FACTORS, "Jung et al. 2025, arXiv 2505.20355",
    ),
    "hira": Method(
        "HiRA", "lora.variant=hira", "W * (1 + a @ b), entry by entry",
        "The product of the factors multiplies the base in place of being added, so the update's "
        "rank is as high as W's. In training one dense layer at a time is made.",
        FACTORS, "Huang et al. 2025, ICLR",
    ),
    "oft": Method(
        "OFT", "lora.variant=oft", "R @ W, R = blockdiag((I - Q)(I + Q)^-1), Q = -Q^T",
        "Inputs are rotated, r of them together: `lora.rank` is the size of a block, and more of it "
        "is more numbers. Norms of W's columns, and angles between them, stay as they are.",
        "n * (r - 1) // 2", "Qiu et al. 2023, arXiv 2306.07280; Qiu et al. 2025, arXiv 2506.19847",
    ),
    "fourierft": Method(
        "FourierFT", "lora.variant=fourierft", "W + scale * real(ifft2(numbers at fixed places))",
        "A few entries of the update's spectrum are trained, at places that are the same in all "
        f"weights of a shape. {ENTRIES} Scale is alpha / r, where PEFT has 150.",
        FACTORS, "Gao et al. 2024, arXiv 2405.03003",
    ),
    "shira": Method(
        "SHiRA", "lora.variant=shira", "W + numbers at fixed places",
        f"A few entries of the weight itself are trained, drawn at random. {ENTRIES}",
        FACTORS, "Bhardwaj et al. 2024, arXiv 2406.13175",
    ),
    "orthogonal": Method(
        "Orthogonal start", "lora.init=orthogonal", ADDED,
        "Both factors start away from 0 and their product at 0: they use alternate rows of one "
        "orthogonal matrix. The rank has to be even. It is PEFT's start of that name.",
        FACTORS, "PEFT 0.21.2",
    ),
    "pissa": Method(
        "PiSSA", "lora.init=pissa", ADDED,
        "LoRA whose factors start as the r largest singular triplets of W (`pissa_niter_16`: by "
        f"randomised decomposition). {START}",
        FACTORS, "Meng et al. 2024, arXiv 2404.02948", "C34 N10 N16",
    ),
    "milora": Method(
        "MiLoRA", "lora.init=milora", ADDED,
        f"LoRA whose factors start as the r smallest singular triplets of W. {START}",
        FACTORS, "Wang et al. 2024, arXiv 2406.09044", "N16",
    ),
    "olora": Method(
        "OLoRA", "lora.init=olora", ADDED,
        f"LoRA whose factors start as r columns of a QR decomposition of W. {START}",
        FACTORS, "Büyükakyüz 2024, arXiv 2406.01775", "C34 N10",
    ),
    "lora_ga": Method(
        "LoRA-GA", "lora.init=lora_ga", ADDED,
        "LoRA whose factors start along singular directions of W's gradient over "
        f"`lora.calibration_batches` batches. Twice the rank has to fit into W. {START}",
        FACTORS, "Wang et al. 2024, arXiv 2407.05000", "C34 N10 N16", "none",
    ),
    "lora_one": Method(
        "LoRA-One", "lora.init=lora_one", ADDED,
        "LoRA whose factors start along the best approximation of W's negative gradient over "
        f"`lora.calibration_batches` batches. The paper leaves the start in the sum. {START}",
        FACTORS, "Zhang et al. 2025, arXiv 2502.01235", "", "none",
    ),
    "eva": Method(
        "EVA", "lora.init=eva", ADDED,
        "LoRA whose `a` starts as the leading principal directions of the weight's inputs over "
        "`lora.calibration_batches` batches; `b` starts as 0.",
        FACTORS, "Paischer et al. 2024, arXiv 2410.07170", "", "none",
    ),
    "corda": Method(
        "CorDA", "lora.init=corda", ADDED,
        "LoRA whose factors start from a decomposition of W weighed by the second moment of its "
        f"inputs: the leading part, or with `corda_kpm` the last. {START}",
        FACTORS, "Yang et al. 2024, arXiv 2406.05223", "", "none",
    ),
    "qlora": Method(
        "QLoRA", "method=qlora quant.format=nf4", "dequantised(W) + scale * (a @ b)",
        "LoRA on a base that is stored in few bits (NF4, integers, floats; scales in 8 bits with "
        "`quant.double`; `quant.fit` and `quant.rotation` choose better ones) and dequantised layer by "
        "layer. A merge gives float weights, or rounds into the format again.",
        FACTORS, "Dettmers et al. 2023, arXiv 2305.14314", "C1 C3", "lora", True,
    ),
    "merge-aware": Method(
        "Merge-aware training", "method=qlora quant.format=nf4 lora.merge_aware=true",
        "rounded(W + scale * (a @ b))",
        "Every step computes with the sum rounded into the base's format, with gradients as if it "
        "were not, so that merging into the quantised base afterwards changes nothing.",
        FACTORS, "lora_jax", "", "", True,
    ),
    "loftq": Method(
        "LoftQ", "method=qlora quant.format=nf4 lora.init=loftq", "dequantised(Q) + scale * (a @ b)",
        "Codes and factors are chosen in turns so that together they start near the unquantised W.",
        FACTORS, "Li et al. 2023, arXiv 2310.08659", "C9 C10 N14", "", True,
    ),
    "cloq": Method(
        "CLoQ", "method=qlora quant.format=nf4 lora.init=cloq", "dequantised(Q) + scale * (a @ b)",
        "Codes are as without it, and factors those of their rank that make up for most of what the "
        "codes lose of the outputs, on inputs of `lora.calibration_batches` batches.",
        FACTORS, "Deng et al. 2025, arXiv 2501.18475", "", "none", True,
    ),
    "eora": Method(
        "EoRA", "method=qlora quant.format=nf4 lora.init=eora", "dequantised(Q) + scale * (a @ b)",
        "The same product as CLoQ's; the singular values stand in `b`, where CLoQ has them in `a`.",
        FACTORS, "Liu et al. 2024, arXiv 2410.21271", "", "none", True,
    ),
    "qpissa": Method(
        "QPiSSA", "method=qlora quant.format=nf4 lora.init=qpissa",
        "dequantised(Q) + scale * (a @ b)",
        "PiSSA's factors, and what they leave of W quantised: the largest part of W is not rounded.",
        FACTORS, "Meng et al. 2024, arXiv 2404.02948, section 4", "C9 N14", "", True,
    ),
    "full": Method(
        "Full fine-tuning", "method=full", "W itself",
        "Every weight is trained (`baseline.full_targets` chooses some). A quantised weight cannot "
        "be.",
        "n * m", "", "C24 C38 C39",
    ),
}  # fmt: skip


def specification(method: Method) -> dict[str, Any]:
    """The fields of a `LoraSpec` that its settings name."""
    words = [word.split("=") for word in method.settings.split() if word.startswith("lora.")]
    read = {"true": True}
    return {
        key.removeprefix("lora."): int(value) if value.isdigit() else read.get(value, value)
        for key, value in words
    }


def constraints(row: str, quantised: bool) -> list[str]:
    """The rows of experiments/MATRIX.md with what the numbers stand for, as paragraphs."""
    text = (ROOT / "experiments/MATRIX.md").read_text()
    notes = dict(re.findall(r"(?m)^(\d+)\. (.*)$", text))
    head, rows = "", []
    for base, kinds, body in re.findall(r"(?m)^\| (\w+) \| (.*) \|\n\|-.*\n((?:\|.*\n?)+)", text):
        found = re.search(rf"(?m)^\| {re.escape(row)} \| (.*) \|$", body)
        if found and (base in ("nf4", "int8") or not quantised):
            head = f"| base | {kinds} |\n|---|{'---|' * (kinds.count('|') + 1)}"
            rows.append(f"| {base} | {found[1]} |")
    if not rows:
        return ["It reads data, and is not in the table of bases and modules."]
    used = sorted({int(n) for n in re.findall(r"\[(\d+)\]", " ".join(rows))})
    return ["\n".join([head, *rows]), *(f"[{n}] {notes[str(n)]}" for n in used)]


def refused(method: Method) -> list[str]:
    """What the library says where the method is given with another setting, as lines of a list."""
    from lora_jax.core.lowrank import LoraSpec

    lines = []
    others: dict[str, dict[str, Any]] = {
        "lora.dora=true": dict(dora=True),
        "lora.dropout=0.1": dict(dropout=0.1),
        "lora.init=pissa": dict(init="pissa"),
        "lora.merge_aware=true": dict(merge_aware=True),
        "lora.parts=(true,false,true)": dict(parts=(True, False, True)),
    }
    own = specification(method)
    for setting, other in others.items():
        if not other.keys() & own.keys():
            try:
                LoraSpec(**(own | other))
            except ValueError as error:
                lines.append(f"- `{setting}`: {error}")
    return lines


def measured(name: str) -> list[str]:
    """What the ledger has of its claims, as lines of a list; where a claim is about several methods,
    what it says of this one.
    """
    method, lines = METHODS[name], []
    for claim in method.claims.split():
        result = json.loads((ROOT / f"experiments/claims/results/{claim}.json").read_text())
        ours = [part["ours"] for part in result["parts"]]
        title = rf"(?i)\b({re.escape(method.title)}|{name})\b"
        own = [text for text in ours if re.search(title, text)]
        lines.append(
            f"- {claim}, {result['claim']['title']} ({result['claim']['source']}): "
            f"**{result['verdict']}**. {'; '.join(own or ours)}."
        )
    return lines


def linked(paper: str) -> str:
    """A paper with its arXiv numbers as links."""
    return re.sub(r"arXiv (\d+\.\d+)", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


def page(name: str) -> str:
    """The page of one method."""
    method = METHODS[name]
    lines = [
        f"# {method.title}",
        f"`{method.settings}`" + (f" · {linked(method.paper)}" if method.paper else ""),
        f"```text\n{method.formula}\n```",
        f"Of a weight W with n inputs and m outputs, at rank r. {method.says}",
        "## What is trained",
        f"`{method.trained}` numbers of a weight.",
        "## Bases and modules",
        "`yes`: it trains, merges, stands side by side with others in one program, and lies on a "
        "mesh. A number is what the library says instead.",
        *constraints(method.row or name, method.quantised),
    ]
    if name != "full" and (lines_refused := refused(method)):
        lines += ["## Settings that it does not go with", "\n".join(lines_refused)]
    found = measured(name)
    lines += [
        "## Measured here",
        "\n".join(found) if found else "Not measured: no claim in the ledger is about it.",
    ]
    if found:
        lines.append(
            "On small models under protocol P (`experiments/README.md`); the verdict is about the "
            "whole claim. [All claims](../papers.md)."
        )
    return "\n\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """The page of each method by its path, and the list of them."""
    rows = "\n".join(
        f"| [{one.title}](methods/{name}.md) | `{one.settings}` | `{one.formula}` | `{one.trained}` |"
        for name, one in METHODS.items()
    )
    index = (
        "# Methods\n\nOf a weight W with n inputs and m outputs at rank r (`lora.rank`): what the "
        "adapted weight is, and how many numbers are trained. Which goes with which base and module "
        "is on each method's page, and in `experiments/MATRIX.md`.\n\n| | settings | adapted weight "
        f"| trained numbers |\n|---|---|---|---|\n{rows}\n\nBaselines of encoders (the head alone, "
        "BitFit, the last layers, bottlenecks, prefixes, IA3) are other values of `method`: "
        "[their functions](reference/lora_jax.adapters.md).\n"
    )
    return {"methods.md": index} | {f"methods/{name}.md": page(name) for name in METHODS}


def on_config(config: Any) -> Any:
    """The site's navigation with a page for each method (called by mkdocs)."""
    for entry in config.nav:
        if isinstance(entry, dict) and "Methods" in entry:
            entry["Methods"] = list(pages())
    return config


def on_files(files: Any, config: Any) -> Any:
    """The site's files with these pages (called by mkdocs)."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
