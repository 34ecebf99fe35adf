"""The Flower side: settings, messages, the client and server apps, the strategy, the CLI."""

import os

# OpenMP threads that spin while they wait slow each other down as soon as two processes share the
# cores, as simulated clients do. Read when torch is first imported, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
