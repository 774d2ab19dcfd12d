"""What the shell offers on Tab: sessions, models and settings, without loading anything heavy.

Whatever goes wrong here, the shell gets no offers rather than an error in the middle of a line.
"""

from __future__ import annotations

import os
from dataclasses import fields

from qwqcli import catalog, config, quants
from qwqcli.errors import QwqError


def session_names(incomplete: str) -> list[str]:
    """Names of sessions, and ids of those without."""
    from qwqcli.sessions import Store

    path = config.paths(os.environ).sessions
    if not path.exists():
        return []
    try:
        store = Store(path)
    except QwqError:
        return []
    names = [summary.session.name or summary.session.id for summary in store.summaries()]
    store.close()
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
