"""Reports of a word and its run, as a self-contained HTML page."""
