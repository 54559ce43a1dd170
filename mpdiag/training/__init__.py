"""One training loop for all precisions, and the CUDA autocast policy on any device."""
