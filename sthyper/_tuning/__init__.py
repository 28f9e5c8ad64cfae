"""The parts of the tuner's event loop."""
