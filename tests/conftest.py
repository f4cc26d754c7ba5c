import torch
from hypothesis import settings
from power import watch as watch  # a fixture

settings.register_profile("capsprune", derandomize=True, deadline=None)
settings.load_profile("capsprune")
torch.set_num_threads(2)
