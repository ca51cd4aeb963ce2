"""CLIPSeg: CLIP, frozen, and a light decoder that turns three of its layers and a phrase into a mask.

Imports torch and transformers' layers only. Start reading at `model.py`.
"""
