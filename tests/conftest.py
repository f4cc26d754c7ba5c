import os

import torch
from hypothesis import settings
from power import watch as watch  # a fixture

settings.register_profile("capsprune", derandomize=True, deadline=None)
settings.load_profile("capsprune")
# One where two processes share the tests out.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
