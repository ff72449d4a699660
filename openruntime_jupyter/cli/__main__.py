"""`python -m openruntime_jupyter.cli`: the same as `jupyter openruntime`, with this Python."""

from __future__ import annotations

import sys

from openruntime_jupyter.cli import main

sys.exit(main())
