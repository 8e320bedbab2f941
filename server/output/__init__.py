"""Turn generated text into content, thinking and tool calls."""
