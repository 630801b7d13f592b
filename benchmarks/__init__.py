"""What is measured about tuna_trl: `python -m benchmarks.bench` (speed and memory), `python benchmarks/parity.py`."""
