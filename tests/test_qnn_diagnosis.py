from promptseg.hubs.local.diagnosis import SHOWN, RefusedOp, describe, last_error, refused_ops

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
