"""What FP32 foretold of a few tensors, and what FP16 did."""

from mpdiag.foretold import TensorForecast, summarized


def forecast(name, predicted, observed, **other):
    fields = {"kind": "activation_gradient", "trained_steps": 0, "log2_scale": 0, "elements": 100}
    fields |= {"predicted_overflow": 0.0, "observed_overflow": 0.0, "cascade_underflow": None}
    return TensorForecast(name=name, predicted_underflow=predicted, observed_underflow=observed, **(fields | other))


FOUND = summarized(
    [
        forecast("right", 0.25, 0.25),
        forecast("also <right>", 0.25, 0.25, trained_steps=20, log2_scale=16),
        forecast("off", 0.01, 0.02),
        forecast("noise", 1.0, 0.0, noise=True),
    ],
    emulated=True,
)
