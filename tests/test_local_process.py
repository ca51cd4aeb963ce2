import errno
import subprocess

import pytest
from graphs import write_refused_graph

from promptseg.hubs.devices import Chip
from promptseg.hubs.local import process
from promptseg.hubs.local.process import SHOWN, RefusedOp, describe, last_error, refused_ops, run_compiler, run_emulator
from promptseg.hubs.local.session import PLANS, CompileRequest, EmulateRequest, qnn_available

CHIP = Chip(htp_arch=73, soc_model=60, vtcm_mb=8)
REFUSED = """\
[V:onnxruntime:, x.cc:1713 LogNodeSupport] Validation FAILED for 1 nodes in OrtNodeUnit (Einsum) :
\tOperator type: Einsum Node name: mix Node index: 1
\tREASON : Einsum unsupported equation: c,chw->hw
"""


def compile_request(folder, **changes):
    fields = {"graph": "model.onnx", "wrapper": str(folder / "out.onnx"), "profile_csv": None, "verbose": False}
    return CompileRequest(**(fields | changes), chip=CHIP)


def answering(monkeypatch, *answers):
    """Let the subprocesses end like `answers`: (exit code, stderr); return the list of what was run."""
    runs = []
    remaining = list(answers)

    def run(command, **_keywords):
        code, stderr = remaining.pop(0)
        runs.append(command)
        return subprocess.CompletedProcess(command, code, stdout="", stderr=stderr)

    monkeypatch.setattr(process.subprocess, "run", run)
    return runs


def test_success_asks_once(monkeypatch, tmp_path):
    runs = answering(monkeypatch, (0, ""))
    run_compiler(tmp_path, compile_request(tmp_path))
    assert len(runs) == 1


def test_a_refusal_is_asked_again_verbosely_and_names_the_operation(monkeypatch, tmp_path):
    runs = answering(monkeypatch, (1, "no"), (1, REFUSED))
    with pytest.raises(ValueError, match=r"1 operations that the NPU refuses.*Einsum 'mix' \(Einsum unsupported"):
        run_compiler(tmp_path, compile_request(tmp_path))
    assert '"verbose": true' in runs[1][-1]


def test_a_failure_without_refusals_gives_the_compilers_words(monkeypatch, tmp_path):
    answering(monkeypatch, (1, "x\n[ONNXRuntimeError] : 11 : EP_FAIL : MEM_ALLOC\n"), (1, ""))
    with pytest.raises(ValueError, match=r"does not finish: \[ONNXRuntimeError\] : 11 : EP_FAIL : MEM_ALLOC"):
        run_compiler(tmp_path, compile_request(tmp_path))


def test_a_graph_without_a_plan_for_its_memory_is_compiled_more_sparingly(monkeypatch, tmp_path):
    words = "[ONNXRuntimeError] : 11 : EP_FAIL : Error: QNN_COMMON_ERROR_MEM_ALLOC: Memory allocation related error."
    runs = answering(monkeypatch, (1, words), (0, ""))
    run_compiler(tmp_path, compile_request(tmp_path))
    assert [f'"plan": {plan}' in run[-1] for plan, run in enumerate(runs)] == [True, True]
    answering(monkeypatch, *[(1, words)] * len(PLANS), (1, ""))
    with pytest.raises(ValueError, match=r"does not finish: .*MEM_ALLOC"):
        run_compiler(tmp_path, compile_request(tmp_path))


def test_a_killed_compiler_is_no_fault_of_the_graph(monkeypatch, tmp_path):
    runs = answering(monkeypatch, (-9, ""))
    with pytest.raises(ChildProcessError, match=r"killed \(signal 9\), as systems do that run out of memory"):
        run_compiler(tmp_path, compile_request(tmp_path))
    assert len(runs) == 1


def test_a_crash_of_the_compiler_names_the_signal(monkeypatch, tmp_path):
    answering(monkeypatch, (-11, ""))
    with pytest.raises(ChildProcessError, match=r"the compiler ended by SIGSEGV \(signal 11\)"):
        run_compiler(tmp_path, compile_request(tmp_path))


@pytest.mark.parametrize("words", ["Failed to write context cache file.", "[Errno 28] No space left on device"])
def test_a_full_disk_is_no_fault_of_the_graph_and_is_asked_once(monkeypatch, tmp_path, words):
    runs = answering(monkeypatch, (1, f"Traceback\n{words}\n"))
    with pytest.raises(OSError, match="could not write its binary: make room and run again") as caught:
        run_compiler(tmp_path, compile_request(tmp_path))
    assert caught.value.errno == errno.ENOSPC
    assert len(runs) == 1


def test_a_killed_emulator_is_no_fault_of_the_graph(monkeypatch, tmp_path):
    answering(monkeypatch, (-9, ""))
    request = EmulateRequest(wrapper=str(tmp_path / "out.onnx"), chip=CHIP, inputs="i.npz", outputs="o.npz")
    with pytest.raises(ChildProcessError, match=r"the HTP emulator killed \(signal 9\)"):
        run_emulator(request)


def test_a_failing_emulator_gives_its_last_words(monkeypatch, tmp_path):
    answering(monkeypatch, (1, "Traceback\nOSError: gone\n"))
    request = EmulateRequest(wrapper=str(tmp_path / "out.onnx"), chip=CHIP, inputs="i.npz", outputs="o.npz")
    with pytest.raises(ChildProcessError, match="exit code 1 from the HTP emulator: OSError: gone"):
        run_emulator(request)


@pytest.mark.slow
@pytest.mark.skipif(not qnn_available(), reason="no onnxruntime-qnn with an HTP library for this system")
def test_the_compiler_itself_names_what_it_refuses(tmp_path):
    write_refused_graph(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"NonZero 'find_inside' \(NonZero output shape must be static"):
        run_compiler(tmp_path, compile_request(tmp_path))


# Lines as onnxruntime-qnn 2.7.0 writes them, times left out.
LOG = """\
[V:onnxruntime:, qnn_execution_provider.cc:1713 LogNodeSupport] Validation PASSED for 1 nodes in OrtNodeUnit (Relu) :
\tOperator type: Relu Node name:  Node index: 0
[V:onnxruntime:, qnn_execution_provider.cc:1713 LogNodeSupport] Validation FAILED for 1 nodes in OrtNodeUnit (NonZero) :
\tOperator type: NonZero Node name:  Node index: 1
\tREASON : NonZero output shape must be static. Set shape to [rank, num_elements].
[V:onnxruntime:, qnn_execution_provider.cc:1713 LogNodeSupport] Validation FAILED for 2 nodes in GeluFusion (Erf) :
\tOperator type: Div Node name: node_div Node index: 2
\tOperator type: Erf Node name: node erf Node index: 3
\tREASON : Failed to add node.

[V:onnxruntime:, qnn_execution_provider.cc:1713 LogNodeSupport] Validation FAILED for 1 nodes in OrtNodeUnit (NonZero) :
\tOperator type: NonZero Node name:  Node index: 1
\tREASON : NonZero output shape must be static. Set shape to [rank, num_elements].
"""


def test_refused_nodes_are_listed_once_with_their_reasons():
    assert refused_ops(LOG) == [
        RefusedOp("NonZero", "node 1", "NonZero output shape must be static. Set shape to [rank, num_elements]"),
        RefusedOp("Div", "node_div", ""),
        RefusedOp("Erf", "node erf", ""),
    ]


def test_a_log_without_failures_names_none():
    assert refused_ops(LOG.replace("FAILED", "PASSED")) == []


def test_a_long_list_is_cut_and_counted():
    ops = [RefusedOp("Einsum", f"n{number}", "") for number in range(SHOWN + 3)]
    text = describe(ops)
    assert text.count("Einsum") == SHOWN
    assert text.endswith("and 3 more")
    assert describe(ops[:1]) == "Einsum 'n0'"


def test_the_last_error_is_onnx_runtimes_own_or_the_last_line():
    stated = "state.EPFail: [ONNXRuntimeError] : 11 : EP_FAIL : no memory\n"
    assert last_error("Traceback\n" + stated + "bye\n") == "[ONNXRuntimeError] : 11 : EP_FAIL : no memory"
    assert last_error("a\n  b  \n") == "b"
    assert last_error("") == ""
