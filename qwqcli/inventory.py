"""The models of this machine, drawn: the list of all, one of them in full, both also as JSON.

Contract: what is shown is made by `survey` and `describe`, which read headers and plan, and drawn
by the others, which decide nothing. A file that cannot be read is in the list, with the reason why
it cannot be used.
Non-goals: finding, downloading and removing (hub), the plan itself (planning).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qwqcli import hardware, planning, tables
from qwqcli.catalog import ModelRef
from qwqcli.engine.probe import Probe
from qwqcli.errors import NoRoom, QwqError
from qwqcli.gguf import ModelInfo, read_file_header
from qwqcli.hardware import Machine
from qwqcli.hub import Model, Unfinished
from qwqcli.layout import Want
from qwqcli.plan import Plan, make_plan
from qwqcli.progress import percent, size, write_json
from qwqcli.template import ChatTemplate, starts_in_thought
from qwqcli.messages import Message
from qwqcli.terminal import Output, visible

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Row:
    """A model and what this machine makes of it: a plan, or why there is none."""

    model: Model
    plan: Plan | None
    problem: str = ""


def survey(models: Iterable[Model]) -> list[Row]:
    """Which of the models fit on this machine as it is now."""
    models = list(models)
    if not models:
        return []
    with Probe(None) as probe:
        machine = hardware.probe(probe.devices)
    return [_row(model, machine) for model in models]


def _row(model: Model, machine: Machine) -> Row:
    try:
        return Row(model, make_plan(read_file_header(model.paths[0]), machine, Want()))
    except NoRoom:
        return Row(model, None, "does not fit")
    except QwqError as error:
        return Row(model, None, error.message)
