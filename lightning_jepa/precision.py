"""Half precision, where it pays: the resolver `${half:cpu}`."""

from __future__ import annotations


def half(device: str) -> str:
    """The precision to train and imagine in on a "cpu" or another device: "bf16-mixed", or else "32-true".

    A CPU that lacks bfloat16 (AVX-512 or later has it) computes it number by number, ten times slower than in 32 bits.
    `device` may be one of `lightning.Trainer`'s accelerators: "auto" is the CPU where there is nothing else.
    """
    import torch  # here, as `--help` has no need of it

    if device != "cpu" and (device != "auto" or torch.accelerator.is_available()):
        return "bf16-mixed"
    has = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16-mixed" if has else "32-true"
