"""Small networks of Hugging Face's transformers."""

from tools.families.example import Example

EXAMPLES: dict[str, Example] = {}
