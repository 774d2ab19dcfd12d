"""Speeds that others have published, to set beside a person's own.

They are in `benchmarks/reference.yaml`, which an installed package carries beside this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwqcli import quants
from qwqcli.bench.report import Report
from qwqcli.yaml_file import read

FILE = "reference.yaml"
LIKE_QWQ = 0.05  # a model whose weights are so near to QwQ-32B's in number is as fast


def published() -> list[Mapping[str, Any]]:
    """All figures; none if the file is missing."""
    here = Path(__file__).parent
    for path in (here / FILE, here.parent.parent / "benchmarks" / FILE):
        if path.exists():
            return list(read(path).content or [])
    return []


def lines(report: Report) -> Iterator[str]:
    """A sentence for each published figure of the same quantization, if the model is QwQ's size."""
    size = quants.model_info(quants.BY_NAME["q4_k_m"]).n_params
    if abs(report.setup.model_n_params / size - 1) > LIKE_QWQ:
        return
    for entry in published():
        if entry["quantization"] == report.setup.quantization.lower():
            yield sentence(entry)


def sentence(entry: Mapping[str, Any]) -> str:
    """`Published: RTX 3090, pp512 1294, tg128 37.7 tokens/s (source)`."""
    speeds = [f"{key} {entry[key]:g}" for key in entry if key[:2] in ("pp", "tg")]
    flash = {True: ", flash attention on", False: ", flash attention off"}.get(
        entry.get("flash_attn", 0), ""
    )
    doubt = f"; doubtful: {entry['doubt']}" if "doubt" in entry else ""
    return (
        f"Published: {entry['hardware']}{flash}, {', '.join(speeds)} tokens/s, {entry['model']}"
        f" ({entry['source']}){doubt}"
    )
