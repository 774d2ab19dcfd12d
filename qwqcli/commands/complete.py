"""What the shell offers on Tab: sessions, models and settings, without loading anything heavy.

Whatever goes wrong here, the shell gets no offers rather than an error in the middle of a line.
"""

from __future__ import annotations

import os
import re
from dataclasses import fields

from qwqcli import catalog, config, quants
from qwqcli.errors import QwqError

_ONE_WORD = r"[\w@%+=:,./-]+"  # to a shell


def session_names(incomplete: str) -> list[str]:
    """Names of sessions; ids of those without, or with a name that a shell would take apart."""
    from qwqcli.sessions import Store

    path = config.paths(os.environ).sessions
    if not path.exists():
        return []
    try:
        store = Store(path)
    except QwqError:
        return []
    sessions = [summary.session for summary in store.summaries()]
    store.close()
    names = [s.name if re.fullmatch(_ONE_WORD, s.name) else s.id for s in sessions]
    return [name for name in names if name.startswith(incomplete)]


def model_names(incomplete: str) -> list[str]:
    """Models that were pulled, and what can be named without."""
    return [name for name in catalog.names() if name.startswith(incomplete)]


def quant_names(incomplete: str) -> list[str]:
    """QwQ-32B's quantizations."""
    return [name for name in quants.BY_NAME if name.startswith(incomplete.lower())]


def setting_names(incomplete: str) -> list[str]:
    """Names of settings."""
    names = [field.name for field in fields(config.Settings)]
    return [name for name in names if name.startswith(incomplete)]
