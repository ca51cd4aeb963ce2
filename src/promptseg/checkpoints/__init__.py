"""Weights on disk: our own checkpoints, published ones, and where a training starts.

Imports networks, params, files and download. Start reading at `checkpoint.py`: safetensors with JSON beside it that
rebuilds the network. `published.py` converts what the published code writes, by the table in published_keys.py;
`start.py` builds the network that params.yaml asks for.
"""
