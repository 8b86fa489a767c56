"""How well a word does what it was learned for: is the picture the thing, and does it follow the rest of the prompt."""
