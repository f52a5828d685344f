"""Server GPUs: W4A16 decoding with Triton kernels and CUDA graphs, as the engine "torch" of the runtime.

The runtime finds it by the entry point `torch` of the group `edgetune.backends`; nothing else imports it.
"""
