"""What a run costs: time, memory, tensor cores, energy, the largest batch. Each figure is measured, or has a reason."""
