"""Sessions: the gate, the trainer process and the thread that runs one session after another."""
