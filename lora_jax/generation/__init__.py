"""Generation: sampling, beam search, texts in and texts out, one base with many adapters."""
