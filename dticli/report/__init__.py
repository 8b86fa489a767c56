"""A word and its run on one page: gathered from their files, drawn as charts, and written as self-contained HTML."""
