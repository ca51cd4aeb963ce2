import json
from dataclasses import asdict

import pytest

from promptseg.hubs.local import session as qnn_session
from promptseg.hubs.local.session import Chip, CompileRequest, EmulateRequest

CHIP = Chip(htp_arch=73, soc_model=60, vtcm_mb=8)
COMPILE = CompileRequest(graph="model.onnx", wrapper="out.onnx", chip=CHIP, profile_csv=None, verbose=False)
EMULATE = EmulateRequest(wrapper="out.onnx", chip=CHIP, inputs="in.npz", output="out.npy")


@pytest.mark.parametrize(("request_sent", "wanted"), [(COMPILE, "compile"), (EMULATE, "emulate")])
def test_a_request_survives_the_command_line(monkeypatch, request_sent, wanted):
    received = []
    monkeypatch.setattr(qnn_session, "compile_graph", lambda request: received.append(("compile", request)))
    monkeypatch.setattr(qnn_session, "emulate", lambda request: received.append(("emulate", request)))
    qnn_session.main([json.dumps(asdict(request_sent))])
    assert received == [(wanted, request_sent)]
