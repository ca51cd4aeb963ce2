"""The Python API: `promptseg.load` opens a model, `segment` asks it (`model.py`); `predict` and the demo use the same.

    model = promptseg.load("nano-shapes")
    (cup,) = model.segment("table.jpg", ["the red cup"])

May import datasets, hubs (for ONNX Runtime), params, report.overlay and, once they are asked for, checkpoints and
networks (torch) and experiments (DVC).
"""
