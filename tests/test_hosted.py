"""What is said after a load: where the layers really are, and how fast that can be."""

from __future__ import annotations

import pytest

from qwqcli import quants
from qwqcli.engine import EngineInfo
from qwqcli.engine.hosted import _notices
from qwqcli.hardware import known_machine
from qwqcli.layout import Want
from qwqcli.plan import Plan, make_plan

Q4 = quants.model_info(quants.BY_NAME["q4_k_m"])


def said(plan: Plan, placement: str) -> str:
    info = EngineInfo("QwQ", plan.n_ctx, 131_072, 1, 1, 8, True, 1.0, placement)
    return " ".join(_notices(plan, info))


@pytest.mark.parametrize(
    ("machine", "want", "placement", "words"),
    [
        ("3090", Want(), "65 of 65 layers on CUDA0", ""),  # as it should be: nothing to say
        (
            "4070",
            Want(),
            "65 of 65 layers on CUDA0",
            "22 of 65 layers are whole on the GPU: expect",
        ),
        ("4070", Want(gpu_layers=31), "31 of 65 layers on CUDA0", "31 of 65 layers"),
        ("cpu-64", Want(), "all layers on the CPU", "All layers are on the CPU: expect about 1."),
        ("3090", Want(), "64 of 65 layers on CUDA0", "Planned were 65 of 65 layers"),
    ],
)
def test_what_is_slow_or_other_than_planned(
    machine: str, want: Want, placement: str, words: str
) -> None:
    """A model that is not wholly on the GPU says what speed to expect before anyone waits."""
    text = said(make_plan(Q4, known_machine(machine), want), placement)
    assert words in text
    assert ("tokens/s" in text) == ("layers are" in words or "31 of 65" in words)
