"""Parts of the network in forms that an NPU computes quickly and rightly; each equals the plain part up to rounding.

Start with `substitute.py`, which puts them in. tests/test_rewrites.py holds each to the plain part in torch,
tests/test_emulator.py to ONNX Runtime in the NPU's arithmetic. Imports `networks` and the canvas's size.
"""
