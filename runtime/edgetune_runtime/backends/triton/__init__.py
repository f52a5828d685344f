"""Server GPUs: W4A16 decoding with Triton kernels and CUDA graphs, as the engine "triton" of the runtime.

The runtime finds it by the entry point `triton` of the group `edgetune.backends`; nothing else imports it.
"""
