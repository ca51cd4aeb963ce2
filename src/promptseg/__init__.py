"""promptseg: text-prompted segmentation, from fine-tuning to a Snapdragon's NPU, as one repeatable experiment."""
