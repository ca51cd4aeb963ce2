"""The bench's device: a "compiled" binary holds the graph, and ONNX Runtime runs it, sample by sample."""

from pathlib import Path

import h5py
import numpy as np
import onnxruntime as ort

MAGIC = b"a context binary of the bench\n"


def compile_graph(graph: Path, binary: Path) -> None:
    """Wrap a graph; any other file is refused with ValueError, as a compiler would."""
    content = graph.read_bytes()
    ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    binary.write_bytes(MAGIC + content)


def run(binary: Path, dataset: Path, outputs: Path) -> None:
    """Run every sample of an HDF5 data set; write the outputs in the service's layout."""
    content = binary.read_bytes()
    assert content.startswith(MAGIC)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(content[len(MAGIC) :], options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    with h5py.File(dataset) as store, h5py.File(outputs, "w") as results:
        groups = sorted(store["data"].values(), key=lambda group: group.attrs["order"])
        count = int(groups[0].attrs["batch_count"])
        for number in range(count):
            feed = {str(group.attrs["name"]): np.array(group[f"batch_{number}"]) for group in groups}
            for order, tensor in enumerate(session.run(names, feed)):
                results.create_dataset(f"data/{order}/batch_{number}", data=tensor, compression="gzip")
        for order, name in enumerate(names):
            results[f"data/{order}"].attrs.update({"order": order, "name": name, "batch_count": count})
