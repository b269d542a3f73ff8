"""The one place that configures Accelerate, DeepSpeed and FSDP."""
