"""The commands, one module each: they parse options, call the library, and print results."""
