"""The parts of the network in forms that an NPU likes; each takes the place of the plain part and computes the same."""
