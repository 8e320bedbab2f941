"""Go's text/template, as far as Ollama's TEMPLATEs use it: read, bounded, without side effects."""
