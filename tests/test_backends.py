import pytest

from promptseg.deploy.backends import open_hub
from promptseg.deploy.qnn_local import LocalHub
from promptseg.params import HubConfig


def config(device):
    return HubConfig(backend="local", device=device, emulator_samples=0, cpu_latency_runs=1, samples=None, split="val")


def test_local_is_this_machine():
    assert isinstance(open_hub(config("Snapdragon X Elite CRD")), LocalHub)


def test_the_backend_refuses_a_device_that_it_does_not_know():
    with pytest.raises(ValueError, match=r"hub\.device"):
        open_hub(config("Pixel 9"))
