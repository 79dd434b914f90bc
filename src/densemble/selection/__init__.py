"""Which members explain the data, with what weights."""
