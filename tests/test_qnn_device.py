import pytest

from promptseg.hubs.local.calibration import CALIBRATED_DEVICE
from promptseg.hubs.local.device import DEVICES, npu_device


def test_every_device_is_found_by_its_name():
    assert [npu_device(device.name) for device in DEVICES] == list(DEVICES)


def test_the_calibrated_device_is_known_and_simulated_on_a_chip_with_another_number():
    device = npu_device(CALIBRATED_DEVICE)
    assert (device.htp_arch, device.soc_model, device.simulator_soc_model, device.vtcm_mb) == (73, 60, 52, 8)


def test_an_unknown_device_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"hub\.device: got 'Pixel 9', wanted .*'Snapdragon X Elite CRD'"):
        npu_device("Pixel 9")
