"""Programs that run with nn.LSTM and FusedLSTM side by side: `python -m examples.digit_rows`."""
