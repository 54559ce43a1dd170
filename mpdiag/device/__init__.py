"""The only rooms that touch torch.cuda and NVML: environment, precision settings, clocks, GPM, energy, memory."""
