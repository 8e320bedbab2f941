"""GLM 4.5 to 4.7, Ling 3: keys and values of arguments in pairs of tags.

Source of the format: the chat templates that the models named carry.
"""

from __future__ import annotations

from server.output.bodies.tagged import TaggedBody
from server.output.layout import Family, Layout

GLM = Family(
    name="glm4",
    layouts=(
        Layout(
            openers=("<tool_call>",),
            body=TaggedBody(
                name_end="",
                key=("<arg_key>", "</arg_key>"),
                value="<arg_value>",
                value_end=("</arg_value>",),
                end=("</tool_call>",),
            ),
        ),
    ),
)
