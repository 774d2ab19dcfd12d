"""qwq: the reasoning model QwQ-32B in a terminal, on llama.cpp."""

__version__ = "0.1.0"
