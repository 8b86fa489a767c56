"""The sticker world: words, what a picture shows, how a caption says it, what can be looked for in it. Imports no torch."""
