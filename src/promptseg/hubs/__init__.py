"""From an ONNX graph to what it costs and what its masks are, on a device or on this machine.

Start with `base`: the protocol of a hub (compile, profile, run) and the records that it hands back. `contract` is the
graph's inputs and outputs as data, `host` the samples and ONNX Runtime on this machine, `fidelity` what hub-infer does:
the masks that are scored, held to the binary's. `local` and `aihub` are the two hubs; `backends` alone knows both.
Imports datasets, metrics, params and files of this package, never a network or torch.
"""
