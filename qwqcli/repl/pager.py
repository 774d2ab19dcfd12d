"""Shows a long text in the person's pager; without one it is written out.

The pager is $QWQ_PAGER, else $PAGER, else less. The text has been made safe to show.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping

from qwqcli.terminal import Output


def page(text: str, out: Output, environ: Mapping[str, str] = os.environ) -> None:
    """Show `text` and wait until the person has left the pager."""
    wanted = environ.get("QWQ_PAGER") or environ.get("PAGER") or "less"
    command = shlex.split(wanted)
    if not command or not shutil.which(command[0]):
        out.write(text)
        return
    # a pager that ends before it has read all of a long text is no error
    subprocess.run(command, input=text.encode("utf-8", "replace"), check=False)
