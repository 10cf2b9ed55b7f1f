"""Where Triton cannot be installed, there is nothing to test of its kernels."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_triton_*"]
