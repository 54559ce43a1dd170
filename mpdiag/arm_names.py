"""The arms of a verification by name, as trials, costs and comparisons are recorded under them."""

BASELINE = "fp32"  # in IEEE arithmetic, whatever the settings are
FP32_CONFIGURED = "fp32-configured"
FP16 = "fp16"
FP16_PLAN = "fp16-plan"
FP16_UNSCALED = "fp16-unscaled"
FP16_PURE = "fp16-pure"
BF16 = "bf16"
TF32 = "tf32"
FP16_CHANNELS_LAST = "fp16-channels-last"
FP16_COMPILED = "fp16-compile"
