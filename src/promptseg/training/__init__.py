"""Training: one network, on as many GPUs as there are, resumable at any moment, the same result every time.

Imports networks, checkpoints, datasets, params, metrics and files; the finetune stage alone imports this package.
Start reading at `loop.finetune`, which is the training on one page; `run.run_finetune` is what surrounds it: data, the
weights to start from, the folder of snapshots. What a step computes is in losses.py, what it sees in sampling.py and
data.py.
"""
