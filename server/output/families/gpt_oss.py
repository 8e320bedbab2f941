"""gpt-oss: OpenAI's harmony format, which has a parser of its own.

Source of the format: OpenAI's harmony response format guide.
"""

from __future__ import annotations

from server.output.layout import Family, Tags

GPT_OSS = Family(
    name="harmony",
    tags=Tags(open="<|channel|>analysis<|message|>", close="<|end|>"),
    harmony=True,
)
