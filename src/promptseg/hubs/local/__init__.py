"""The hub on this machine: Qualcomm's compiler, its performance simulator and its emulator, from onnxruntime-qnn.

Start with `hub`. `session` is one run of the compiler or of the emulator; `process` starts it in a process of its own
and explains how it failed; `profile` knows the chips and reads the simulator's figures, `trace` its timeline by node;
and `tensors` compares the emulator's arithmetic with ONNX Runtime's, tensor by tensor.
"""
