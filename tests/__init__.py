"""The tests, which know nothing of the shell they were started from.

What steers the libraries and colours there is taken out here, before any of them is imported.
"""

import os

_STEERING = (
    "HF_HUB_",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "TRANSFORMERS_",
    "DIFFUSERS_",
    "DTI_",
    "FORCE_COLOR",
    "NO_COLOR",
    "COLUMNS",
)

for _name in list(os.environ):
    if _name.startswith(_STEERING):
        del os.environ[_name]
