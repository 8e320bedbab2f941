"""Which control tokens stay in the text a runner gives out. Pure.

They frame reasoning and tool calls, and whoever parses the text needs to see them
(`server.output.families`). Others, such as turn markers, are left out, as users expect.
"""

from __future__ import annotations

import re

_SHOWN = re.compile(
    r"think|tool|call|channel|constrain|python_tag|action|\bargs?\b|arg_|inner_|DSML"
    r"|^<\|(start|message|end)\|>$|^<\|\"\|>$|^<escape>$",
    re.IGNORECASE,
)


def is_shown(name: str) -> bool:
    """Whether a control token of this name stays in the text."""
    return bool(_SHOWN.search(name))
