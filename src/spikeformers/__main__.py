"""`python -m spikeformers` is the `spikeformers` command."""

import sys

from spikeformers.cli import main

sys.exit(main())
