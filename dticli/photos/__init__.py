"""From a folder of photos to what a step learns from: crops, captions, latents."""
