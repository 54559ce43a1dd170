"""An FP32 step that loses what FP16 would lose, inside its kernels too: what the prediction foretells by."""
