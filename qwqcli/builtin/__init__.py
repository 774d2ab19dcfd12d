"""The tiny reasoning model that ships inside the wheel, and where it lies."""

from pathlib import Path


def model_path() -> Path:
    """Return the GGUF file of the built-in model."""
    return Path(__file__).with_name("tiny.gguf")
