"""The sticker world: its words, scenes, captions, and the elements that judges look for. Imports no torch."""
