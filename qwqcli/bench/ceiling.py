"""The most that token generation can reach: memory bandwidth over the bytes that a token reads.

A token reads every weight once (of the embedding one row, unless it is the output layer as well)
and the KV cache as deep as it is. Each device reads its part at its own bandwidth, one after
another; what they compute is not counted. So only what the CPU's cache holds can be above it.
Limits: experts are counted as if all were read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qwqcli import costs
from qwqcli.bench import Test
from qwqcli.gguf import ModelInfo
from qwqcli.plan import Plan


@dataclass(frozen=True, slots=True)
class Reader:
    """What one device reads for a token: bytes, bytes per token of depth, bytes per second."""

    name: str
    weights: int
    kv_per_token: int
    bandwidth: float | None  # None: not known

    def seconds(self, depth: float) -> float | None:
        """None where the bandwidth is not known."""
        read = self.weights + self.kv_per_token * depth
        return read / self.bandwidth if self.bandwidth else None


def readers(
    info: ModelInfo, plan: Plan, bandwidths: Mapping[str, float | None]
) -> tuple[Reader, ...]:
    """Every device that has a part in a token; `bandwidths` by the names of the plan's devices."""
    tied = costs.output_bytes(info) != info.output_bytes
    kept = costs.padded_context(plan.n_ctx)
    found = []
    for share in plan.devices:
        weights = share.weights_bytes
        if share.name == "CPU":
            weights -= info.embedding_bytes + info.other_bytes
            weights += info.embedding_bytes if tied and not plan.gpu_layers else 0
        if weights > 0 or share.kv_bytes:
            kv = share.kv_bytes // kept
            found.append(Reader(share.name, max(weights, 0), kv, bandwidths.get(share.name)))
    return tuple(found)


def ceiling_tps(devices: tuple[Reader, ...], test: Test) -> float | None:
    """Tokens per second of a test of token generation; prompt processing has no such ceiling."""
    if not test.n_gen:
        return None
    total = 0.0
    for device in devices:
        seconds = device.seconds(test.n_depth + test.n_gen / 2)
        if seconds is None:
            return None
        total += seconds
    return 1 / total if total else None
