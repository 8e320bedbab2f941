"""The HTTP dialects: Ollama's, OpenAI's, and our own health and admin calls."""
