"""Answers about pictures of one's own, from Python: `ask.open_model` opens a file, `ask.ask` asks it.

    model = open_model(Path("models/model.onnx"), res=320)
    answers = ask(model, ClipTokenizer(), picture, ["the red cup"])

`predict` and the demo are made of these two. May import datasets, hubs (for ONNX Runtime), and, once a checkpoint is
opened, checkpoints and networks.
"""
