"""From a trained network to the ONNX graph that is deployed.

Start with `deployed_graph.py`: the network's function with the challenge's inputs and output. `rewrites` holds the
forms that take plain parts' places there. `onnx_export.py` traces it, writes the file with a record of what it is, and
holds it to torch. Imports `networks`, `datasets`, `hubs` (the contract, and ONNX Runtime to compare with) and `params`.
docs/graph.md says what each form is worth, docs/compiler.md what the NPU's compiler computes wrongly.
"""
