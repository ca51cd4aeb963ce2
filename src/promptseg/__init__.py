"""promptseg: text-prompted segmentation, from fine-tuning to a phone's NPU, as one repeatable experiment."""
