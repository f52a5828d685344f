"""Quantized weights: their meaning (`blocks`), their one canonical folder (`weightset`), and other people's layouts."""
