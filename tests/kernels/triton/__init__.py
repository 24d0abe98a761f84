"""Tests of the kernels in Triton."""

import os

# In Triton's interpreter, and not on a GPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
